"""The device service: puts the parts together, serves until it is told to stop, and stops without losing a page."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from random import Random
from typing import Any

from infiniswap.activity import Activity, Thresholds
from infiniswap.config import PEERS_MAX, DeviceConfig, HostPort
from infiniswap.control import ControlServer, EventHub
from infiniswap.daemon_client import DaemonClient, PeerError, make_session
from infiniswap.engine.binding import (
    BACKUP_ENGINES,
    PAGE_BYTES,
    DeviceEngine,
    DeviceParameters,
    Event,
    EventKind,
    histogram_floors_ns,
)
from infiniswap.errors import ExitCode, UserError
from infiniswap.kernel_shim.protection import ProtectionError, protect
from infiniswap.kernel_shim.reattach import keep_attached
from infiniswap.mapper import Mapper
from infiniswap.metrics import Metrics
from infiniswap.nbd.handshake import ExportInfo, Negotiated
from infiniswap.nbd.listener import NbdListener
from infiniswap.notify import notify
from infiniswap.peers import Peer, Peers
from infiniswap.placement import CoolDown
from infiniswap.rdma.initiator import Initiator
from infiniswap.rdma.path import Region
from infiniswap.recovery import Adoption, LeaseBook, Recovered, recover
from infiniswap.sizes import format_size
from infiniswap.startup import Prepared, hold_name, look, prepare, resolve_peers
from infiniswap.state import Start

log = logging.getLogger(__name__)

STOP_SLICE_MS = 100  # how long the loop stands still for the engine at once while it stops
STOP_PAUSE_S = 0.05
PROGRESS_INTERVAL_S = 1.0
COMPLAINT_INTERVAL_S = 10.0  # between log lines of one kind, however often it happens
CONTROL_TIMEOUT_MIN_S = 1.0
FIRST_LEASES_TIMEOUT_S = 2.0  # how long `ready` waits for peers, so that it usually means that they are there
EngineFactory = Callable[[DeviceParameters, Any], DeviceEngine]


class Complaints:
    """Lets one log line of a kind through every COMPLAINT_INTERVAL_S, and tells how many it held back."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._last_s: dict[EventKind, float] = {}
        self._held_back: dict[EventKind, int] = {}

    def say(self, kind: EventKind, message: str) -> None:
        """Log message as an error, unless one of its kind was logged just now."""
        now = time.monotonic()
        if now - self._last_s.get(kind, float("-inf")) < COMPLAINT_INTERVAL_S:
            self._held_back[kind] = self._held_back.get(kind, 0) + 1
            return
        more = self._held_back.pop(kind, 0)
        self._last_s[kind] = now
        log.error("%s%s", message, f" (and {more} more since)" if more else "")


