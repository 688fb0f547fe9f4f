"""The device's end of its RDMA paths: which port is used, bringing a path up, noticing when the port is gone.

The engine moves the pages (peer_rdma.c); here is decided with whom and from which address. Nothing of this is needed
for TCP: whatever fails leaves a reason, and the peer is reached over TCP instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from infiniswap.device.config import DeviceConfig
from infiniswap.device.daemon_client import (
    HeldLease,
    LeaseGoneError,
    PeerError,
    RefusedError,
)
from infiniswap.engine.binding import Event, EventKind
from infiniswap.engine.rdma_values import RdmaConnection, RdmaPort
from infiniswap.rdma.devices import Gid, Port, device_names, is_soft, list_ports
from infiniswap.rdma.path import (
    HOP_LIMIT,
    READS_MAX,
    RETRIES,
    RNR_RETRIES,
    RNR_TIMER,
    SOFT_RETRIES,
    Address,
    RdmaUnavailableError,
    ack_timeout,
    choose_gid,
    choose_port,
    needs_global_route,
    show_gid,
)
from infiniswap.shared.clock import Clock
from infiniswap.shared.messages import OpenedPath
from infiniswap.shared.path_messages import PathEnd, QueuePair, Region

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 1.0
RESOLVE_TIMEOUT_S = 3.0
ROUND_TRIPS_MEASURED = 3  # of which the quickest counts: the others waited for a busy host
READY_GRACE_S = 2.0  # beyond the engine's own deadline for a probe, which is the peer time-out
FAILURES_MAX = 4  # in a row, after which a peer is not taken from TCP any more
STABLE_S = 60.0  # a path that lived so long was a good one
PAUSE_MIN_S, PAUSE_MAX_S = 15.0, 600.0  # on TCP, after a path could not be made, or was lost soon and twice


class RdmaEngine(Protocol):
    """What is needed of the data path (binding.DeviceEngine)."""

    def rdma_open(self, name: str, port: int, poll_us: int) -> RdmaPort:
        """See DeviceEngine.rdma_open."""

    def rdma_close(self) -> None:
        """See DeviceEngine.rdma_close."""

    def rdma_prepare(self, peer: int) -> tuple[int, ...]:
        """See DeviceEngine.rdma_prepare."""

    def rdma_connect(self, peer: int, connection: RdmaConnection) -> None:
        """See DeviceEngine.rdma_connect."""

    def attach_peer_rdma(self, peer: int) -> None:
        """See DeviceEngine.attach_peer_rdma."""

    def detach_peer(self, peer: int) -> None:
        """See DeviceEngine.detach_peer."""


class RdmaClient(Protocol):
    """What is needed of a daemon's control API (daemon_client.DaemonClient)."""

    async def open_rdma(self, lease: HeldLease, end: PathEnd) -> OpenedPath:
        """See DaemonClient.open_rdma."""

    async def close_rdma(self, lease: HeldLease) -> None:
        """See DaemonClient.close_rdma."""


@dataclass(frozen=True, slots=True)
class RdmaPath:
    """A path that carries pages; regions are the slabs that the lease held when it was made."""

    port: str
    gid: str
    gid_index: int
    remote_port: str
    remote_gid: str
    mtu_bytes: int
    regions: dict[int, Region] = field(repr=False)

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.port} {self.gid} [{self.gid_index}] to {self.remote_port} {self.remote_gid}, MTU {self.mtu_bytes}"
        )


@dataclass(slots=True)
class _Trial:
    """Of a path that was just attached."""

    told: asyncio.Event = field(default_factory=asyncio.Event)
    good: bool = False


@dataclass(slots=True)
class _History:
    """Of one peer's paths: when TCP is the better choice for a while."""

    opened_s: float = float("-inf")
    failures: int = 0  # since a path was stable
    paused_until_s: float = float("-inf")

    def failed(self, now_s: float) -> None:
        """Another failure: the pause after it is twice as long as the one before."""
        self.paused_until_s = now_s + min(PAUSE_MIN_S * 2 ** min(self.failures, 16), PAUSE_MAX_S)
        self.failures += 1


