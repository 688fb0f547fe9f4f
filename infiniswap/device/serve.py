"""The device service: prepares, recovers, serves until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace

from infiniswap.device.adoption import Seats, seat
from infiniswap.device.config import DeviceConfig
from infiniswap.device.convert import settle
from infiniswap.device.daemon_client import DaemonClient, PeerError, make_session
from infiniswap.device.device import Device, control_timeout_s
from infiniswap.device.heartbeats import Heartbeats
from infiniswap.device.insist import insist_on_rdma
from infiniswap.device.lease_book import LeaseBook, RecordedLease
from infiniswap.device.limits import PEERS_MAX
from infiniswap.device.membership import slots_for
from infiniswap.device.reach import reach_of, settle_sealing
from infiniswap.device.recovery import Recovered, recover
from infiniswap.device.seals import plan_sealing
from infiniswap.device.settings import Settings
from infiniswap.device.startup import Prepared, create_seals, hold_name, look, prepare, take_up_seals
from infiniswap.device.state import StateDirectory
from infiniswap.device.verdict import Start
from infiniswap.device.web_view import DeviceView
from infiniswap.engine.binding import BACKUP_ENGINES, DeviceEngine, DeviceParameters
from infiniswap.identity.identity import Identity
from infiniswap.kernel_shim.protection import protect_service
from infiniswap.kernel_shim.real_time import raise_threads
from infiniswap.nbd.listener import HANDSHAKES_MAX, open_tcp_socket
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.descriptors import raise_limit
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.host_names import check_peers, known_addresses
from infiniswap.shared.http_server import CONNECTIONS_MAX
from infiniswap.shared.metrics_server import serve_metrics
from infiniswap.shared.notify import notify
from infiniswap.shared.output import announce
from infiniswap.shared.web_page import serve_page

log = logging.getLogger(__name__)

HEDGE_FLOOR_US = 1000  # a page-in that takes less is never asked of the backup, too: no disk would be much quicker
PREFETCH_FLOOR_US = 100  # a round trip to a peer from which guessing pays: loopback and RDMA are below it
DESCRIPTORS_PER_PEER = 11  # two for pages, a tether, and eight of control at most

EngineFactory = Callable[..., DeviceEngine]  # as DeviceEngine


def chosen_backup_engine(config: DeviceConfig) -> str:
    """How the backup is to be written; auto: the engine takes the best that works here."""
    if config.backup_engine == "auto" and config.lock_memory:
        # The loop of a device that serves swap must not wait for a disk request's memory: backup_threads.c.
        return "threads"
    return config.backup_engine


def engine_parameters(config: DeviceConfig, prepared: Prepared, peers: int) -> DeviceParameters:
    """The engine's view of the configuration; peers: slots for them, at least one."""
    engines = {name: number for number, name in BACKUP_ENGINES.items()}
    return DeviceParameters(
        size_bytes=config.size_bytes,
        slab_bytes=config.slab_bytes,
        pending_limit_bytes=config.pending_limit_bytes,
        backup_fd=prepared.backup.fileno(),
        state_fd=prepared.state.fileno(),
        backup_sparse=prepared.backup.sparse,
        backup_engine=engines.get(chosen_backup_engine(config), 0),
        backup_depth=config.backup_depth,
        writeback_delay_ms=config.writeback_delay_ms,
        connections_max=config.connections_max,
        peers_max=peers,
        peer_timeout_ms=config.peer_timeout_ms,
        peer_grace_ms=config.peer_grace_ms,
        request_deadline_ms=config.request_deadline_ms,
        hedge_floor_us=HEDGE_FLOOR_US,
        prefetch_floor_us=PREFETCH_FLOOR_US if config.prefetch == "auto" else 0,
        client_stall_timeout_ms=config.client_stall_timeout_ms,
        lock_memory=config.lock_memory,
        recovering=prepared.start is Start.RECOVER,
    )


def descriptors_wanted(config: DeviceConfig) -> int:
    """Open files for all connections at once: clients, those that negotiate, control, peers, and the rest."""
    return config.connections_max + HANDSHAKES_MAX + CONNECTIONS_MAX + DESCRIPTORS_PER_PEER * PEERS_MAX + 128


