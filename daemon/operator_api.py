"""The calls for who runs the daemon's host: how it stands, and taking it out of service and back.

They name devices and hosts, and end everybody's use of this memory; so they are for programs on this host alone,
unless an option says otherwise. A browser on this host is none of them, whatever page it shows.
"""

from __future__ import annotations

from aiohttp import web

import infiniswap
from infiniswap.daemon.draining import Draining
from infiniswap.daemon.gate import MAY_DRAIN
from infiniswap.daemon.leases import Lease
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.operators import Operators, is_local
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.shared import log_api
from infiniswap.shared.clock import Clock
from infiniswap.shared.http_server import read_object
from infiniswap.shared.operator_messages import DonorStatus, DrainRequest, Holding, Host, LeaseShown, Memory


class OperatorApi:
    """Handlers of the calls."""

    def __init__(self, lender: Lender, draining: Draining, clock: Clock, operators: Operators) -> None:
        """operators: whose calls are taken."""
        self._lender = lender
        self._draining = draining
        self._clock = clock
        self._operators = operators
        self._started_s = clock()

    def routes(self) -> list[web.RouteDef]:
        """For the application of the control API."""
        return [
            web.get("/v1/status", self.status),
            web.post("/v1/cordon", self.cordon),
            web.post("/v1/uncordon", self.uncordon),
            web.post("/v1/drain", self.drain),
            web.get(log_api.PATH, self.log_levels),
            web.post(log_api.PATH, self.set_log_level),
        ]

    async def status(self, request: web.Request) -> web.Response:
        """GET /v1/status: how the daemon and its host stand, and who holds what."""
        self._check(request)
        return self._answer()

    async def cordon(self, request: web.Request) -> web.Response:
        """POST /v1/cordon: no new slabs; as often as one likes."""
        self._check(request)
        await read_object(request)
        self._draining.cordon()
        return self._answer()

    async def uncordon(self, request: web.Request) -> web.Response:
        """POST /v1/uncordon: lend again, and end a drain."""
        self._check(request)
        await read_object(request)
        self._draining.uncordon()
        return self._answer()

    async def drain(self, request: web.Request) -> web.Response:
        """POST /v1/drain: cordon and have everything given back; answers at once."""
        self._check(request)
        content = await read_object(request)
        try:
            asked = DrainRequest.parse(content)
        except ValueError as error:
            raise RefusedError(Refusal.INVALID, str(error)) from error
        self._draining.begin(asked.deadline_s, stop=asked.stop)
        return self._answer()

    async def log_levels(self, request: web.Request) -> web.Response:
        """GET /v1/log-level: what is logged."""
        self._check(request)
        return log_api.answer()

    async def set_log_level(self, request: web.Request) -> web.Response:
        """POST /v1/log-level: log more or less from now on."""
        self._check(request)
        await log_api.change(request)
        return log_api.answer()

    def _check(self, request: web.Request) -> None:
        """RefusedError unless whoever asks may."""
        if "Origin" in request.headers:
            raise RefusedError(Refusal.FORBIDDEN, "this is for administrators' programs, not for web pages")
        if self._operators is Operators.ANYONE or request.get(MAY_DRAIN, False):
            return
        transport = request.transport
        ends = [transport.get_extra_info(name) for name in ("peername", "sockname")] if transport else [None, None]
        peer, own = (str(end[0]) if isinstance(end, tuple) and end else "" for end in ends)
        if not is_local(peer, own):
            sentence = (
                "this is taken from the daemon's own host alone: run the command there (ssh), "
                "or start infiniswapd with --operators anyone"
            )
            raise RefusedError(Refusal.FORBIDDEN, sentence)

    def _answer(self) -> web.Response:
        headers = {"Cache-Control": "no-store", "Server": "infiniswapd"}
        return web.json_response(self._status().as_json(), headers=headers)

    def _status(self) -> DonorStatus:
        lender = self._lender
        counts = lender.counts
        return DonorStatus(
            version=infiniswap.__version__,
            incarnation=lender.incarnation,
            uptime_s=round(self._clock() - self._started_s, 3),
            state=self._draining.state,
            memory=self._memory(),
            host=self._host(),
            leases=tuple(self._lease(lease) for lease in lender.leases.leases()),
            evicted=counts.evicted,
            evicted_by_force=counts.evicted_by_force,
            drain=self._draining.shown(),
        )

    def _memory(self) -> Memory:
        offer = self._lender.offer()
        return Memory(
            limit_bytes=self._lender.limit_bytes,
            lendable_bytes=offer.total_bytes,
            lent_bytes=sum(len(lease.slabs) * lease.slab_bytes for lease in self._lender.leases.leases()),
            used_bytes=offer.used_bytes,
            free_bytes=offer.free_bytes,
            occupied_bytes=self._lender.arena.occupied_bytes(),
        )

    def _host(self) -> Host | None:
        monitor = self._lender.monitor
        if monitor is None:
            return None
        host = monitor.host
        return Host(
            host.total_bytes,
            max(0, host.available_bytes),
            monitor.headroom_now_bytes,
            host.pressure_percent,
            host.percpu_bytes,
        )

    def _lease(self, lease: Lease) -> LeaseShown:
        holding = Holding(lease.device, lease.host, len(lease.slabs), lease.slab_bytes)
        remaining_s = round(self._lender.leases.remaining_s(lease), 3)
        return LeaseShown(lease.lease_id, holding, self._lender.connections(lease), remaining_s)
