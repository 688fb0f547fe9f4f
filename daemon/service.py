"""The running daemon: sockets, engine, API and the loops that keep time, put together and taken apart in order."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from random import Random

from infiniswap.daemon.amount import headroom_bytes_of, memory_to_lend
from infiniswap.daemon.api import ControlApi
from infiniswap.daemon.config import DaemonConfig
from infiniswap.daemon.control import Control
from infiniswap.daemon.draining import Draining
from infiniswap.daemon.evictor import GIVE_UP_S, Evictor
from infiniswap.daemon.fuses import wanted_fuses
from infiniswap.daemon.guard import Guard
from infiniswap.daemon.keeper import KEPT_NAMES, make_keeper
from infiniswap.daemon.leases import LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.metrics import DaemonMetrics
from infiniswap.daemon.monitor import HostReader, MemoryMonitor
from infiniswap.daemon.operator_api import OperatorApi
from infiniswap.daemon.own_process import ask_to_be_spared, lock_own_memory, unlock_memory
from infiniswap.daemon.page_door import PageEngine, export_info, hand_over
from infiniswap.daemon.page_slots import CONNECTIONS_MAX, LEASES_MAX
from infiniswap.daemon.pool import PoolKeeper
from infiniswap.daemon.ports import Ports
from infiniswap.daemon.rdma import RdmaHost
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.record import LeaseRecord
from infiniswap.daemon.reload import Settings
from infiniswap.daemon.restart import KeptMemory, take_up
from infiniswap.daemon.slab_keys import SlabKeys
from infiniswap.daemon.stopping import StopSignals, drain_before_stop, until_stop
from infiniswap.daemon.streams import Streams
from infiniswap.daemon.tickets import Tickets
from infiniswap.daemon.web_view import DonorView
from infiniswap.engine.memory_binding import MemoryEngine
from infiniswap.identity.identity import WATCH_INTERVAL_S
from infiniswap.nbd.listener import NbdListener, open_tcp_socket
from infiniswap.policy.headroom import HostMemory
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.descriptors import raise_limit
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.http_server import CONNECTIONS_MAX as HTTP_CONNECTIONS_MAX
from infiniswap.shared.metrics_server import serve_metrics
from infiniswap.shared.notify import is_managed, notify
from infiniswap.shared.operator_messages import DonorState
from infiniswap.shared.output import announce
from infiniswap.shared.passed import Passed, passed_descriptors
from infiniswap.shared.sizes import format_size
from infiniswap.shared.web_page import serve_page

log = logging.getLogger(__name__)

HANDSHAKES_MAX = 256
EXPIRY_INTERVAL_S = 0.5
RDMA_INTERVAL_S = 0.5  # between looks at the RDMA device: whoever removes it waits so long
RESTORE_TIMEOUT_S = 300  # that systemd waits at least for a start that takes memory up
STALL_S = 1.0  # a loop that is so much late stood still, and leases must not pay for it
STALL_WORTH_TELLING_S = 5.0
_DESCRIPTORS = CONNECTIONS_MAX + HTTP_CONNECTIONS_MAX + HANDSHAKES_MAX + 256


def start_engine(config: DaemonConfig) -> PageEngine:
    """The C engine with the daemon's limits; UserError when it cannot start."""
    try:
        return MemoryEngine(config.threads, exports_max=LEASES_MAX, connections_max=CONNECTIONS_MAX)
    except OSError as error:
        raise UserError(f"the data path does not start: {error.strerror}", ExitCode.RESOURCES) from error


def find_rdma(config: DaemonConfig) -> RdmaHost:
    """RDMA of this host as the options ask for it; nothing is opened yet."""
    host = config.listen.host.partition("%")[0]
    local = None
    with contextlib.suppress(ValueError):  # a name: which address it has is seen when a device asks
        local = ipaddress.ip_address(host)
    return RdmaHost(config.rdma_options, local=None if local is None or local.is_unspecified else local)