class Initiator:
    """All RDMA paths of one device. stop() must be awaited before the engine is closed."""

    def __init__(
        self,
        engine: RdmaEngine,
        config: DeviceConfig,
        *,
        clock: Clock,
        root: Path = Path("/"),
    ) -> None:
        """root: of /sys."""
        self._engine = engine
        self._config = config
        self._root = root
        self._clock = clock
        self._port: Port | None = None
        self._opened: RdmaPort | None = None
        self._lock = asyncio.Lock()  # one path is brought up at a time, and none while the port is closed
        self._trials: dict[int, _Trial] = {}
        self._history: dict[int, _History] = {}
        self._thread: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def required(self) -> bool:
        """Whether TCP is ruled out."""
        return self._config.transport == "rdma"

    @property
    def port(self) -> str | None:
        """The port in use, DEVICE/NUMBER."""
        return None if self._port is None else str(self._port)

    def start(self) -> None:
        """Begin to watch the port."""
        self._spawn(self._watch())

    async def stop(self) -> None:
        """End all work, also what a thread still does for us; paths go on until the engine is closed."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._thread is not None:
            await asyncio.wait({self._thread})

    def handle(self, event: Event) -> None:
        """News of the engine."""
        if event.kind is EventKind.RDMA_LOST:
            log.warning("RDMA port %s is of no more use", self.port)
            self._spawn(self._close())
        trial = self._trials.get(event.peer)
        if trial is None or event.kind not in (EventKind.PEER_READY, EventKind.PEER_LOST):
            return
        # A path may be ready and lost again before anybody has looked.
        trial.good = event.kind is EventKind.PEER_READY
        trial.told.set()

    def lost(self, slot: int) -> None:
        """A path that carried pages is lost; one that is lost soon for the second time is left alone for a while."""
        history = self._history.setdefault(slot, _History())
        now_s = self._clock()
        if now_s - history.opened_s >= STABLE_S:
            history.failures = 0
        if history.failures == 0:
            history.failures = 1  # the next try comes at once: most paths are lost with their peer
        else:
            history.failed(now_s)

    def forget(self, slot: int) -> None:
        """Another peer has that slot now."""
        self._history.pop(slot, None)

    def promising(self, slot: int) -> bool:
        """Whether a path might be made now, for a peer that is reached over TCP.

        Trying costs the peer's slabs, so one that has failed FAILURES_MAX times is left alone until a port comes.
        """
        history = self._history.setdefault(slot, _History())
        if history.failures >= FAILURES_MAX or self._clock() < history.paused_until_s:
            return False
        try:
            choose_port(list_ports(self._root), device=self._config.rdma_device, number=self._config.rdma_port)
        except RdmaUnavailableError:
            return False
        return True

    async def connect(self, slot: int, client: RdmaClient, lease: HeldLease) -> RdmaPath:
        """A path to the lease's daemon, attached to the engine and tried. PeerError says why there is none."""
        if not lease.rdma:
            raise PeerError(f"the peer offers no RDMA{f': {lease.no_rdma}' if lease.no_rdma else ''}")
        history = self._history.setdefault(slot, _History())
        if not self.required and self._clock() < history.paused_until_s:
            raise PeerError("its RDMA path failed again and again; RDMA rests for a while")
        async with self._lock:
            try:
                path = await self._connect(slot, client, lease)
            except LeaseGoneError:
                raise  # says nothing of RDMA
            except (RdmaUnavailableError, PeerError) as error:
                history.failed(self._clock())
                raise PeerError(str(error)) from None
        history.opened_s = self._clock()
        return path

    async def _connect(self, slot: int, client: RdmaClient, lease: HeldLease) -> RdmaPath:
        local = await local_address(lease.address)
        port, opened = await self._open(local)
        refused: PeerError | None = None
        for gid in self._gids(port, local):
            try:
                numbers = self._engine.rdma_prepare(slot)
            except OSError as error:
                self._doubt(error)
                raise PeerError(f"no RDMA queue pair can be made: {error.strerror}") from None
            pairs = tuple(QueuePair(number, secrets.randbits(24)) for number in numbers)
            reads_max = min(READS_MAX, opened.reads_max)
            own = PathEnd(port.link_layer, gid.address, opened.lid, opened.mtu_bytes, reads_max, pairs)
            try:
                remote = await client.open_rdma(lease, own)
            except RefusedError as error:  # it may have no address of this family, and one of the other
                refused = error
                continue
            except PeerError:
                with contextlib.suppress(PeerError):  # it may have made its end, or be about to
                    await client.close_rdma(lease)
                raise
            try:
                trip_ms = await round_trip_ms(lease.address, self._clock)
                return await self._bring_up(slot, port, gid, own, remote, trip_ms)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._engine.detach_peer(slot)
                with contextlib.suppress(PeerError):
                    await client.close_rdma(lease)
                raise
        raise refused or PeerError(f"RDMA port {port} has no GID")

    def _gids(self, port: Port, local: Address | None) -> list[Gid]:
        """GIDs to try, the best one first, then the best of the other address family."""
        first = choose_gid(port, index=self._config.rdma_gid_index, local=local)
        if self._config.rdma_gid_index is not None:
            return [first]
        others = [gid for gid in port.gids if (gid.address.ipv4_mapped is None) != (first.address.ipv4_mapped is None)]
        if not others:
            return [first]
        return [first, choose_gid(port, local=local, remote=others[0].address)]

    async def _bring_up(
        self, slot: int, port: Port, gid: Gid, own: PathEnd, remote: OpenedPath, trip_ms: float | None
    ) -> RdmaPath:
        end = remote.end
        soft = is_soft(port.device, self._root)
        if end.link_layer is not port.link_layer:
            raise PeerError(f"it is on {end.link_layer}, our RDMA port on {port.link_layer}")
        mtu_bytes = min(own.mtu_bytes, end.mtu_bytes)
        connection = RdmaConnection(
            gid=end.gid.packed,
            gid_index=gid.index,
            global_route=needs_global_route(port.link_layer, gid.address, end.gid),
            lid=end.lid,
            mtu_bytes=mtu_bytes,
            reads_max=min(own.reads_max, end.reads_max),
            ack_timeout=ack_timeout(self._config.peer_timeout_ms, trip_ms, soft=soft),
            retries=SOFT_RETRIES if soft else RETRIES,
            rnr_timer=RNR_TIMER,
            rnr_retries=RNR_RETRIES,
            hop_limit=HOP_LIMIT,
            number=tuple(pair.number for pair in end.queue_pairs),
            psn=tuple(pair.psn for pair in end.queue_pairs),
            own_psn=tuple(pair.psn for pair in own.queue_pairs),
            probe_address=remote.probe.address,
            probe_rkey=remote.probe.rkey,
        )
        try:
            await self._in_thread(self._engine.rdma_connect, slot, connection)
            await self._attach(slot)
        except OSError as error:
            self._doubt(error)
            raise PeerError(f"the RDMA path cannot be made: {error.strerror}") from None
        path = RdmaPath(
            str(port), show_gid(gid.address), gid.index, remote.port, show_gid(end.gid), mtu_bytes, remote.regions
        )
        log.info("peer slot %d: RDMA path %s", slot, path)
        return path

    async def _attach(self, slot: int) -> None:
        """Until a page has passed both ways."""
        trial = self._trials[slot] = _Trial()
        try:
            self._engine.attach_peer_rdma(slot)
            async with asyncio.timeout(self._config.peer_timeout_ms / 1000 + READY_GRACE_S):
                await trial.told.wait()
        except TimeoutError:
            raise PeerError("no page comes through its RDMA path in time") from None
        finally:
            del self._trials[slot]
        if not trial.good:
            raise PeerError("no page comes through its RDMA path")

    # ---- the port ----

    def _doubt(self, error: OSError) -> None:
        """A port that has failed answers ENODEV until it is closed; the news of its failure may have been dropped."""
        if error.errno == errno.ENODEV:
            self._spawn(self._close())

    async def _open(self, local: Address | None) -> tuple[Port, RdmaPort]:
        config = self._config
        ports = list_ports(self._root)
        if self._port is not None and self._opened is not None:
            # Read anew: addresses come and go, and with them GIDs.
            mine = [port for port in ports if str(port) == str(self._port)]
            return choose_port(mine), self._opened
        port = choose_port(ports, device=config.rdma_device, number=config.rdma_port, local=local)
        try:
            self._opened = await self._in_thread(self._engine.rdma_open, port.device, port.number, config.rdma_poll_us)
        except OSError as error:
            raise RdmaUnavailableError(error.strerror or str(error)) from None
        self._port = port
        log.info("RDMA port %s is open, MTU %d", port, self._opened.mtu_bytes)
        return port, self._opened

    async def _close(self) -> None:
        async with self._lock:
            if self._port is None:
                return
            self._port = self._opened = None
            with contextlib.suppress(OSError):
                self._engine.rdma_close()
            for history in self._history.values():
                history.failures = 0  # the next port is another

    async def _watch(self) -> None:
        """A device that is being removed waits for us to let it go, without telling us."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            port = self._port
            if port is not None and port.device not in device_names(self._root):
                log.warning("RDMA device %s is being removed; its peers are reached over TCP", port.device)
                await self._close()

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The engine is not closed before the thread has ended (stop()); the lock keeps it to one."""
        self._thread = asyncio.create_task(asyncio.to_thread(function, *arguments))
        try:
            return await asyncio.shield(self._thread)
        except asyncio.CancelledError:
            await asyncio.wait({self._thread})
            raise

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._stopped:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def local_address(remote: tuple[str, int]) -> Address | None:
    """The address by which this host reaches remote (connect(2) on a datagram socket sends nothing); None: unknown."""
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(*remote, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as sock:
            sock.connect(address)
            return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
    except (OSError, ValueError):
        return None


async def round_trip_ms(remote: tuple[str, int], clock: Clock) -> float | None:
    """How long a TCP handshake with remote takes, the quickest of a few; None: it cannot be reached so."""
    loop = asyncio.get_running_loop()
    took_ms: list[float] = []
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(*remote, type=socket.SOCK_STREAM)
            family, kind, _, _, address = found[0]
            for _ in range(ROUND_TRIPS_MEASURED):
                with socket.socket(family, kind) as sock:
                    sock.setblocking(False)
                    began_s = clock()
                    await loop.sock_connect(sock, address)
                    took_ms.append((clock() - began_s) * 1000)
    except OSError:
        pass  # a time-out is one, too
    return min(took_ms, default=None)
