"""The device's relation to each memory daemon: the lease, its heartbeats, its loss and the way back.

One task per peer. While a peer has granted us no lease it is asked for one, with growing pauses, for ever; then
heartbeats renew it. A lease that was lost is dead for good: nothing is read from it again, a new one is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Protocol

from infiniswap.device.daemon_client import DaemonClient, Lease, LeaseGoneError, PeerError
from infiniswap.device.peer import Peer
from infiniswap.device.rdma_paths import RdmaPath
from infiniswap.device.slabs import Slabs
from infiniswap.nbd.client import NegotiationError, connect
from infiniswap.policy.placement import CoolDown
from infiniswap.rdma.path import Region

log = logging.getLogger(__name__)

BACK_OFF_MIN_S = 0.25
BACK_OFF_MAX_S = 10.0
HEARTBEATS_PER_TTL = 3
HEARTBEAT_RETRY_S = 1.0  # after a heartbeat that failed, while the lease may still live
LEASE_STABLE_S = 30.0  # a lease that lived so long ends the series of failures before it
CLOSE_TIMEOUT_S = 3.0
UPGRADE_INTERVAL_S = 10.0  # how often a peer on TCP is looked at for RDMA
UPGRADE_AFTER_S = 10.0  # on TCP at least so long before, so that a peer does not go to and fro


class PeerEngine(Protocol):
    """What peers need of the data path (binding.DeviceEngine)."""

    def attach_peer(self, peer: int, read_sock: socket.socket, write_sock: socket.socket) -> None:
        """See DeviceEngine.attach_peer."""

    def detach_peer(self, peer: int) -> None:
        """See DeviceEngine.detach_peer."""


class Rdma(Protocol):
    """What peers need to be reached over RDMA (rdma_paths.Initiator)."""

    @property
    def required(self) -> bool:
        """Whether TCP is ruled out."""

    async def connect(self, slot: int, client: DaemonClient, lease: Lease) -> RdmaPath:
        """See Initiator.connect."""

    def lost(self, slot: int) -> None:
        """See Initiator.lost."""

    def promising(self, slot: int) -> bool:
        """See Initiator.promising."""


class Peers:
    """All peers of a device."""

    def __init__(
        self,
        peers: list[Peer],
        slabs: Slabs,
        engine: PeerEngine,
        *,
        cool_down: CoolDown,
        drain_events: Callable[[], None],
        changed: Callable[[], None],
        lost: Callable[[Peer, frozenset[int]], None],
        connect_timeout_s: float,
        rng: Random,
        rdma: Rdma | None = None,
    ) -> None:
        """What the peers tell and need.

        drain_events: handle all news of the engine now. changed: leases or their slabs changed, put them on record
        (OSError when that fails). lost: a peer's lease died, with the slabs that were there. rdma: None for TCP alone.
        """
        self.all = peers
        self._slabs = slabs
        self._engine = engine
        self._cool_down = cool_down
        self._drain_events = drain_events
        self._changed = changed
        self._lost = lost
        self._connect_timeout_s = connect_timeout_s
        self._rng = rng
        self._rdma = rdma
        self._tasks: list[asyncio.Task[None]] = []
        self._tethers: set[asyncio.Task[None]] = set()  # at most one a peer
        self._untried = asyncio.Semaphore(0)  # released once by each peer after its first try for a lease
        self.came_up = asyncio.Event()  # set whenever a lease was taken; the waiting side clears it

    def __iter__(self) -> Iterator[Peer]:
        return iter(self.all)

    def up(self) -> list[Peer]:
        """Peers with a live lease that may take slabs."""
        return [peer for peer in self.all if peer.lease is not None and not (peer.retired or peer.upgrading)]

    def owner(self, slab: int) -> Peer | None:
        """The peer that holds slab."""
        slot = self._slabs.holder(slab)
        return None if slot is None else self.all[slot]

    def start(self) -> None:
        """Begin to take leases and to renew them."""
        for peer in self.all:
            self._tasks.append(asyncio.create_task(self._run(peer), name=f"peer {peer.address}"))
        if self._rdma is not None:
            self._tasks.append(asyncio.create_task(self._upgrade_forever(self._rdma), name="RDMA upgrades"))

    async def tried(self, timeout_s: float) -> None:
        """Until every peer was asked once for a lease, whatever came of it, or timeout_s have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for _ in self.all:
                    await self._untried.acquire()

    async def stop(self) -> None:
        """End the tasks; leases live on until release_all() or their expiry."""
        tasks = [*self._tasks, *self._tethers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        for peer in self.all:
            _untie(peer)

    async def release_all(self) -> None:
        """Give every lease back, within CLOSE_TIMEOUT_S; a daemon that does not answer lets it expire."""

        async def release(peer: Peer, lease: Lease) -> None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await peer.client.release(lease)
            except (PeerError, TimeoutError) as error:
                log.info("peer %s: lease not given back, it will expire: %s", peer.address, str(error) or "no answer")

        leases = [(peer, lease) for peer in self.all for lease in (peer.lease, *peer.dead_leases) if lease is not None]
        await asyncio.gather(*(release(peer, lease) for peer, lease in leases))
        for peer in self.all:
            peer.lease = None
            self._slabs.lose(peer.slot)
            peer.dead_leases.clear()

    def dismiss(self, peer: Peer) -> None:
        """End the lease of a peer that holds no slabs any more; one that is not retired gets a new one."""
        peer.upgrading = False
        if peer.lease is not None and not peer.slabs:
            peer.dead_leases.append(peer.lease)
            peer.lease = peer.path = None
            _untie(peer)
            with contextlib.suppress(OSError):
                self._engine.detach_peer(peer.slot)
            self._note_changed()
            peer.wake.set()

    def lose(self, peer: Peer, reason: str) -> None:
        """The peer's lease is dead, whoever noticed; nothing to do when it already was."""
        lease = peer.lease
        if lease is None:
            return
        slabs = self._slabs.lose(peer.slot)
        if peer.path is not None and self._rdma is not None:
            self._rdma.lost(peer.slot)
        peer.lease = peer.path = None
        peer.upgrading = False
        _untie(peer)
        peer.dead_leases.append(lease)
        peer.losses += 1
        peer.failures += 1
        peer.last_error = reason
        log.warning("peer %s is lost with %d slabs: %s", peer.address, len(slabs), reason)
        with contextlib.suppress(OSError):  # the engine may have noticed first
            self._engine.detach_peer(peer.slot)
        self._cool_down.start(peer.slot)
        self._note_changed()
        self._lost(peer, slabs)
        peer.wake.set()

    def _note_changed(self) -> None:
        try:
            self._changed()
        except OSError as error:
            # The record then names more than there is, which a recovery finds out by asking.
            log.warning("cannot put the leases on record: %s", error)

    async def _run(self, peer: Peer) -> None:
        pause_s = BACK_OFF_MIN_S
        tried = False
        while not peer.retired or peer.lease is not None:
            opened_s = time.monotonic()
            try:
                usable = peer.lease is not None or await self._open(peer)
                if not tried:
                    self._untried.release()
                    tried = True
                if usable:
                    await self._keep(peer)
            except Exception:
                log.exception("peer %s: unexpected failure", peer.address)
                self.lose(peer, "unexpected failure")
            # A peer that grants leases and loses them at once must not keep us busy.
            if time.monotonic() - opened_s > LEASE_STABLE_S:
                pause_s = BACK_OFF_MIN_S
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, BACK_OFF_MAX_S)
        await self._release_dead(peer)

    async def _keep(self, peer: Peer) -> None:
        """Renew the lease until it is lost."""
        retry = False
        while peer.lease is not None:
            interval_s = peer.lease.ttl_s / HEARTBEATS_PER_TTL
            await _wait(peer.wake, min(interval_s, HEARTBEAT_RETRY_S) if retry else interval_s)
            if peer.lease is not None:
                retry = not await self._heartbeat(peer)
        peer.wake.clear()

    async def _release_dead(self, peer: Peer) -> None:
        while peer.dead_leases:
            lease = peer.dead_leases.popleft()
            with contextlib.suppress(PeerError):  # it expires by itself
                await peer.client.release(lease)

    async def _open(self, peer: Peer) -> bool:
        """Take a lease and attach its connections; False (and noted) when that does not work now."""
        peer.connecting = True
        lease: Lease | None = None
        attached = False
        try:
            # Asked first because it is free of consequences: a dead peer costs one request.
            peer.note_offer(await peer.client.offer())
            await self._release_dead(peer)
            lease = await peer.client.open_lease()
            self._warn_of_twin(peer, lease)
            await self.attach(peer, lease)
            attached = True
        except PeerError as error:
            peer.note_failure(error)
            return False
        finally:
            peer.connecting = False
            if lease is not None and not attached:
                peer.dead_leases.append(lease)
        if peer.losses or peer.last_error:
            log.info("peer %s is back", peer.address)
        peer.last_error = ""
        self._note_changed()
        self.came_up.set()
        return True

    def _warn_of_twin(self, peer: Peer, lease: Lease) -> None:
        """Two names of one daemon that came to be known only now; one alone is enough, but both work."""
        for other in self.up():
            if other is not peer and other.lease is not None and other.lease.incarnation == lease.incarnation:
                message = "peers %s and %s seem to be the same daemon; name each once"
                log.warning(message, other.address, peer.address)

    async def attach(
        self,
        peer: Peer,
        lease: Lease,
        sockets: tuple[socket.socket, socket.socket] | None = None,
        *,
        hurry: bool = False,
    ) -> dict[int, Region]:
        """Give the engine a way to the lease's memory: RDMA where both ends have it, else TCP. PeerError: neither.

        sockets: connections that are open already; they are closed when they are not needed. hurry: they are used
        unless TCP is ruled out. Returns the regions of the slabs that the lease held before, for RDMA.
        """
        skip = hurry and sockets is not None and (self._rdma is None or not self._rdma.required)
        path = None if skip else await self._reach(peer, lease)
        if path is None:
            sockets = sockets or await open_connections(lease, self._connect_timeout_s)
            # News of the lease before this one must not be taken for news of this one.
            self._drain_events()
            try:
                self._engine.attach_peer(peer.slot, *sockets)
            except OSError as error:
                raise PeerError(f"the engine does not take the connections: {error}") from None
        else:
            for sock in sockets or ():
                sock.close()
        peer.path = path
        peer.lease = lease
        peer.attached_s = time.monotonic()
        return {} if path is None else path.regions

    async def _reach(self, peer: Peer, lease: Lease) -> RdmaPath | None:
        """An RDMA path, or None with the reason noted."""
        if self._rdma is None:
            return None
        try:
            if lease.rdma:
                await self._tie(peer, lease)
            path = await self._rdma.connect(peer.slot, peer.client, lease)
        except BaseException as error:
            _untie(peer)
            if self._rdma.required or not isinstance(error, PeerError):
                raise
            if peer.rdma_error != str(error):
                peer.rdma_error = str(error)
                log.log(logging.WARNING if lease.rdma else logging.INFO, "peer %s: TCP, for %s", peer.address, error)
            return None
        peer.rdma_error = ""
        return path

    async def _tie(self, peer: Peer, lease: Lease) -> None:
        """Pages over RDMA do not tell that the daemon's process has ended until one is asked for; a connection does."""
        try:
            sock, _ = await connect(lease.address, lease.export, self._connect_timeout_s)
        except (OSError, NegotiationError) as error:
            log.info("peer %s: no connection beside RDMA: %s", peer.address, str(error) or "no answer")
            return
        sock.setblocking(False)
        peer.tether = sock
        asyncio.get_running_loop().add_reader(sock, self._tether_ended, peer)

    def _tether_ended(self, peer: Peer) -> None:
        """Nothing is asked through it, so whatever comes is its end; not always the daemon's."""
        _untie(peer)
        task = asyncio.create_task(self._tie_again(peer), name=f"tether of {peer.address}")
        self._tethers.add(task)
        task.add_done_callback(self._tethers.discard)

    async def _tie_again(self, peer: Peer) -> None:
        lease = peer.lease
        if lease is None:
            return
        try:
            await peer.client.heartbeat(lease)
            if peer.lease is lease and peer.tether is None:
                await self._tie(peer, lease)
        except PeerError:
            if peer.lease is lease:
                self.lose(peer, "it has ended, or ended the lease")

    async def _upgrade_forever(self, rdma: Rdma) -> None:
        """RDMA has come, or come back: a peer on TCP is drained and then reached anew, one peer at a time.

        Its pages are on the backup meanwhile, as those of any slab that is given up; nothing is at risk.
        """
        while True:
            await asyncio.sleep(UPGRADE_INTERVAL_S)
            for peer in self.up():
                if any(other.upgrading for other in self.all):
                    break
                if peer.path is None and time.monotonic() - peer.attached_s >= UPGRADE_AFTER_S:
                    await self._consider_upgrade(peer, rdma)

    async def _consider_upgrade(self, peer: Peer, rdma: Rdma) -> None:
        if not rdma.promising(peer.slot):
            return
        try:
            offered = await peer.client.offer()
        except PeerError:
            return  # the heartbeat tells what is wrong with it
        if offered.rdma and peer.lease is not None and peer.path is None:
            log.info("peer %s can be reached over RDMA now: its %d slabs move", peer.address, len(peer.slabs))
            peer.upgrading = True

    async def _heartbeat(self, peer: Peer) -> bool:
        """Renew the lease; False when that failed but the lease may still live."""
        lease = peer.lease
        assert lease is not None
        held = frozenset(peer.slabs)
        try:
            beat = await peer.client.heartbeat(lease)
        except LeaseGoneError as error:
            if peer.lease is lease:
                self.lose(peer, str(error))
            return True
        except PeerError as error:
            if peer.lease is lease:
                peer.note_failure(error)
                if lease.expired(time.monotonic()):
                    self.lose(peer, "the lease ran out while the peer did not answer")
            return False
        if peer.lease is not lease:
            return True
        peer.free_bytes = beat.free_bytes
        peer.last_error = ""
        if peer.path is not None and not beat.rdma:
            self.lose(peer, "its end of the RDMA path is gone")
            return True
        missing = held & peer.slabs - beat.slabs
        if missing:
            self.lose(peer, f"it has given up {len(missing)} slabs without asking")
            return True
        # Left over from a map request whose answer was lost, or from a recovery.
        for slab in sorted(beat.slabs - held):
            if slab not in peer.slabs | self._slabs.asked(peer.slot):
                await peer.give_back(lease, slab)
        return True


async def open_connections(lease: Lease, timeout_s: float) -> tuple[socket.socket, socket.socket]:
    """Two negotiated connections to the lease's export: for page-ins and for page-outs."""
    opened: list[socket.socket] = []
    try:
        for _ in range(2):
            sock, export = await connect(lease.address, lease.export, timeout_s)
            opened.append(sock)
            if export.size_bytes < lease.size_bytes:
                raise PeerError(f"its export has {export.size_bytes} bytes, the device needs {lease.size_bytes}")
    except BaseException as error:
        for sock in opened:
            sock.close()
        if isinstance(error, (OSError, NegotiationError)):
            text = str(error) or "no answer"
            raise PeerError(f"page I/O at {lease.address[0]}:{lease.address[1]}: {text}") from None
        raise
    return opened[0], opened[1]


def _untie(peer: Peer) -> None:
    if peer.tether is not None:
        asyncio.get_running_loop().remove_reader(peer.tether)
        peer.tether.close()
        peer.tether = None


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until event is set or timeout_s have passed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