class MemoryService:
    """One memory daemon. start() once, then close() once."""

    def __init__(
        self,
        config: DaemonConfig,
        *,
        engine: Callable[[DaemonConfig], PageEngine] = start_engine,
        clock: Clock = time.monotonic,
        read_host: Callable[[], HostMemory] | None = None,
        rdma: Callable[[DaemonConfig], RdmaHost] = find_rdma,
        passed: Sequence[Passed] = (),
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """engine, clock, read_host and rdma stand in for the world in tests.

        give_up_s: that devices have from notice to force.
        passed: what a service manager handed over: sockets for page I/O, and memory from before.
        """
        self._config = config
        self._make_engine = engine
        self._clock = clock
        self._reader = HostReader()
        self._read_host = read_host or self._reader
        self._percpu_bytes = self._reader.percpu_bytes if read_host is None else None
        self._find_rdma = rdma
        self._give_up_s = give_up_s
        self._stack = AsyncExitStack()
        self._lender: Lender | None = None
        self._record: LeaseRecord | None = None
        self._draining: Draining | None = None
        self._evictor: Evictor | None = None
        self._control: Control | None = None
        self._tick_s = clock()
        kept = [it for it in passed if it.name in KEPT_NAMES]
        sockets = [it for it in passed if it.name not in KEPT_NAMES]
        # What is with a holder for longer than its leases live is nobody's.
        linger_s = config.lease_ttl_s + config.grace_s
        self._keeper = make_keeper(config.keep_memory, passed=kept, managed=is_managed(), linger_s=linger_s)
        self._ports = Ports(config.listen, config.data_listen, sockets)

    async def start(self) -> None:
        """Take the memory and serve; UserError says why that cannot be, and nothing is left behind then."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    @property
    def draining(self) -> Draining:
        """Whether and how long it still lends; once it is started."""
        assert self._draining is not None
        return self._draining

    async def close(self) -> None:
        """End everything in order: no new clients, then the data path, then the memory.

        Where memory is kept, the leases and their pages wait for the next start, unless forget_memory() was called.
        """
        await self._stack.aclose()

    @property
    def http_address(self) -> HostPort:
        """Of the control API."""
        return self._ports.http_address

    def adjust(self, config: DaemonConfig) -> None:
        """Lend by memory, headroom and quota of config from now on; UserError: that cannot be, and nothing changes."""
        lender = self._lender
        assert lender is not None
        host = self._read_host()
        limit_bytes = memory_to_lend(config, host)
        if limit_bytes > lender.arena.total_bytes:
            most = format_size(lender.arena.total_bytes)
            raise UserError(f"--memory {config.memory} is more than the {most} of this start: that needs a restart")
        lender.limit_bytes = limit_bytes
        lender.lease_bytes_max = config.lease_bytes_max
        lender.quotas.rules = config.quotas
        if lender.monitor is not None:
            lender.monitor.keep_free(headroom_bytes_of(config, host.total_bytes))
        self._config = config
        if self._control is not None:
            self._control.adjust(config)
        if self._evictor is not None and lender.shortage_bytes() > 0:
            self._evictor.wake()
        lender.changed.set()

    async def keeps_memory(self) -> bool:
        """Whether an end of this process now is not the end of its leases. Takes some seconds where systemd is slow."""
        return await asyncio.to_thread(self._keeper.lasts)

    def forget_memory(self) -> None:
        """Nothing is to be kept beyond this process: it has been drained."""
        self._keeper.forget()

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self._config
        self._control = control = Control(config, self._ports.beyond_loopback())
        stack.callback(self._reader.close)
        host = self._read_host()
        raise_limit(_DESCRIPTORS)
        memory = KeptMemory(self._keeper, huge_pages=config.huge_pages, leases_max=LEASES_MAX)
        stack.callback(memory.close)
        stack.callback(self._keeper.leave)
        await asyncio.to_thread(memory.find, config.memory.size_bytes)
        http_socket, data_sockets = self._open_sockets(memory)
        for sock in (http_socket, *data_sockets):
            stack.callback(sock.close)
        metrics_socket = open_metrics(config)
        if metrics_socket is not None:
            stack.callback(metrics_socket.close)
        web_socket = None if config.web is None else open_tcp_socket(*config.web)
        if web_socket is not None:
            stack.callback(web_socket.close)
        # Of huge pages, what is kept is not free any more to be reckoned with.
        arena = memory.open_arena(memory_to_lend(config, host) if memory.restored is None else 0)
        stack.callback(arena.close)
        keys = SlabKeys(arena, self._find_rdma(config), clock=self._clock)
        keys.host.start()
        stack.callback(keys.close)
        engine = self._make_engine(config)
        stack.callback(engine.close)
        leases = LeaseTable(self._clock, ttl_s=config.lease_ttl_s, grace_s=config.grace_s, leases_max=LEASES_MAX)
        monitor = None
        if not arena.huge_pages:  # those are reserved, and MemAvailable does not count them any more
            free_bytes = headroom_bytes_of(config, host.total_bytes)
            monitor = MemoryMonitor(
                self._read_host, arena.occupied_bytes, headroom_bytes=free_bytes, percpu_bytes=self._percpu_bytes
            )
        lender = Lender(
            arena=arena,
            leases=leases,
            engine=engine,
            monitor=monitor,
            keys=keys,
            record=memory.record,
            incarnation=memory.incarnation,
            lease_bytes_max=config.lease_bytes_max,
        )
        lender.quotas.rules = config.quotas
        self._lender = lender
        stack.push_async_callback(lender.close)
        stack.callback(keys.disconnect_all)
        if memory.restored is not None:
            notify(f"EXTEND_TIMEOUT_USEC={RESTORE_TIMEOUT_S * 1_000_000}", "STATUS=taking up the memory kept")
            await take_up(lender, memory.restored.leases)
            slabs = sum(len(lease.slabs) for lease in leases.leases())
            log.info("restarted with the memory kept: %d leases with %d slabs live on", len(leases), slabs)
            if memory.restored.cordoned:
                lender.lending = False
                log.warning("cordoned since before the restart: nothing new is lent until 'infiniswap donor uncordon'")
        self._record = memory.record

        streams = Streams(lender, self._clock)
        evictor = Evictor(lender, streams, clock=self._clock, rng=Random(), give_up_s=self._give_up_s)
        stack.push_async_callback(evictor.close)
        evictor.start()
        self._evictor = evictor

        complaints = Complaints(log, self._clock)
        tickets = Tickets(self._clock, leases.is_live)
        listener = NbdListener(
            data_sockets,
            lambda name: export_info(leases, tickets, name, secured=control.secured),
            list,
            lambda sock, negotiated: hand_over(lender, engine, complaints, sock, negotiated),
            connections_max=CONNECTIONS_MAX,
            open_connections=lambda: engine.counter("connections"),
            handshakes_max=HANDSHAKES_MAX,
            protocol_errors=lambda: engine.counter("protocol_errors"),
        )
        stack.push_async_callback(listener.close)
        await listener.start()
        memory.keep(arena, http_port=self.http_address.port, data_port=self._ports.data_address.port)
        guard = None
        if monitor is not None:
            guard = Guard(lender, monitor, evictor, clock=self._clock, fuses=wanted_fuses(config.fuses))
            stack.push_async_callback(guard.close)
            await guard.start()
        paths = RdmaPaths(lender)
        pools = PoolKeeper(paths)
        stack.push_async_callback(pools.close)
        pools.start()
        _keep(stack, RDMA_INTERVAL_S, paths.watch)
        self._tick_s = self._clock()
        _keep(stack, EXPIRY_INTERVAL_S, self.expire)
        metrics = DaemonMetrics(
            lender, guard, lambda: {name: engine.counter(name) for name in engine.counter_names}, self._clock
        )
        metrics.page_doors = lambda: {
            "pages_refused": listener.refused_total,
            "pages_failed": listener.failed_total,
            "pages_gave_way": listener.gave_way_total,
            "pages_flooded": listener.flooded_total,
        }
        self._draining = Draining(lender, evictor, streams, self._clock)
        stack.push_async_callback(self._draining.close)
        api = ControlApi(lender, paths, streams, metrics, self._ports.data_address_for, self._clock, tickets)
        if config.lock_memory and lock_own_memory([(arena.address, arena.total_bytes)]):
            stack.callback(unlock_memory)
        operators = OperatorApi(lender, self._draining, self._clock, config.operators)
        server = control.open(lambda gate: api.application(operators.routes(), gate), http_socket)
        api.vouch = server.vouch
        metrics.doors = lambda: server.connections.counts
        metrics.refused = control.counts
        stack.push_async_callback(server.close)
        _keep(stack, WATCH_INTERVAL_S, control.watch)
        stack.callback(streams.close)  # else the server would wait for them
        await server.start()
        if metrics_socket is not None:
            await serve_metrics(metrics.exposition, metrics_socket, stack)
        if web_socket is not None:
            view = DonorView(lender, metrics, self._draining, self._clock)
            await serve_page("donor", view, web_socket, stack, config.web)
        offer = lender.offer()
        log.info("lending %s of memory, %s now", format_size(arena.total_bytes), format_size(offer.free_bytes))
        if offer.total_bytes < arena.total_bytes:
            # A share of all memory is a limit, and nobody expected that much to be free.
            log.log(
                logging.INFO if config.memory.size_bytes is None else logging.WARNING,
                "this host can spare only %s of the %s now, to keep its headroom",
                format_size(offer.total_bytes),
                format_size(arena.total_bytes),
            )

    def _open_sockets(self, memory: KeptMemory) -> tuple[socket.socket, list[socket.socket]]:
        """Control and pages. Ports that are left to chance are those of before, which the leases' devices know."""
        before = memory.restored
        if before is None:
            return self._ports.open()
        try:
            return self._ports.open(before.http_port, before.data_port)
        except UserError as error:
            if not self._ports.left_to_chance:
                raise
            log.warning("the memory kept has a port that is taken: starting without it (%s)", error)
            memory.drop()
            return self._ports.open()

    async def expire(self) -> None:
        """End the leases whose time is over; called every EXPIRY_INTERVAL_S, and leases are forgiven when it is not."""
        if self._lender is None:
            return
        now = self._clock()
        if self._record is not None:
            self._record.tick(now, self._lender.leases.leases())
        late_s = now - self._tick_s - EXPIRY_INTERVAL_S
        self._tick_s = now
        if late_s > STALL_S:
            level = logging.WARNING if late_s > STALL_WORTH_TELLING_S else logging.INFO
            log.log(level, "the daemon stood still for %.1f s; leases get that much longer", late_s)
            self._lender.leases.forgive(late_s)
        if self._control is None or not self._control.secured:  # a host that was revoked must not keep what it holds
            self._lender.hear_pages()
        await self._lender.expire()


def open_metrics(config: DaemonConfig) -> socket.socket | None:
    """Where Prometheus comes, if it is asked for; UserError when that cannot be."""
    return None if config.metrics_listen is None else open_tcp_socket(*config.metrics_listen)


def _keep(stack: AsyncExitStack, interval_s: float, step: Callable[[], Awaitable[None]]) -> None:
    """Take a step every interval_s until the stack unwinds; a step that fails is logged and the next one comes."""
    complaints = Complaints(log)

    async def loop() -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await step()
            except OSError as error:
                complaints.say(error.errno, f"a periodic task failed; it goes on: {error}")
            except Exception:
                log.exception("a periodic task failed; it goes on")

    task = asyncio.create_task(loop())

    async def end() -> None:
        task.cancel()
        await asyncio.wait([task])

    stack.push_async_callback(end)


async def serve(config: DaemonConfig, settings: Settings) -> int:
    """Run until a signal or a drain that was to end so; prints the ready line. Returns the exit code.

    settings: where config comes from, for SIGHUP.
    """
    signals = StopSignals()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the files are being read anyway
    ask_to_be_spared()
    service = MemoryService(config, passed=passed_descriptors())
    await service.start()
    try:
        loop.add_signal_handler(signal.SIGHUP, settings.reload, service)
        url = f"{'http' if settings.config.tls is None else 'https'}://{service.http_address}"
        announce(f"ready {url}")
        notify("READY=1", f"STATUS=lending at {url}")
        await until_stop(signals, service.draining)
        kept = await service.keeps_memory()
        if not kept:  # else all of it waits for the next start, which goes on lending it
            await drain_before_stop(service.draining, signals, settings.config.stop_timeout_s)
        if service.draining.state is DonorState.DRAINED:
            service.forget_memory()
            kept = False
        waits = "; the leases wait for the next start" if kept else ""
        log.info("stopping%s", waits)
        notify("STOPPING=1", f"STATUS=stopping{waits}")
    finally:
        await service.close()
    return ExitCode.OK