async def start_device(
    config: DeviceConfig,
    cleanup: AsyncExitStack,
    engine_factory: EngineFactory = DeviceEngine,
    clock: Clock = time.monotonic,
    settings: Settings | None = None,
) -> Device:
    """Prepare, recover where needed, start the engine and serve. cleanup undoes it all, in order, when it is closed.

    Raises UserError when the device may not or cannot start; nothing that was created for it is left then.
    """
    try:
        return await _start_device(config, cleanup, engine_factory, clock, settings)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"the device cannot start: {where}{error.strerror or error}", ExitCode.RESOURCES) from None


async def _start_device(
    config: DeviceConfig,
    cleanup: AsyncExitStack,
    engine_factory: EngineFactory,
    clock: Clock,
    settings: Settings | None,
) -> Device:
    insist_on_rdma(config)
    identity = await cleanup.enter_async_context(_identity(config))
    reach = await reach_of(config)
    raise_limit(descriptors_wanted(config))
    undo = cleanup.enter_context(ExitStack())
    locks = cleanup.enter_context(ExitStack())
    # The name first, because a running device of that name also holds the backup, the sockets and the state.
    hold_name(config, locks, undo)
    settle(StateDirectory(config.device_dir))
    by_default = config.encrypt is None and config.encrypt_key_file is None
    config, reach = settle_sealing(config, reach, StateDirectory(config.device_dir).read_header())
    found = look(config, locks)
    sealing = plan_sealing(config, found.directory.path, found.header, found.start, by_default=by_default)
    recovering = found.start is Start.RECOVER
    await check_peers(config.peers, recovering=recovering)
    metrics_socket, web_socket = _listen(config.metrics_listen, locks), _listen(config.web, locks)
    prepared = prepare(config, found, locks, undo)
    take_up_seals(sealing, prepared, locks)
    unserved = cleanup.enter_context(ExitStack())
    session = await cleanup.enter_async_context(make_session(local_only=reach.local_only))

    def client(address: HostPort) -> DaemonClient:
        return DaemonClient(
            session,
            address,
            device=config.name,
            device_id=prepared.state.device_id,
            size_bytes=config.size_bytes,
            slab_bytes=config.slab_bytes,
            timeout_s=control_timeout_s(config),
            clock=clock,
            identity=identity,
            local_only=reach.local_only,
        )

    beats = Heartbeats()
    cleanup.push_async_callback(beats.stop)
    recovered = Recovered()
    if recovering:
        log.warning("the device did not stop in order; recovering")
        seats = await _seat(config, prepared)
        await reach.check(entry.peer for entry in seats.entries)
        config = replace(config, peers=seats.peers)
        lost = sealing is not None and sealing.lost
        recovered = await _recover(config, prepared, [] if lost else list(seats.entries), client, beats, clock)
        await _give_back(seats.entries if lost else (), client)
    for adoption in recovered.adoptions:
        cleanup.callback(adoption.close)  # does nothing once the engine has them
    addresses = [adoption.entry.peer for adoption in recovered.adoptions]
    retired = [peer for peer in addresses if peer not in config.peers]
    if not recovering:
        unserved.callback(prepared.take_back)  # nothing is missing on the backup
    create_seals(sealing, prepared, config.size_bytes, locks)
    prepared.mark_in_use()
    engine = _start_engine(
        engine_parameters(config, prepared, slots_for(config, len(retired))), prepared, engine_factory
    )
    cleanup.callback(engine.close)
    if config.lock_memory and config.real_time and (refused := raise_threads()) is not None:
        log.warning("real-time scheduling was refused (%s); LimitRTPRIO=2 or 'ulimit -r 2' allows it", refused)
    if chosen_backup_engine(config) == "auto" and engine.backup_engine != "io_uring":
        log.warning("io_uring is not available here; the backup is written by %s", engine.backup_engine)
    device = Device(config, prepared, engine, client, retired, clock, settings)
    device.changes.membership.reach, device.changes.settings.sealed = reach, config.encrypt
    cleanup.push_async_callback(device.close)
    if identity is not None:
        identity.changed = device.peers.look_again
    device.listen()
    try:
        await device.adopt(recovered.adoptions)
    except (OSError, PeerError) as error:
        raise UserError(
            f"what is at the peers cannot be reached: {error}; start the device again", ExitCode.FAILED
        ) from None
    if not config.peers and not config.discovers:
        log.warning("no peers are configured: everything goes to the backup")
    await device.start()
    if metrics_socket is not None:
        await serve_metrics(device.exposition, metrics_socket, cleanup)
    if web_socket is not None:
        view = DeviceView(device.metrics, device.status, clock)
        await serve_page("device", view, web_socket, cleanup, config.web)
    await beats.stop()  # the peers' own tasks renew the leases from here on
    undo.pop_all()
    unserved.pop_all()
    return device


