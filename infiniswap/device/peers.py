"""The device's relation to each memory daemon: the lease, its heartbeats, its loss and the way back.

One task per peer. While a peer has granted us no lease it is asked for one, with growing pauses, for ever; then
heartbeats renew it. A lease that was lost is dead for good: nothing is read from it again, a new one is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Protocol

from infiniswap.device.attachment import Attachment, PeerEngine, Rdma
from infiniswap.device.daemon_client import DistrustedError, HeldLease, LeaseGoneError, PeerError
from infiniswap.device.holding import Holding, HoldingEngine
from infiniswap.device.lease_stream import LeaseStream, Listener
from infiniswap.device.peer import Peer
from infiniswap.device.rdma_upgrade import upgrade_forever
from infiniswap.device.slabs import Slabs
from infiniswap.device.tether import Tethers
from infiniswap.policy.placement import CoolDown
from infiniswap.shared.clock import Clock
from infiniswap.shared.logs import detail

log = logging.getLogger(__name__)

BACK_OFF_MIN_S = 0.25
BACK_OFF_MAX_S = 10.0
HEARTBEATS_PER_TTL = 3
POLL_S = 1.0  # between heartbeats while no stream tells what they would
HEARTBEAT_RETRY_S = 1.0  # after a heartbeat that failed, while the lease may still live
LEASE_STABLE_S = 30.0  # a lease that lived so long ends the series of failures before it
CLOSE_TIMEOUT_S = 3.0


class PeerListener(Listener, Protocol):
    """What becomes of what daemons say, on streams or in answers to heartbeats (eviction.Evictions)."""

    def give_up(self, peer: Peer, deadlines_ms: Mapping[int, int]) -> object:
        """Slabs are to be given up, each within its time."""


class PeersEngine(PeerEngine, HoldingEngine, Protocol):
    """What all of this needs of the data path."""

    def answered_bytes(self, peer: int) -> int:
        """See DeviceEngine.answered_bytes."""


class Peers:
    """All peers of a device."""

    def __init__(
        self,
        peers: list[Peer],
        slabs: Slabs,
        engine: PeersEngine,
        *,
        cool_down: CoolDown,
        changed: Callable[[], None],
        lost: Callable[[Peer, frozenset[int]], None],
        connect_timeout_s: float,
        listener: PeerListener,
        rng: Random,
        clock: Clock,
        rdma: Rdma | None = None,
    ) -> None:
        """What the peers tell and need. peers: each in the slot that is its place among them.

        changed: leases or their slabs changed, put them on record (OSError when that fails). lost: a peer's lease died,
        with the slabs that were there. listener: hears what daemons want of their slabs. rdma: None for TCP alone.
        clock: monotonic seconds.
        """
        self.all = peers
        self._slabs = slabs
        self._engine = engine
        self._cool_down = cool_down
        self._changed = changed
        self._lost = lost
        self._listener = listener
        self._rng = rng
        self._rdma = rdma
        self._clock = clock
        self.tethers = Tethers(connect_timeout_s, self.lose, self._ended)
        self.attachment = Attachment(
            engine,
            self.tethers,
            rdma=rdma,
            connect_timeout_s=connect_timeout_s,
            clock=clock,
        )
        self.holding = Holding(engine, self.attachment, self.lose)
        self._tasks: list[asyncio.Task[None]] = []
        self._untried = asyncio.Semaphore(0)  # released once by each peer after its first try for a lease
        self.came_up = asyncio.Event()  # set whenever a lease was taken; the waiting side clears it

    def __iter__(self) -> Iterator[Peer]:
        return (peer for peer in self.all if not peer.gone)

    def up(self) -> list[Peer]:
        """Peers with a live lease that may take slabs, and that lend."""
        return [peer for peer in self.all if peer.takes_slabs and peer.standing.lending]

    def owner(self, slab: int) -> Peer | None:
        """The peer that holds slab."""
        slot = self._slabs.holder(slab)
        return None if slot is None else self.all[slot]

    def start(self) -> None:
        """Begin to take leases and to renew them."""
        for peer in self:
            self._begin(peer)
        if self._rdma is not None:
            upgrades = upgrade_forever(self.all, self._rdma, self._clock)
            self._tasks.append(asyncio.create_task(upgrades, name="RDMA upgrades"))

    def add(self, peer: Peer) -> None:
        """One more, in a slot of its own or in that of one that is gone."""
        if peer.slot == len(self.all):
            self.all.append(peer)
        else:
            assert self.all[peer.slot].gone
            self.all[peer.slot] = peer
        self._cool_down.forget(peer.slot)
        if self._rdma is not None:
            self._rdma.forget(peer.slot)
        self._begin(peer)

    def _begin(self, peer: Peer) -> None:
        task = asyncio.create_task(self._run(peer), name=f"peer {peer.address}")
        self._tasks = [*(each for each in self._tasks if not each.done()), task]

    async def tried(self, timeout_s: float) -> None:
        """Until every peer was asked once for a lease, whatever came of it, or timeout_s have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for _ in self.all:
                    await self._untried.acquire()

    async def stop(self) -> None:
        """End the tasks; leases live on until release_all() or their expiry."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self.tethers.stop(), self.holding.stop(), return_exceptions=True)
        self._tasks.clear()

    async def release_all(self) -> None:
        """Give every lease back, within CLOSE_TIMEOUT_S; a daemon that does not answer lets it expire."""

        async def release(peer: Peer, lease: HeldLease) -> None:
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

    def look_again(self) -> None:
        """Renew every lease now: other certificates count than before, here, and a peer's may be none of them."""
        for peer in self:
            peer.wake.set()

    def dismiss(self, peer: Peer) -> None:
        """End the lease of a peer that holds no slabs any more; one that is not retired gets a new one."""
        peer.upgrading = False
        if peer.lease is not None and not peer.slabs:
            peer.dead_leases.append(peer.lease)
            peer.lease = peer.path = None
            self.tethers.untie(peer)
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
        self.tethers.untie(peer)
        self.holding.end(peer)
        peer.dead_leases.append(lease)
        peer.losses += 1
        peer.failures += 1
        peer.last_error = reason
        # One that was drained before has ended as it should.
        level = logging.WARNING if slabs or not peer.standing.draining else logging.INFO
        about = detail(peer=peer.address, slabs=len(slabs))
        log.log(level, "peer %s is lost with %d slabs: %s", peer.address, len(slabs), reason, extra=about)
        with contextlib.suppress(OSError):  # the engine may have noticed first
            self._engine.detach_peer(peer.slot)
        self._cool_down.start(peer.slot)
        self._note_changed()
        self._lost(peer, slabs)
        peer.wake.set()

    def hold(self, peer: Peer, reason: str) -> None:
        """The data path keeps the peer's slabs, for its connections broke and it may come back."""
        if peer.lease is not None and not peer.held:
            if peer.path is not None and self._rdma is not None:
                self._rdma.lost(peer.slot)  # one that breaks again and again is not tried for ever
            self.tethers.untie(peer)
            self.holding.begin(peer, reason)

    def _ended(self, peer: Peer, reason: str) -> None:
        if peer.lease is not None and not peer.held:
            self.tethers.untie(peer)
            self.holding.ended(peer, reason)

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
            opened_s = self._clock()
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
            if self._clock() - opened_s > LEASE_STABLE_S:
                pause_s = BACK_OFF_MIN_S
            await _wait(peer.retiring, pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, BACK_OFF_MAX_S)
            if peer.retiring.is_set() and peer.lease is not None:
                await asyncio.sleep(BACK_OFF_MIN_S)
        peer.gone = True
        await self._release_dead(peer)

    async def _keep(self, peer: Peer) -> None:
        """Renew the lease until it is lost, and hear its stream meanwhile."""
        if peer.lease is None:
            return
        stream = LeaseStream(peer, peer.lease, self._listener, clock=self._clock, rng=self._rng)
        hearing = asyncio.create_task(stream.run(), name=f"stream of {peer.address}")
        try:
            retry = False
            while peer.lease is not None:
                interval_s = peer.lease.ttl_s / HEARTBEATS_PER_TTL
                if not peer.listening:
                    interval_s = min(interval_s, POLL_S)
                await _wait(peer.wake, min(interval_s, HEARTBEAT_RETRY_S) if retry else interval_s)
                peer.wake.clear()
                if peer.lease is not None:
                    retry = not await self._heartbeat(peer)
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])

    async def _release_dead(self, peer: Peer) -> None:
        while peer.dead_leases:
            lease = peer.dead_leases.popleft()
            with contextlib.suppress(PeerError):  # it expires by itself
                await peer.client.release(lease)

    async def _open(self, peer: Peer) -> bool:
        """Take a lease and attach its connections; False (and noted) when that does not work now."""
        peer.connecting = True
        lease: HeldLease | None = None
        attached = False
        try:
            # Asked first because it is free of consequences: a dead peer costs one request.
            peer.note_offer(await peer.client.offer())
            await self._release_dead(peer)
            lease = await peer.client.open_lease()
            self._warn_of_twin(peer, lease)
            await self.attachment.attach(peer, lease)
            attached = True
        except PeerError as error:
            peer.note_failure(error)
            return False
        finally:
            peer.connecting = False
            if lease is not None and not attached:
                peer.dead_leases.append(lease)
        if peer.losses or peer.last_error:
            log.info("peer %s is back", peer.address, extra=detail(peer=peer.address))
        peer.last_error = ""
        self._note_changed()
        self.came_up.set()
        return True

    def _warn_of_twin(self, peer: Peer, lease: HeldLease) -> None:
        """Two names of one daemon that came to be known only now; one alone is enough, but both work."""
        for other in self.up():
            if other is not peer and other.lease is not None and other.lease.incarnation == lease.incarnation:
                message = "peers %s and %s seem to be the same daemon; name each once"
                log.warning(message, other.address, peer.address)

    async def _heartbeat(self, peer: Peer) -> bool:
        """Renew the lease; False when that failed but the lease may still live."""
        lease = peer.lease
        assert lease is not None
        held = frozenset(peer.slabs)
        try:
            beat = await peer.client.heartbeat(lease)
        except (LeaseGoneError, DistrustedError) as error:
            # Pages that go on moving do not help a daemon that is not trusted any more.
            if peer.lease is lease:
                self.lose(peer, str(error))
            return True
        except PeerError as error:
            if peer.lease is lease:
                peer.note_failure(error)
                self._hear_pages(peer, lease)
                if lease.expired(self._clock()):
                    self.lose(peer, "the lease ran out while the peer did not answer")
            return False
        if peer.lease is not lease:
            return True
        peer.free_bytes = beat.free_bytes
        peer.standing = beat.standing
        if peer.held:
            return True
        peer.last_error = ""
        if peer.path is not None and not beat.rdma:
            self._ended(peer, "its end of the RDMA path is gone")
            return True
        self._listener.taken(peer, tuple(held & peer.slabs - beat.slabs))
        if beat.leaving:
            self._listener.give_up(peer, beat.leaving)
        # Left over from a map request whose answer was lost, or from a recovery.
        for slab in sorted(beat.slabs - held):
            if slab not in peer.slabs | self._slabs.asked(peer.slot):
                await peer.give_back(lease, slab)
        return True

    def _hear_pages(self, peer: Peer, lease: HeldLease) -> None:
        """Pages that came over TCP renew the lease as heartbeats do, at the daemon, too: those may be shut out."""
        heard_bytes, heard_s = peer.pages_heard
        peer.pages_heard = self._engine.answered_bytes(peer.slot), self._clock()
        if heard_bytes != peer.pages_heard[0] and peer.transport == "tcp":
            lease.renewed(heard_s)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until event is set or timeout_s have passed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
