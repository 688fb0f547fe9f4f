"""A peer whose connections broke may have a daemon that restarts and keeps its memory: it is tried at once, and again.

The data path holds its slabs for the grace time and ends that by itself. Until then the same lease at the same
incarnation makes it good: a heartbeat, new connections (or an RDMA path, with the regions told anew), and the copies
there count again. A lease that is gone, or memory that is, loses the peer at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from infiniswap.device.attachment import Attachment
from infiniswap.device.daemon_client import HeldLease, LeaseGoneError, PeerError
from infiniswap.device.peer import Peer
from infiniswap.shared.logs import detail

log = logging.getLogger(__name__)

PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 0.5  # between tries; the grace time bounds how many there are


class HoldingEngine(Protocol):
    """What is needed of the data path (binding.DeviceEngine)."""

    def hold_peer(self, peer: int) -> None:
        """See DeviceEngine.hold_peer."""

    def resume_peer(self, peer: int) -> None:
        """See DeviceEngine.resume_peer."""

    def set_region(self, slab: int, peer: int, region: tuple[int, int]) -> None:
        """See DeviceEngine.set_region."""

    def slab_gone(self, slab: int, peer: int) -> None:
        """See DeviceEngine.slab_gone."""


class Holding:
    """Peers that are held, and what tries to reach them: at most one task a peer."""

    def __init__(self, engine: HoldingEngine, attachment: Attachment, lose: Callable[[Peer, str], None]) -> None:
        """lose: the peer will not come back with this lease."""
        self._engine = engine
        self._attachment = attachment
        self._lose = lose
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by slot

    def ended(self, peer: Peer, reason: str) -> None:
        """The peer's daemon has ended, though its pages' connections do not tell so: it is held, or else lost."""
        try:
            self._engine.hold_peer(peer.slot)
        except OSError:
            self._lose(peer, reason)
        else:
            self.begin(peer, reason)

    def begin(self, peer: Peer, reason: str) -> None:
        """The data path holds the peer; nothing to do when that is known."""
        lease = peer.lease
        if lease is None or peer.held:
            return
        peer.held = True
        peer.path = None
        peer.holds += 1
        peer.last_error = reason
        message = "peer %s: %s; its %d slabs are kept until it is back"
        about = detail(peer=peer.address, slabs=len(peer.slabs))
        log.warning(message, peer.address, reason, len(peer.slabs), extra=about)
        task = asyncio.create_task(self._try(peer, lease), name=f"peer {peer.address} is held")
        self._tasks[peer.slot] = task
        task.add_done_callback(lambda done: self._forget(peer.slot, done))

    def end(self, peer: Peer) -> None:
        """The peer is lost."""
        peer.held = False
        task = self._tasks.pop(peer.slot, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def stop(self) -> None:
        """End all tries."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, slot: int, task: asyncio.Task[None]) -> None:
        if self._tasks.get(slot) is task:
            del self._tasks[slot]

    async def _try(self, peer: Peer, lease: HeldLease) -> None:
        pause_s = PAUSE_MIN_S
        while peer.held and peer.lease is lease:
            try:
                await self._reach(peer, lease)
            except LeaseGoneError as error:
                self._give_up(peer, lease, str(error))
            except PeerError as error:
                log.debug("peer %s is not back yet: %s", peer.address, error)
            except Exception:
                log.exception("peer %s: unexpected failure", peer.address)
                self._give_up(peer, lease, "unexpected failure")
            if peer.held:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _give_up(self, peer: Peer, lease: HeldLease, reason: str) -> None:
        if peer.lease is lease:
            self._lose(peer, reason)

    async def _reach(self, peer: Peer, lease: HeldLease) -> None:
        """Make the peer's copies count again. PeerError: not now; LeaseGoneError: never."""
        beat = await peer.client.heartbeat(lease)
        regions = await self._attachment.attach(peer, lease, still=lambda: peer.held and peer.lease is lease)
        try:
            for slab in sorted(peer.slabs):
                region = regions.get(slab)
                if peer.path is None:
                    continue  # over TCP a slab that is not there any more is refused, and needs no key
                if region is None:  # taken by force: that is what broke the queue pair, and costs this slab alone
                    self._engine.slab_gone(slab, peer.slot)
                else:
                    self._engine.set_region(slab, peer.slot, (region.address, region.rkey))
            self._engine.resume_peer(peer.slot)
        except OSError as error:
            raise LeaseGoneError(f"it cannot be taken up again: {error}") from None
        peer.held = False
        peer.last_error = ""
        peer.free_bytes = beat.free_bytes
        log.info("peer %s is back with its %d slabs", peer.address, len(peer.slabs))
        peer.wake.set()  # a heartbeat tells what became of them meanwhile