@asynccontextmanager
async def _identity(config: DeviceConfig) -> AsyncIterator[Identity | None]:
    """This host's certificate, kept up to date; None: control is in the clear. UserError: it is of no use."""
    if config.tls is None:
        yield None
        return
    identity = Identity(config.tls)
    watching = asyncio.create_task(identity.watch(), name="certificates")
    try:
        yield identity
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _give_back(entries: Iterable[RecordedLease], client: Callable[[HostPort], DaemonClient]) -> None:
    """Leases whose pages nothing opens any more; what cannot be reached lapses by itself."""

    async def give_back(entry: RecordedLease) -> None:
        with contextlib.suppress(PeerError):
            await client(entry.peer).release(entry.lease)

    await asyncio.gather(*map(give_back, entries))


def _start_engine(parameters: DeviceParameters, prepared: Prepared, engine_factory: EngineFactory) -> DeviceEngine:
    seals = prepared.seals
    sealed = None if seals is None else (seals.mapping, seals.key)
    try:
        return engine_factory(parameters, prepared.state.mapping, sealed, prepared.backup.log)
    except OSError as error:
        raise UserError(f"the data path cannot start: {error.strerror or error}", ExitCode.RESOURCES) from None
    finally:
        if seals is not None:
            seals.wipe_key()  # the engine has it


def _listen(address: HostPort | None, stack: ExitStack) -> socket.socket | None:
    """Where something is served beside the device, if it is asked for; UserError when that cannot be."""
    if address is None:
        return None
    sock = open_tcp_socket(*address)
    stack.callback(sock.close)
    return sock


async def _seat(config: DeviceConfig, prepared: Prepared) -> Seats:
    """Which of the peers named and of those on record the device goes on with."""
    entries = LeaseBook(prepared.directory.leases_path).read(prepared.state.device_id)
    strangers = [entry.peer for entry in entries if entry.peer not in config.peers]
    addresses = await known_addresses([*config.peers, *strangers]) if strangers else {}
    return seat(config.peers, entries, addresses)


async def _recover(
    config: DeviceConfig,
    prepared: Prepared,
    entries: list[RecordedLease],
    client: Callable[[HostPort], DaemonClient],
    beats: Heartbeats,
    clock: Clock,
) -> Recovered:
    return await recover(
        prepared.state,
        entries,
        slab_bytes=config.slab_bytes,
        client=client,
        timeout_s=config.recovery_timeout_s,
        connect_timeout_s=control_timeout_s(config),
        beats=beats,
        clock=clock,
        read_as=None if prepared.seals is None else prepared.seals.reader(prepared.state),
    )


async def serve(config: DeviceConfig, settings: Settings | None = None) -> int:
    """Serve the device until SIGTERM, SIGINT or a stop through its control socket; the exit code.

    Prints `ready URI` on stdout once clients can connect. A second signal changes nothing: a stop that takes long is
    writing what clients were told is safe.
    """
    if config.lock_memory:
        protect_service(log)
    loop = asyncio.get_running_loop()
    early = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, early.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the files are being read anyway
    async with AsyncExitStack() as cleanup:
        starting = asyncio.create_task(start_device(config, cleanup, settings=settings))
        waiting = asyncio.create_task(early.wait())
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            log.info("stopped before the device served")
            return ExitCode.OK
        device = starting.result()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, device.request_stop, f"got {signal.Signals(number).name}")
        await asyncio.sleep(0)  # a signal that the loop had taken for the old handler is told only now
        if early.is_set():
            device.request_stop("got a signal while starting")
        loop.add_signal_handler(signal.SIGHUP, device.changes.reload_or_say)
        announce(f"ready {device.prepared.uri}")
        notify("READY=1", f"STATUS=serving {device.prepared.uri}")
        await device.wait()
        code = await device.stop()
        # The event loop would give the signals back to the system, for which a second one ends us with another code.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return code
