"""A device that serves: its parts put together, what they tell each other, and a stop that loses no page."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from random import Random
from typing import Any

from infiniswap.device.backup_health import BackupHealth
from infiniswap.device.changes import Changes
from infiniswap.device.config import DeviceConfig
from infiniswap.device.control_api import ControlServer
from infiniswap.device.daemon_client import DaemonClient
from infiniswap.device.events import EventHub
from infiniswap.device.eviction import Evictions
from infiniswap.device.exposition import Exposition
from infiniswap.device.lease_book import LeaseBook
from infiniswap.device.mapper import Mapper
from infiniswap.device.metrics import Metrics, unwritten_bytes
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.rdma_paths import Initiator
from infiniswap.device.recovery import Adoption
from infiniswap.device.scrub import Scrub
from infiniswap.device.settings import Settings
from infiniswap.device.slabs import Slabs
from infiniswap.device.startup import Prepared
from infiniswap.device.traces import Traces
from infiniswap.device.verdict import Start
from infiniswap.engine.binding import DeviceEngine, Event, EventKind, Invariant, histogram_floors_ns
from infiniswap.kernel_shim.watch import ConnectionWatch
from infiniswap.nbd.handshake import ExportInfo, Negotiated
from infiniswap.nbd.listener import NbdListener
from infiniswap.policy.activity import Thresholds
from infiniswap.policy.mapping import MappingPolicy
from infiniswap.policy.placement import CoolDown
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.errors import ExitCode
from infiniswap.shared.notify import notify
from infiniswap.shared.path_messages import Region
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)

STOP_SLICE_MS = 100  # how long the loop stands still for the engine at once while it stops
STOP_PAUSE_S = 0.05
ADOPTION_SHARE = 0.3  # of the shortest lease's life, for bringing RDMA paths up again after a restart
PROGRESS_INTERVAL_S = 1.0
CONTROL_TIMEOUT_MIN_S = 1.0
FIRST_LEASES_TIMEOUT_S = 2.0  # how long `ready` waits for peers, so that it usually means that they are there


class Device:
    """A device that serves. Build it with serve.start_device()."""

    def __init__(
        self,
        config: DeviceConfig,
        prepared: Prepared,
        engine: DeviceEngine,
        client: Callable[[HostPort], DaemonClient],
        retired: list[HostPort],
        clock: Clock,
        settings: Settings | None = None,
    ) -> None:
        """Put together, with nothing started. retired: peers beyond the configured ones that still hold slabs.

        settings: where the options were stated; None: not known.
        """
        self.config = config
        self.prepared = prepared
        self.engine = engine
        self.events = EventHub()
        self.book = LeaseBook(prepared.directory.leases_path)
        self._clock = clock
        self._started_s = clock()
        self._stopping = asyncio.Event()
        self._complaints = Complaints(log, clock)
        self._event_fd = engine.event_fd()
        self._backup_engine = engine.backup_engine
        self._connections = engine.counter_names.index("connections")
        rng = Random()
        self.rdma = None
        if config.transport != "tcp":
            self.rdma = Initiator(engine, config, clock=clock)
        cool_down = CoolDown(clock)
        self.slabs = Slabs(clock)
        configured = [Peer(slot, address, client(address), self.slabs) for slot, address in enumerate(config.peers)]
        left = [
            Peer(slot, address, client(address), self.slabs, retired=True)
            for slot, address in enumerate(retired, len(configured))
        ]
        policy = MappingPolicy(
            config.map_policy,
            Thresholds(config.hot_page_ios, config.cold_page_ios),
            engine.slabs["page_ins"],
            engine.slabs["page_outs"],
            slab_bytes=config.slab_bytes,
            held_for_s=self.slabs.held_for_s,
            cool_down=cool_down,
            rng=rng,
            clock=clock,
        )
        self.evictions = Evictions(engine, self.slabs, policy.activity.values, cool_down=cool_down, clock=clock)
        self.peers = Peers(
            [*configured, *left],
            self.slabs,
            engine,
            cool_down=cool_down,
            changed=self.book.write_leases,
            lost=self._peer_lost,
            connect_timeout_s=control_timeout_s(config),
            listener=self.evictions,
            rng=rng,
            clock=clock,
            rdma=self.rdma,
        )
        self.mapper = Mapper(
            engine,
            self.peers,
            self.slabs,
            policy,
            slab_bytes=config.slab_bytes,
            cool_down=cool_down,
            record=self.book,
        )
        self.evictions.moves = self.mapper.moves
        self.changes = Changes(
            self, settings or Settings.of(config), policy, client, folder=prepared.directory.path, clock=clock
        )
        self.metrics = Metrics(
            engine, self.peers, self.slabs, policy.activity, self.mapper.counts, histogram_floors_ns()
        )
        self.metrics.evictions = self.evictions.counts
        self.metrics.leaving = self.changes.membership.progress
        self.scrub = Scrub(engine, config.size_bytes, clock)
        self.traces = Traces(engine, config.trace_least_us, lambda: {it.slot: str(it.address) for it in self.peers})
        self.health = BackupHealth(engine, prepared.backup, clock=clock)
        self.stop_on_backup_error(config.on_backup_error == "stop")
        self._exposition = Exposition(config.name, config.size_bytes, self.metrics, self.health.numbers)
        self._export = ExportInfo(config.name, config.size_bytes, description="infiniswap device")
        self.listener = NbdListener(
            prepared.nbd_sockets,
            lambda name: self._export if name in (config.name, "") else None,
            lambda: [config.name],
            self._connected,
            connections_max=config.connections_max,
            open_connections=self.connections,
            protocol_errors=lambda: engine.counter("protocol_errors"),
        )
        self.control = ControlServer(self)
        self.watch: ConnectionWatch | None = None
        if prepared.socket_path is not None and os.geteuid() == 0:  # only root can give the kernel new connections
            self.watch = ConnectionWatch(
                config.name,
                prepared.socket_path,
                open_connections=self.connections,
                deadline_ms=lambda: self.status().get("request_deadline_ms"),
            )
            self.metrics.watch = self.watch
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
            **self.health.snapshot(),
            "state_dir": str(prepared.directory.path),
            "sealed": prepared.seals is not None,
            "transport": config.transport,
            "rdma_port": None if self.rdma is None else self.rdma.port,
            "request_deadline_ms": config.request_deadline_ms,
            "uptime_s": round(self._clock() - self._started_s, 3),
            "state": "stopping" if self._stopping.is_set() else "serving",
            "connections": self.connections(),
            "peers": len(list(self.peers)),
            "config_file": self.changes.settings.file,
            "mapped_slabs": self.metrics.mapped_slabs(),
            "slabs": config.slabs,
            **({} if self.watch is None else self.watch.facts()),
        }

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return self._exposition.text()

    @property
    def changing_engine(self) -> DeviceEngine:
        """See changes.Changed."""
        return self.engine

    def stop_on_backup_error(self, stop: bool) -> None:
        """What a failing backup leads to: a stop in order, or words alone."""
        self.health.failed = self.request_stop if stop else None

    def connections(self) -> int:
        """NBD connections that are open."""
        return int(self.engine.counters[self._connections])

    def request_stop(self, reason: str) -> None:
        """Begin an orderly stop; again and again changes nothing."""
        if self._stopping.is_set():
            pending = format_size(unwritten_bytes(self.engine))
            log.warning("%s: stopping already, %s still on the way to the backup", reason, pending)
            return
        clients = self.connections()
        if clients:
            log.warning("%d NBD connections are open: who uses them waits for the next start, or fails", clients)
        log.info("stopping: %s", reason)
        self._stopping.set()

    async def adopt(self, adoptions: list[Adoption]) -> None:
        """Give leases that outlived the last process, at most one a peer, and their slabs to the engine.

        A start must not take for ever: once RDMA paths have taken a good part of a lease's life, the rest is reached
        over TCP, which takes no time.
        """
        self.book.begin(self.prepared.state.device_id, self.config.slabs, self.peers)
        by_address = {peer.address: peer for peer in self.peers}
        ends_s = self._clock() + min((a.entry.lease.ttl_s for a in adoptions), default=0.0) * ADOPTION_SHARE
        taken: list[tuple[Peer, Adoption, dict[int, Region]]] = []
        for adoption in adoptions:
            peer = by_address[adoption.entry.peer]
            hurry = self._clock() >= ends_s
            regions = await self.peers.attachment.attach(peer, adoption.entry.lease, adoption.sockets, hurry=hurry)
            for slab in adoption.slabs:
                self.slabs.take(slab, peer.slot)
            self.book.keep(adoption.entry.lease, adoption.slabs)
            taken.append((peer, adoption, regions))
        for peer, adoption, regions in taken:
            if peer.lease is not adoption.entry.lease:
                continue  # lost while others were attached
            for slab in sorted(adoption.slabs):
                region = peer.key_to(slab, regions.get(slab))
                self.engine.map_slab(slab, peer.slot, adopt=True, region=region)
                self.slabs.take(slab, peer.slot)  # its time here counts from now on
        self.engine.end_adoption()
        try:
            self.book.write_leases()
        except OSError as error:
            # All that is adopted is there already; only the way to it may have changed.
            log.warning("the record of leases stays as it is: %s", error.strerror)

    def listen(self) -> None:
        """Begin to hear the engine's news."""
        asyncio.get_running_loop().add_reader(self._event_fd, self._drain_events)
        if self.rdma is not None:
            self.rdma.start()

    async def close(self) -> None:
        """End all tasks and sockets, however far the start came. Writes nothing; stop() is the orderly way."""
        asyncio.get_running_loop().remove_reader(self._event_fd)
        await self._stop_keeping()
        await self.listener.close()
        await self.mapper.stop()
        await self.changes.stop()
        await self.evictions.stop()
        await self.health.stop()
        await self.peers.stop()
        await self._stop_rdma()
        await self.control.close()
        self.book.close()

    async def start(self) -> None:
        """Serve."""
        self.peers.start()
        self.mapper.start()
        self.evictions.start()
        self.changes.start()
        self.health.start()
        await self.peers.tried(FIRST_LEASES_TIMEOUT_S)
        await self.control.start(self.prepared.control_socket)
        await self.listener.start()
        if self.watch is not None:
            self._keeper = asyncio.create_task(self.watch.run())

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
        await self.changes.stop()
        await self.evictions.stop()
        flushed = await self._flush()
        lost = self.engine.counter("unreadable_pages")
        # What was lost in an earlier life has been said at its end.
        told = not self.engine.counter("lost_pages") and self.prepared.start is not Start.RECOVER
        newly = 0 if told else lost
        doubtful, removed = self.engine.counter("doubtful_pages"), self.health.removed()
        await self.health.stop()
        await self.peers.stop()
        await self._stop_rdma()
        asyncio.get_running_loop().remove_reader(self._event_fd)
        self.engine.close()
        if flushed and not doubtful and not removed:
            flushed = self._mark_clean(lost, newly)
        if flushed:
            await self.peers.release_all()
            self.book.remove()
            if removed:
                log.error(
                    "stopped: %s written, but to a file that was removed: %s is not it",
                    f"all but {lost} lost pages was" if lost else "all was",
                    self.prepared.backup.path,
                )
            elif doubtful:
                log.error(
                    "stopped: whether %d pages are on the backup is not known: fdatasync failed%s",
                    doubtful,
                    f"; {lost} more are lost" if lost else "",
                )
            elif lost:
                log.error(
                    "stopped: %d pages are lost, their last copy went with a peer or a disk; they cannot be read until "
                    "they are written again; everything else is on backup %s",
                    lost,
                    self.prepared.backup.path,
                )
            else:
                log.info("stopped: everything is on backup %s", self.prepared.backup.path)
        await self.control.close()
        good = flushed and not newly and not doubtful and not removed and not self.health.failure
        return ExitCode.OK if good else ExitCode.FAILED

    def _mark_clean(self, lost: int, newly: int) -> bool:
        try:
            self.prepared.mark_clean(lost, newly)
        except OSError as error:
            log.error(
                "%s is on backup %s, but the state file cannot say so: %s; the next start takes it up as after a kill",
                f"all but {lost} lost pages" if lost else "everything",
                self.prepared.backup.path,
                error.strerror,
            )
            return False
        return True

    async def _flush(self) -> bool:
        """Stop the engine; heartbeats and the control socket go on meanwhile."""
        deadline_s = self._clock() + self.config.stop_timeout_s
        told_s = self._clock()
        while not self.engine.stop(STOP_SLICE_MS):
            now_s = self._clock()
            pending = format_size(unwritten_bytes(self.engine))
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

    def _drain_events(self) -> None:
        """Handle all news of the engine."""
        for event in self.engine.events():
            try:
                if not event.is_past(self.engine.peers):
                    self._handle(event)
            except Exception:
                log.exception("news %s of the data path could not be handled", event)
            self.events.publish(event.kind.name.lower(), peer=event.peer, slab=event.slab, value=event.value)

    def _handle(self, event: Event) -> None:
        if self.rdma is not None:
            self.rdma.handle(event)
        if event.kind == EventKind.PEER_LOST:
            self.peers.lose(self.peers.all[event.peer], f"page I/O failed: {os.strerror(event.value)}")
        elif event.kind == EventKind.PEER_HELD:
            self.peers.hold(self.peers.all[event.peer], f"page I/O failed: {os.strerror(event.value)}")
        elif event.kind == EventKind.MISMATCH:
            peer = self.peers.all[event.peer].address
            self._complaints.say(event.kind, f"peer {peer}: page {event.value} of slab {event.slab} came back changed")
        elif event.kind == EventKind.OVERFLOW:
            log.info("news of the data path were dropped; reading its tables")
            self._reconcile_peers()
        elif event.kind == EventKind.STATE_ERROR:
            it = f"the state file cannot be synced: {os.strerror(event.value)}"
            self._complaints.say(event.kind, f"{it}; after a power cut, pages that are lost may read as older versions")
        elif event.kind == EventKind.BROKEN:
            what = f"{Invariant(event.slab).name.lower()} at {event.value}"
            log.error("the data path's accounts contradict each other (%s); it goes on; please report this", what)
        self.mapper.handle(event)
        self.scrub.handle(event)
        self.health.handle(event)

    def _reconcile_peers(self) -> None:
        attached = self.engine.peers["attached"]
        for peer in self.peers:
            if peer.lease is not None and self.engine.peers["held"][peer.slot]:
                self.peers.hold(peer, "page I/O failed")
            elif peer.lease is not None and not attached[peer.slot]:
                self.peers.lose(peer, "page I/O failed")
            self.mapper.note_slow(peer, bool(self.engine.peers["slow"][peer.slot]))

    def _peer_lost(self, peer: Peer, slabs: frozenset[int]) -> None:
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
