"""/metrics on TCP for Prometheus, where --metrics-listen asks for it; nothing else is there, and nothing changes.

A connection carries one request and lives LIFE_S at the most, so that who sends no header or takes no answer holds one
of a few places for seconds.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from http import HTTPStatus

from aiohttp import web

from infiniswap.shared.address import HostPort
from infiniswap.shared.http_server import METRICS_CONTENT_TYPE, Handler, HttpServer

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
LIFE_S = 10.0
BODY_BYTES_MAX = 1024  # a request for numbers has none
Text = Callable[[], bytes | Awaitable[bytes]]
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _words(sentence: str, status: HTTPStatus, **headers: str) -> web.Response:
    return web.Response(text=f"{sentence}\n", status=status, headers={**HEADERS, **headers})


@web.middleware
async def _plainly(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPMethodNotAllowed:
        response = _words("/metrics can only be read", HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
    except web.HTTPNotFound:
        response = _words("there is only /metrics here", HTTPStatus.NOT_FOUND)
    response.force_close()
    return response


def application(text: Text) -> web.Application:
    """text: all metrics in the text format 0.0.4."""

    async def metrics(_request: web.Request) -> web.Response:
        found = text()
        body = found if isinstance(found, bytes) else await found
        return web.Response(body=body, headers={**HEADERS, "Content-Type": METRICS_CONTENT_TYPE})

    app = web.Application(middlewares=[_plainly], client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/metrics", metrics)
    return app


async def serve_metrics(text: Text, listening: socket.socket, stack: AsyncExitStack) -> None:
    """Serve text() on a listening socket until stack unwinds."""
    server = HttpServer(application(text), listening, connections_max=CONNECTIONS_MAX, life_s=LIFE_S, give_way=False)
    stack.push_async_callback(server.close)
    await server.start()
    log.info("metrics are at http://%s/metrics", HostPort(*listening.getsockname()[:2]))