class Device:
    """A device that serves. Build it with start_device()."""

    def __init__(
        self,
        config: DeviceConfig,
        prepared: Prepared,
        engine: DeviceEngine,
        client: Callable[[HostPort], DaemonClient],
        retired: list[HostPort],
    ) -> None:
        """Put together, with nothing started. retired: peers beyond the configured ones that still hold slabs."""
        self.config = config
        self.prepared = prepared
        self.engine = engine
        self.events = EventHub()
        self.book = LeaseBook(prepared.directory.leases_path)
        self._started_s = time.monotonic()
        self._stopping = asyncio.Event()
        self._complaints = Complaints()
        self._event_fd = engine.event_fd()
        self._backup_engine = engine.backup_engine
        self._connections = engine.counter_names.index("connections")
        rng = Random()
        self.rdma = None
        if config.transport != "tcp":
            self.rdma = Initiator(engine, config, drain_events=self.drain_events)
        cool_down = CoolDown(time.monotonic)
        configured = [Peer(slot, address, client(address)) for slot, address in enumerate(config.peers)]
        left = [Peer(len(configured) + i, peer, client(peer), retired=True) for i, peer in enumerate(retired)]
        self.peers = Peers(
            [*configured, *left],
            engine,
            cool_down=cool_down,
            drain_events=self.drain_events,
            changed=self.record_leases,
            lost=self._peer_lost,
            connect_timeout_s=control_timeout_s(config),
            rng=rng,
            rdma=self.rdma,
        )
        self.mapper = Mapper(
            engine,
            self.peers,
            Activity(engine.slabs["page_ins"] + engine.slabs["page_outs"]),
            policy=config.map_policy,
            thresholds=Thresholds(config.hot_page_ios, config.cold_page_ios),
            slab_bytes=config.slab_bytes,
            cool_down=cool_down,
            changed=self.record_leases,
            rng=rng,
        )
        self.metrics = Metrics(engine, self.peers, self.mapper, histogram_floors_ns())
        self._export = ExportInfo(config.name, config.size_bytes, description="infiniswap device")
        self.listener = NbdListener(
            prepared.nbd_sockets,
            lambda name: self._export if name in (config.name, "") else None,
            lambda: [config.name],
            self._connected,
            connections_max=config.connections_max,
            open_connections=lambda: int(engine.counters[self._connections]),
        )
        self.control = ControlServer(self)
        self._keeper: asyncio.Task[None] | None = None

    def status(self) -> dict[str, Any]:
        """The device in short, as GET /v1/status answers."""
        config, prepared = self.config, self.prepared
        return {
            "name": config.name,
            "pid": os.getpid(),
            "size_bytes": config.size_bytes,
            "slab_bytes": config.slab_bytes,
            "uri": prepared.uri,
            "socket": prepared.socket_path,
            "tcp": prepared.tcp,
            "backup": str(prepared.backup.path),
            "backup_engine": self._backup_engine,
            "state_dir": str(prepared.directory.path),
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "state": "stopping" if self._stopping.is_set() else "serving",
            "connections": int(self.engine.counters[self._connections]),
            "peers": len(self.peers.all),
            "mapped_slabs": self.metrics.mapped_slabs(),
            "slabs": config.slabs,
        }

    def request_stop(self, reason: str) -> None:
        """Begin an orderly stop; again and again changes nothing."""
        if self._stopping.is_set():
            pending = format_size(self.engine.counter("pending_pages") * PAGE_BYTES)
            log.warning("%s: stopping already, %s still on the way to the backup", reason, pending)
            return
        log.info("stopping: %s", reason)
        self._stopping.set()

    def record_leases(self) -> None:
        """Put leases and slabs on record. OSError when that fails."""
        self.book.write(self.prepared.state.device_id, self.peers)

    async def adopt(self, adoptions: list[Adoption]) -> None:
        """Give leases that outlived the last process, at most one a peer, and their slabs to the engine."""
        by_address = {peer.address: peer for peer in self.peers}
        taken: list[tuple[Peer, Adoption, dict[int, Region]]] = []
        for adoption in adoptions:
            peer = by_address[adoption.entry.peer]
            regions = await self.peers.attach(peer, adoption.entry.lease, adoption.sockets)
            peer.slabs = set(adoption.slabs)
            taken.append((peer, adoption, regions))
        self.record_leases()
        for peer, adoption, regions in taken:
            for slab in sorted(adoption.slabs):
                region = peer.key_to(slab, regions.get(slab))
                self.engine.map_slab(slab, peer.slot, adopt=True, region=region)
                self.mapper.adopted(slab)

    def listen(self) -> None:
        """Begin to hear the engine's news."""
        asyncio.get_running_loop().add_reader(self._event_fd, self.drain_events)
        if self.rdma is not None:
            self.rdma.start()

    async def close(self) -> None:
        """End all tasks and sockets, however far the start came. Writes nothing; stop() is the orderly way."""
        asyncio.get_running_loop().remove_reader(self._event_fd)
        await self._stop_keeping()
        await self.listener.close()
        await self.mapper.stop()
        await self.peers.stop()
        await self._stop_rdma()
        await self.control.close()

    async def start(self) -> None:
        """Serve."""
        self.peers.start()
        self.mapper.start()
        await self.peers.tried(FIRST_LEASES_TIMEOUT_S)
        await self.control.start(self.prepared.control_socket)
        await self.listener.start()
        socket_path = self.prepared.socket_path
        if socket_path is not None and os.geteuid() == 0:  # only root can give the kernel new connections
            self._keeper = asyncio.create_task(keep_attached(self.config.name, socket_path))

    async def _stop_rdma(self) -> None:
        if self.rdma is not None:
            await self.rdma.stop()

    async def _stop_keeping(self) -> None:
        """Before our own connections close, or the keeper would replace them."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    async def wait(self) -> None:
        """Until a stop is asked for."""
        await self._stopping.wait()

    async def stop(self) -> int:
        """Bring everything to the backup and give the leases back; the exit code.

        When not everything reaches the backup in time, the leases and the state stay as they are, so that a start on
        the same boot can recover what was not written.
        """
        notify("STOPPING=1")
        await self._stop_keeping()
        await self.listener.close()
        await self.mapper.stop()
        flushed = await self._flush()
        await self.peers.stop()
        await self._stop_rdma()
        asyncio.get_running_loop().remove_reader(self._event_fd)
        self.engine.close()
        if flushed:
            self.prepared.mark_clean()
            await self.peers.release_all()
            self.book.remove()
            log.info("stopped: everything is on backup %s", self.prepared.backup.path)
        await self.control.close()
        return ExitCode.OK if flushed else ExitCode.FAILED

    async def _flush(self) -> bool:
        """Stop the engine; heartbeats and the control socket go on meanwhile."""
        deadline_s = time.monotonic() + self.config.stop_timeout_s
        told_s = time.monotonic()
        while not self.engine.stop(STOP_SLICE_MS):
            now_s = time.monotonic()
            pending = format_size(self.engine.counter("pending_pages") * PAGE_BYTES)
            if now_s >= deadline_s:
                log.error(
                    "giving up: %s did not reach the backup within %g s; start the device again on this boot",
                    pending,
                    self.config.stop_timeout_s,
                )
                return False
            if now_s - told_s >= PROGRESS_INTERVAL_S:
                told_s = now_s
                log.info("stopping: %s still on the way to the backup", pending)
                notify(f"STATUS=writing {pending} to the backup", "EXTEND_TIMEOUT_USEC=30000000")
            await asyncio.sleep(STOP_PAUSE_S)
        return True

    def drain_events(self) -> None:
        """Handle all news of the engine."""
        for event in self.engine.events():
            try:
                self._handle(event)
            except Exception:
                log.exception("news %s of the data path could not be handled", event)

    def _handle(self, event: Event) -> None:
        if self.rdma is not None:
            self.rdma.handle(event)
        if event.kind == EventKind.PEER_LOST:
            self.peers.lose(self.peers.all[event.peer], f"page I/O failed: {os.strerror(event.value)}")
        elif event.kind == EventKind.MISMATCH:
            peer = self.peers.all[event.peer].address
            self._complaints.say(event.kind, f"peer {peer}: page {event.value} of slab {event.slab} came back changed")
        elif event.kind == EventKind.BACKUP_ERROR:
            reason = os.strerror(event.value)
            self._complaints.say(event.kind, f"the backup fails: {reason}; what is pending is tried again")
        elif event.kind == EventKind.OVERFLOW:
            log.info("news of the data path were dropped; reading its tables")
            self._reconcile_peers()
        self.mapper.handle(event)
        self.events.publish(event.kind.name.lower(), peer=event.peer, slab=event.slab, value=event.value)

    def _reconcile_peers(self) -> None:
        attached = self.engine.peers["attached"]
        for peer in self.peers:
            if peer.lease is not None and not attached[peer.slot]:
                self.peers.lose(peer, "page I/O failed")

    def _peer_lost(self, peer: Peer, slabs: set[int]) -> None:
        self.mapper.lost(peer, slabs)
        self.events.publish("lease_lost", peer=str(peer.address), slabs=len(slabs), reason=peer.last_error)

    def _connected(self, sock: socket.socket, negotiated: Negotiated) -> None:
        if self._stopping.is_set():
            sock.close()
            return
        self.engine.add_connection(sock, negotiated.flags, negotiated.early)


def control_timeout_s(config: DeviceConfig) -> float:
    """Deadline of one control request to a daemon."""
    return max(config.peer_timeout_ms / 1000, CONTROL_TIMEOUT_MIN_S)


def engine_parameters(config: DeviceConfig, prepared: Prepared, peers: int) -> DeviceParameters:
    """The engine's view of the configuration."""
    engines = {name: number for number, name in BACKUP_ENGINES.items()}
    return DeviceParameters(
        size_bytes=config.size_bytes,
        slab_bytes=config.slab_bytes,
        pending_limit_bytes=config.pending_limit_bytes,
        backup_fd=prepared.backup.fileno(),
        backup_sparse=prepared.backup.sparse,
        backup_engine=engines.get(config.backup_engine, 0),
        backup_depth=config.backup_depth,
        writeback_delay_ms=config.writeback_delay_ms,
        connections_max=config.connections_max,
        peers_max=max(peers, 1),
        peer_timeout_ms=config.peer_timeout_ms,
        client_stall_timeout_ms=config.client_stall_timeout_ms,
        lock_memory=config.lock_memory,
    )


