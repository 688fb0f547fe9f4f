"""The device's control API: HTTP and JSON on a UNIX socket that only the owner can open, events by WebSocket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from infiniswap.device import events_api, traces
from infiniswap.device.changes import Changes
from infiniswap.device.changes_api import ChangesApi
from infiniswap.device.events import EventHub
from infiniswap.device.limits import SCRUB_BYTES_S_DEFAULT, SCRUB_BYTES_S_MAX, SCRUB_BYTES_S_MIN
from infiniswap.device.metrics import Metrics
from infiniswap.device.scrub import Scrub, ScrubRunningError
from infiniswap.device.snapshot import CELLS_DEFAULT, CELLS_MAX
from infiniswap.device.traces import Traces
from infiniswap.shared import log_api
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.http_server import (
    METRICS_CONTENT_TYPE,
    BodyError,
    HttpServer,
    read_object,
    sentence_of,
)
from infiniswap.shared.slab_choice import SlabChoice

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 << 10

# Of what a user got wrong; device_client.py turns them into the exit codes again.
STATUSES = {ExitCode.USAGE: 400, ExitCode.NOT_FOUND: 404}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Controlled(Protocol):
    """What the API needs of the device."""

    metrics: Metrics
    events: EventHub
    scrub: Scrub
    changes: Changes
    traces: Traces

    def status(self) -> dict[str, Any]:
        """The device in short."""

    def exposition(self) -> bytes:
        """All metrics, for Prometheus."""

    def request_stop(self, reason: str) -> None:
        """Begin an orderly stop."""


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as {"error": sentence}; what is our own fault is logged and told without details."""
    try:
        return await handler(request)
    except BodyError as error:
        return web.json_response({"error": str(error)}, status=error.status)
    except UserError as error:
        return web.json_response({"error": str(error)}, status=STATUSES.get(error.code, 409))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        reasons = {404: "there is nothing at this path", 405: "this path does not take that method"}
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return web.json_response(
            {"error": reasons.get(error.status, sentence_of(error))}, status=error.status, headers=headers
        )
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return web.json_response({"error": "internal error"}, status=500)


class ControlServer:
    """The API over one device."""

    def __init__(self, device: Controlled) -> None:
        """Nothing is served before start()."""
        self._device = device
        self._changes = ChangesApi(device)
        self._server: HttpServer | None = None

    def application(self) -> web.Application:
        """The aiohttp application with all routes."""
        app = web.Application(middlewares=[errors_as_json], client_max_size=BODY_BYTES_MAX)
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/slabs", self._slabs),
                web.get("/v1/peers", self._peers),
                web.get("/v1/stats", self._stats),
                web.get("/v1/snapshot", self._snapshot),
                web.get("/v1/metrics", self._metrics),
                web.get("/v1/scrub", self._scrub),
                web.post("/v1/scrub", self._begin_scrub),
                web.delete("/v1/scrub", self._end_scrub),
                web.get(log_api.PATH, self._log_levels),
                web.post(log_api.PATH, self._set_log_level),
                web.get(traces.PATH, self._traces),
                web.post(traces.PATH, self._remember),
                web.get(events_api.PATH, self._events),
                web.post("/v1/stop", self._stop),
                *self._changes.routes(),
            ]
        )
        return app

    async def start(self, sock: socket.socket) -> None:
        """Serve on a listening socket, which is closed with the server."""
        self._server = HttpServer(self.application(), sock)
        await self._server.start()

    async def close(self) -> None:
        """Stop serving; requests in progress may end first."""
        self._device.events.close()
        if self._server is not None:
            await self._server.close()
            self._server = None

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._device.status())

    async def _slabs(self, request: web.Request) -> web.Response:
        try:
            choice = SlabChoice.parse(request.query)
        except ValueError as error:
            raise web.HTTPBadRequest(reason=str(error)) from None
        return web.json_response(self._device.metrics.slabs(choice))

    async def _peers(self, _request: web.Request) -> web.Response:
        return web.json_response(self._device.metrics.peers())

    async def _stats(self, _request: web.Request) -> web.Response:
        return web.json_response(self._device.metrics.stats())

    async def _snapshot(self, request: web.Request) -> web.Response:
        """The status's uptime_s is the clock for rates between two of these."""
        asked = request.query.get("cells", str(CELLS_DEFAULT))
        if not (asked.isascii() and asked.isdigit() and len(asked) < 8 and 1 <= int(asked) <= CELLS_MAX):
            raise web.HTTPBadRequest(reason=f"cells must be a whole number from 1 to {CELLS_MAX}")
        return web.json_response({"status": self._device.status(), **self._device.metrics.snapshot(int(asked))})

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = self._device.exposition()
        return web.Response(body=body, headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def _stop(self, _request: web.Request) -> web.Response:
        self._device.request_stop("asked for through the control socket")
        return web.json_response({"state": "stopping"}, status=202)

    async def _traces(self, request: web.Request) -> web.Response:
        return await traces.show(request, self._device.traces)

    async def _remember(self, request: web.Request) -> web.Response:
        return await traces.change(request, self._device.traces)

    async def _log_levels(self, _request: web.Request) -> web.Response:
        return log_api.answer()

    async def _set_log_level(self, request: web.Request) -> web.Response:
        await log_api.change(request)
        return log_api.answer()

    async def _scrub(self, _request: web.Request) -> web.Response:
        return web.json_response(self._device.scrub.snapshot())

    async def _begin_scrub(self, request: web.Request) -> web.Response:
        asked = await read_object(request)
        rate, verify = asked.get("rate_bytes_s", SCRUB_BYTES_S_DEFAULT), asked.get("verify", False)
        if type(rate) is not int or not SCRUB_BYTES_S_MIN <= rate <= SCRUB_BYTES_S_MAX:
            raise web.HTTPBadRequest(
                reason=f"rate_bytes_s must be a whole number from {SCRUB_BYTES_S_MIN} to {SCRUB_BYTES_S_MAX}"
            )
        if type(verify) is not bool:
            raise web.HTTPBadRequest(reason="verify must be true or false")
        try:
            self._device.scrub.begin(rate, verify=verify)
        except ScrubRunningError as error:
            raise web.HTTPConflict(reason=str(error)) from None
        return web.json_response(self._device.scrub.snapshot(), status=202)

    async def _end_scrub(self, _request: web.Request) -> web.Response:
        self._device.scrub.end()
        return web.json_response(self._device.scrub.snapshot())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await events_api.serve_events(request, self._device.events)
