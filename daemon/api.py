"""The daemon's control API: HTTP and JSON. Turns requests into calls of the lender, and refusals into answers.

Whoever can reach the port may ask for offers, health and metrics and take a lease, or whom the gate lets do so; a
lease's calls need its token, and where there are certificates that of the host that took it. A wrong id, a wrong token
and an ended lease get one and the same answer.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable
from http import HTTPStatus
from typing import Any, TypeVar

from aiohttp import web

import infiniswap
from infiniswap.daemon.gate import Gate
from infiniswap.daemon.leases import EXPORT_PREFIX, Lease
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.metrics import DaemonMetrics
from infiniswap.daemon.rdma_lease import PROBE_BYTES
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.streams import Streams
from infiniswap.daemon.tickets import LIFE_S, Tickets
from infiniswap.rdma.path import Address as IpAddress
from infiniswap.shared.clock import Clock
from infiniswap.shared.crowd import network_of
from infiniswap.shared.http_server import METRICS_CONTENT_TYPE, BodyError, read_object, require_websocket, sentence_of
from infiniswap.shared.messages import (
    Beat,
    Granted,
    LeaseRequest,
    Life,
    Mapped,
    Offered,
    PathRequest,
    Standing,
    Ticket,
    holdings_as_json,
    rdma_as_json,
)
from infiniswap.shared.rate import Rate

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 65536
# One address may ask for so many leases at once, and then for so many a second: a host with many devices starts within
# that, and whoever wants all leases of a daemon has to wait while others get theirs.
LEASES_BURST = 64
LEASES_PER_S = 4.0
STATUSES = {
    Refusal.INVALID: HTTPStatus.BAD_REQUEST,
    Refusal.UNPROVEN: HTTPStatus.UNAUTHORIZED,
    Refusal.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Refusal.UNKNOWN: HTTPStatus.NOT_FOUND,
    Refusal.CONFLICT: HTTPStatus.CONFLICT,
    Refusal.NO_RDMA: HTTPStatus.NOT_IMPLEMENTED,
    Refusal.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Refusal.NO_MEMORY: HTTPStatus.INSUFFICIENT_STORAGE,
    Refusal.TOO_OFTEN: HTTPStatus.TOO_MANY_REQUESTS,
}

_ANOTHERS = "this lease was taken with another host's certificate, or without one; its token is of no use here"

_Message = TypeVar("_Message")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Address = Callable[[web.Request], tuple[str, int]]


def _answer(content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK, **headers: str) -> web.Response:
    fixed = {"Cache-Control": "no-store", "Server": "infiniswapd"}
    return web.json_response(content, status=status, headers={**fixed, **headers})


def _refuse(status: HTTPStatus | int, message: str, **headers: str) -> web.Response:
    return _answer({"error": message}, HTTPStatus(status), **headers)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as {"error": sentence}; what is our own fault is logged and told without details."""
    try:
        return await handler(request)
    except RefusedError as refusal:
        headers = {"WWW-Authenticate": "Bearer"} if refusal.reason is Refusal.UNPROVEN else {}
        return _refuse(STATUSES[refusal.reason], str(refusal), **headers)
    except BodyError as error:
        return _refuse(error.status, str(error))
    except web.HTTPRequestEntityTooLarge:
        return _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {BODY_BYTES_MAX} bytes")
    except web.HTTPNotFound:
        return _refuse(HTTPStatus.NOT_FOUND, "there is nothing at this path")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return _refuse(HTTPStatus.METHOD_NOT_ALLOWED, f"this path takes {allowed}", Allow=allowed)
    except web.HTTPException as error:
        return _refuse(error.status, sentence_of(error))
    except Exception:
        log.exception("%s of a request failed", request.method)
        return _refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")


def _number(text: str, what: str) -> int:
    """A decimal number out of a path or query."""
    if re.fullmatch(r"[0-9]{1,19}", text) is None:
        raise RefusedError(Refusal.INVALID, f"{what} must be a whole number, not negative")
    return int(text)


def _read(parse: Callable[[dict[str, Any]], _Message], content: dict[str, Any]) -> _Message:
    try:
        return parse(content)
    except ValueError as error:
        raise RefusedError(Refusal.INVALID, str(error)) from error


def _local_address(request: web.Request) -> IpAddress | None:
    """The address at which the client reached us: RDMA packets had best go to the same."""
    name = None if request.transport is None else request.transport.get_extra_info("sockname")
    if not name:
        return None
    try:
        return ipaddress.ip_address(name[0].partition("%")[0])
    except ValueError:
        return None