async def start_device(
    config: DeviceConfig, cleanup: AsyncExitStack, engine_factory: EngineFactory = DeviceEngine
) -> Device:
    """Prepare, recover where needed, start the engine and serve. cleanup undoes it all, in order, when it is closed.

    Raises UserError when the device may not or cannot start; nothing that was created for it is left then.
    """
    undo = cleanup.enter_context(ExitStack())
    locks = cleanup.enter_context(ExitStack())
    # The name first, because a running device of that name also holds the backup, the sockets and the state.
    hold_name(config, locks, undo)
    found = look(config, locks)
    recovering = found.start is Start.RECOVER
    await resolve_peers(config.peers, must_resolve=not recovering)
    prepared = prepare(config, found, locks, undo)
    unserved = cleanup.enter_context(ExitStack())
    session = await cleanup.enter_async_context(make_session())

    def client(address: HostPort) -> DaemonClient:
        return DaemonClient(
            session,
            address,
            device=config.name,
            device_id=prepared.state.device_id,
            size_bytes=config.size_bytes,
            slab_bytes=config.slab_bytes,
            timeout_s=control_timeout_s(config),
        )

    recovered = await _recover(config, prepared, client) if recovering else Recovered()
    for adoption in recovered.adoptions:
        cleanup.callback(adoption.close)  # does nothing once the engine has them
    addresses = [adoption.entry.peer for adoption in recovered.adoptions]
    retired = [peer for peer in addresses if peer not in config.peers]
    prepared.mark_in_use()
    if not recovering:
        unserved.callback(prepared.mark_clean)  # nothing is missing on the backup
    try:
        parameters = engine_parameters(config, prepared, len(config.peers) + len(retired))
        engine = engine_factory(parameters, prepared.state.mapping)
    except OSError as error:
        raise UserError(f"the data path cannot start: {error.strerror or error}", ExitCode.RESOURCES) from None
    cleanup.callback(engine.close)
    if config.backup_engine == "auto" and engine.backup_engine != "io_uring":
        log.warning("io_uring is not available here; the backup is written by %s", engine.backup_engine)
    device = Device(config, prepared, engine, client, retired)
    cleanup.push_async_callback(device.close)
    device.listen()
    try:
        await device.adopt(recovered.adoptions)
    except (OSError, PeerError) as error:
        raise UserError(
            f"what is at the peers cannot be reached: {error}; start the device again", ExitCode.FAILED
        ) from None
    if not config.peers:
        log.warning("no peers are configured: everything goes to the backup")
    await device.start()
    undo.pop_all()
    unserved.pop_all()
    return device


async def _recover(config: DeviceConfig, prepared: Prepared, client: Callable[[HostPort], DaemonClient]) -> Recovered:
    log.warning("the device did not stop in order; recovering")
    entries = LeaseBook(prepared.directory.leases_path).read(prepared.state.device_id)
    left = [entry for entry in entries if entry.peer not in config.peers][: PEERS_MAX - len(config.peers)]
    entries = [entry for entry in entries if entry.peer in config.peers or entry in left]
    return await recover(
        prepared.state,
        entries,
        slab_bytes=config.slab_bytes,
        client=client,
        timeout_s=config.recovery_timeout_s,
        connect_timeout_s=control_timeout_s(config),
    )


def _protect() -> None:
    """Keep the rules of a process that serves swap, before there are threads."""
    try:
        for lacking in protect():
            log.warning("%s", lacking)
    except ProtectionError as error:
        raise UserError(f"--lock-memory: {error.strerror}", ExitCode.RESOURCES) from None


async def serve(config: DeviceConfig) -> int:
    """Serve the device until SIGTERM, SIGINT or a stop through its control socket; the exit code.

    Prints `ready URI` on stdout once clients can connect. A second signal changes nothing: a stop that takes long is
    writing what clients were told is safe.
    """
    if config.lock_memory:
        _protect()
    loop = asyncio.get_running_loop()
    early = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, early.set)
    async with AsyncExitStack() as cleanup:
        starting = asyncio.create_task(start_device(config, cleanup))
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
        if early.is_set():
            device.request_stop("got a signal while starting")
        sys.stdout.write(f"ready {device.prepared.uri}\n")
        sys.stdout.flush()
        notify("READY=1", f"STATUS=serving {device.prepared.uri}")
        await device.wait()
        return await device.stop()