class ControlApi:
    """Handlers of the control API over one lender."""

    def __init__(
        self,
        lender: Lender,
        paths: RdmaPaths,
        streams: Streams,
        metrics: DaemonMetrics,
        data_address: Address,
        clock: Clock,
        tickets: Tickets,
    ) -> None:
        """data_address: host and port for page I/O, as the asking client can reach it."""
        self._tickets = tickets
        self._lender = lender
        self._paths = paths
        self._streams = streams
        self._metrics = metrics
        self._data_address = data_address
        self._clock = clock
        self._started_s = clock()
        self._rate = Rate(burst=LEASES_BURST, per_second=LEASES_PER_S, clock=clock)
        # Who is to know whose request it is (HttpServer.vouch).
        self.vouch: Callable[[web.Request, Hashable], None] = lambda _request, _holder: None
        self._owner: Callable[[web.Request], str] = lambda _request: ""  # whose certificate came with it

    def application(self, more: Iterable[web.RouteDef] = (), gate: Gate | None = None) -> web.Application:
        """The aiohttp application with all routes, and more of others; gate: who is let in, None for everybody."""
        if gate is not None:
            self._owner = gate.who
        middlewares = [errors_as_json] if gate is None else [errors_as_json, gate.check]
        app = web.Application(middlewares=middlewares, client_max_size=BODY_BYTES_MAX)
        app.add_routes(
            [
                web.get("/v1/health", self.health),
                web.get("/v1/offer", self.offer),
                web.get("/v1/stats", self.stats),
                web.get("/v1/metrics", self.metrics),
                web.post("/v1/leases", self.grant),
                web.get("/v1/leases/{lease}", self.show),
                web.delete("/v1/leases/{lease}", self.release),
                web.post("/v1/leases/{lease}/heartbeat", self.heartbeat),
                web.get("/v1/leases/{lease}/stream", self.stream),
                web.put("/v1/leases/{lease}/slabs/{index}", self.map_slab),
                web.delete("/v1/leases/{lease}/slabs/{index}", self.unmap_slab),
                web.post("/v1/leases/{lease}/tickets", self.ticket),
                web.post("/v1/leases/{lease}/rdma", self.open_path),
                web.delete("/v1/leases/{lease}/rdma", self.close_path),
                *more,
            ]
        )
        return app

    async def health(self, _request: web.Request) -> web.Response:
        """GET /v1/health: this process answers."""
        return _answer(
            {
                "status": "ok",
                "version": infiniswap.__version__,
                "incarnation": self._lender.incarnation,
                "uptime_s": round(self._clock() - self._started_s, 3),
            }
        )

    async def offer(self, request: web.Request) -> web.Response:
        """GET /v1/offer?slab_bytes=N: memory that could be mapped now."""
        text = request.query.get("slab_bytes")
        offer = self._lender.offer(None if text is None else _number(text, "slab_bytes"))
        offered = Offered(
            free_bytes=offer.free_bytes,
            total_bytes=offer.total_bytes,
            incarnation=self._lender.incarnation,
            used_bytes=offer.used_bytes,
            leases=len(self._lender.leases),
            link_layer=self._lender.keys.host.link_layer,
            standing=self._standing(),
        )
        return _answer(offered.as_json())

    async def stats(self, _request: web.Request) -> web.Response:
        """GET /v1/stats: the same numbers as the metrics, as JSON."""
        return _answer({"incarnation": self._lender.incarnation, **self._metrics.snapshot()})

    async def metrics(self, _request: web.Request) -> web.Response:
        """GET /v1/metrics: Prometheus text format."""
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def grant(self, request: web.Request) -> web.Response:
        """POST /v1/leases: a lease, with the only copy of its token."""
        asked = _read(LeaseRequest.parse, await read_object(request))
        if not self._rate.take(network_of(request.remote or "")):
            self._lender.counts.leases_throttled += 1
            message = f"your address asks for too many leases: {LEASES_BURST} at once, {LEASES_PER_S:g} a second"
            raise RefusedError(Refusal.TOO_OFTEN, message)
        lease, token = self._lender.grant(
            device=asked.device,
            device_id=asked.device_id,
            size_bytes=asked.size_bytes,
            slab_bytes=asked.slab_bytes,
            host=request.remote or "",
            owner=self._owner(request),
        )
        granted = Granted(
            lease_id=lease.lease_id,
            token=token,
            export=EXPORT_PREFIX + token,
            address=self._data_address(request),
            link_layer=self._lender.keys.host.link_layer,
            life=self._life(lease),
            no_rdma=self._lender.keys.host.reason,
        )
        return _answer(granted.as_json(), HTTPStatus.CREATED)

    async def show(self, request: web.Request) -> web.Response:
        """GET /v1/leases/{id}: what the holder of the lease may know of it."""
        lease = self._authenticate(request)
        return _answer(
            {
                "lease": lease.lease_id,
                "device": lease.device,
                "device_id": lease.device_id,
                "size_bytes": lease.size_bytes,
                "slab_bytes": lease.slab_bytes,
                "address": list(self._data_address(request)),
                "rdma": rdma_as_json(self._lender.keys.host.link_layer),
                **self._life(lease).as_json(),
                **holdings_as_json(self._beat(lease)),
            }
        )

    async def heartbeat(self, request: web.Request) -> web.Response:
        """POST /v1/leases/{id}/heartbeat: the lease lives on."""
        lease = self._authenticate(request)
        await read_object(request)
        # The body may have taken its time: a lease that ended meanwhile must not be renewed.
        lease = self._authenticate(request)
        self._lender.renew(lease)
        return _answer(self._beat(lease).as_json(self._life(lease)))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/leases/{id}/stream: a WebSocket, on which the device hears at once what a poll would tell later."""
        lease = self._authenticate(request)
        require_websocket(request)
        return await self._streams.serve(lease, request)

    async def ticket(self, request: web.Request) -> web.Response:
        """POST /v1/leases/{id}/tickets: the name of an export for one connection, soon."""
        lease = self._authenticate(request)
        await read_object(request)
        lease = self._authenticate(request)
        issued = Ticket(self._tickets.issue(lease), self._data_address(request), LIFE_S)
        return _answer(issued.as_json(), HTTPStatus.CREATED)

    async def release(self, request: web.Request) -> web.Response:
        """DELETE /v1/leases/{id}: everything goes back."""
        lease = self._authenticate(request)
        await self._lender.release(lease)
        return _answer({"lease": lease.lease_id})

    async def map_slab(self, request: web.Request) -> web.Response:
        """PUT /v1/leases/{id}/slabs/{index}: memory for one slab."""
        lease = self._authenticate(request)
        index = _number(request.match_info["index"], "the slab index")
        if index not in lease.slabs:
            await self._lender.make_room(lease)
            lease = self._authenticate(request)
        self._lender.map_slab(lease, index)
        mapped = Mapped(self._lender.free_bytes(lease), self._lender.region(lease, index))
        return _answer(mapped.as_json(index))

    async def unmap_slab(self, request: web.Request) -> web.Response:
        """DELETE /v1/leases/{id}/slabs/{index}: the memory goes back, zeroed."""
        lease = self._authenticate(request)
        index = _number(request.match_info["index"], "the slab index")
        await self._lender.unmap_slab(lease, index)
        return _answer({"slab": index, "free_bytes": self._lender.free_bytes(lease)})

    async def open_path(self, request: web.Request) -> web.Response:
        """POST /v1/leases/{id}/rdma: queue pairs for the device's own, and the keys of everything mapped."""
        lease = self._authenticate(request)
        content = await read_object(request)
        lease = self._authenticate(request)
        asked = _read(PathRequest.parse, content)
        opened = await self._paths.open(lease, asked.end, _local_address(request))
        return _answer(opened.as_json(PROBE_BYTES))

    async def close_path(self, request: web.Request) -> web.Response:
        """DELETE /v1/leases/{id}/rdma: the queue pairs are gone, and nothing arrives through them any more."""
        await self._paths.close(self._authenticate(request))
        return _answer({})

    def _authenticate(self, request: web.Request) -> Lease:
        """The lease that the path names and the token proves; before anything else of the request is looked at."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            self._lender.counts.unproven += 1
            raise RefusedError(Refusal.UNPROVEN, "this needs the header 'Authorization: Bearer TOKEN'")
        lease = self._lender.leases.authenticate(request.match_info["lease"], token.strip())
        if lease is None:
            self._lender.counts.unproven += 1
            raise RefusedError(Refusal.UNKNOWN, "there is no lease with this id and token")
        if lease.owner != (owner := self._owner(request)):
            self._lender.counts.leases_of_others += 1
            raise RefusedError(Refusal.FORBIDDEN, f"{owner or 'a host without one'}: {_ANOTHERS}")
        self.vouch(request, lease.lease_id)
        return lease

    def _life(self, lease: Lease) -> Life:
        leases = self._lender.leases
        return Life(self._lender.incarnation, leases.ttl_s, round(leases.remaining_s(lease), 3))

    def _standing(self) -> Standing:
        return Standing(infiniswap.__version__, self._lender.lending, self._streams.draining)

    def _beat(self, lease: Lease) -> Beat:
        return Beat(
            frozenset(lease.slabs),
            self._lender.free_bytes(lease),
            self._lender.connections(lease),
            # Whether pages can go on over RDMA: a device that is gone here looks healthy from there for a while.
            rdma=self._lender.keys.healthy(lease),
            leaving=self._lender.leases.leaving_ms(lease),
            standing=self._standing(),
        )
