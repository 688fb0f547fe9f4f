"""What a device does when a donor needs its memory back: it gives the slabs up, and leaves the donor alone for a while.

A hot slab moves to another donor that has room, with its pages (moving.py). Any other is given up as ever: the engine
drains it, so that every page is on the backup. Either way the daemon is told by the DELETE that gives the memory
back. A slab that the daemon has taken by force is drained; the daemon refuses its pages meanwhile, and they come from
elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.peer import Peer
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import SlabState
from infiniswap.policy.mapping import Reason
from infiniswap.policy.placement import CoolDown
from infiniswap.shared.clock import Clock
from infiniswap.shared.stream_messages import ActivityAnswer, Ask, Evict, Noticed

log = logging.getLogger(__name__)

RETRY_S = 0.02  # between tries to give up a slab that cannot be given up yet
DUE_S_MAX = 60.0  # after its deadline a notice means nothing: the daemon has acted by itself


class SlabEngine(Protocol):
    """What giving up needs of the data path (binding.DeviceEngine)."""

    slabs: NDArray[Any]

    def unmap_slab(self, slab: int) -> None:
        """See DeviceEngine.unmap_slab."""


class Mover(Protocol):
    """Takes slabs to another donor (moving.Moves)."""

    def begin(self, slab: int, reason: Reason, *, to: int | None = None, limit_ms: int = 0) -> bool:
        """See Moves.begin."""

    def abandon(self, slot: int, slab: int) -> None:
        """See Moves.abandon."""


@dataclass(frozen=True, slots=True)
class _Due:
    deadline_s: float  # when the donor acts by itself
    until_s: float  # when the notice means nothing any more


@dataclass(slots=True)
class EvictionCounts:
    """Events since the start, ever growing."""

    notices: int = 0
    evicted: int = 0  # slabs given up because their donor needed the memory
    taken: int = 0  # slabs that a donor had taken by force
    unknown: int = 0  # slabs in notices that are not held there


class Evictions:
    """Slabs that donors want back."""

    def __init__(
        self,
        engine: SlabEngine,
        slabs: Slabs,
        activity: NDArray[np.float64],
        *,
        cool_down: CoolDown,
        clock: Clock,
    ) -> None:
        """activity: page I/O per second of each slab; the array lives on. clock: monotonic seconds."""
        self.counts = EvictionCounts()
        self._engine = engine
        self._slabs = slabs
        self._activity = activity
        self._cool_down = cool_down
        self._clock = clock
        self.moves: Mover | None = None  # None: slabs are drained
        # Wanted back and not on their way yet: peer and slab. Bounded by the slab table, for only slabs that the peer
        # holds or is about to hold get in.
        self._due: dict[tuple[int, int], _Due] = {}
        self._taken: set[tuple[int, int]] = set()  # gone by force, and not given up here yet
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to try again what cannot be given up at once."""
        self._task = asyncio.create_task(self._retry_forever(), name="evictions")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # ---- what daemons say ----

    def evict(self, peer: Peer, notice: Evict) -> Noticed:
        """Give slabs up."""
        self.counts.notices += 1
        leaving, unknown = self.give_up(peer, dict.fromkeys(notice.slabs, notice.deadline_ms))
        return Noticed(notice.notice, tuple(leaving), tuple(unknown))

    def activity(self, peer: Peer, ask: Ask) -> ActivityAnswer:
        """Page I/O per second of those slabs that the peer holds."""
        held = peer.slabs
        return ActivityAnswer(
            ask.ask, {slab: round(float(self._activity[slab]), 3) for slab in ask.slabs if slab in held}
        )

    def taken(self, peer: Peer, slabs: Iterable[int]) -> None:
        """These are gone at the daemon already."""
        # A message may say so, and then each heartbeat until the slab has been given up.
        # One that was mapped there again meanwhile is another: nobody is giving that up yet.
        self._taken = {
            (slot, slab)
            for slot, slab in self._taken
            if self._slabs.holder(slab) == slot and (self._slabs.leaving(slab) or (slot, slab) in self._due)
        }
        gone = [slab for slab in slabs if slab in peer.slabs and (peer.slot, slab) not in self._taken]
        if gone:
            self._taken.update((peer.slot, slab) for slab in gone)
            log.info("peer %s has taken %d slabs by force", peer.address, len(gone))
            self.counts.taken += len(gone)
            self.give_up(peer, dict.fromkeys(gone, 0))

    def give_up(self, peer: Peer, deadlines_ms: Mapping[int, int]) -> tuple[list[int], list[int]]:
        """Begin to give up slabs of the peer, each within its time; those that leave, and those that are not there."""
        now_s = self._clock()
        asked = self._slabs.asked(peer.slot)
        leaving = [slab for slab in deadlines_ms if slab in peer.slabs or slab in asked]
        unknown = [slab for slab in deadlines_ms if not (slab in peer.slabs or slab in asked)]
        if unknown:
            self.counts.unknown += len(unknown)
            peer.wake.set()  # the next heartbeat gives back what is ours there by mistake
        if leaving:
            self._cool_down.start(peer.slot)
        for slab in leaving:
            deadline_s = now_s + min(deadlines_ms[slab] / 1000, DUE_S_MAX)
            self._due[peer.slot, slab] = _Due(deadline_s, deadline_s + DUE_S_MAX)
        self.step()
        return leaving, unknown

    # ---- how ----

    def step(self) -> None:
        """Give up what can be given up now."""
        now_s = self._clock()
        for (slot, slab), due in list(self._due.items()):
            held = self._slabs.holder(slab) == slot
            if held and self._slabs.leaving(slab) is Reason.EVICTED:
                done = True
            elif held:
                done = self._begin(slab, int((due.deadline_s - now_s) * 1000))
            else:
                done = slab not in self._slabs.asked(slot)
                if not done and self.moves is not None:
                    self.moves.abandon(slot, slab)
            if done or now_s >= due.until_s:
                del self._due[slot, slab]
        if self._due:
            self._wanted.set()

    def _begin(self, slab: int, left_ms: int) -> bool:
        """Whether slab is on its way. left_ms: until the donor acts by itself."""
        if self.moves is not None and self.moves.begin(slab, Reason.EVICTED, limit_ms=left_ms):
            self.counts.evicted += 1
            return True
        if self._engine.slabs["state"][slab] != SlabState.DRAINING:
            try:
                self._engine.unmap_slab(slab)
            except OSError as error:
                log.debug("slab %d is not given up yet: %s", slab, error)
                return False
        self._slabs.leave(slab, Reason.EVICTED)
        self.counts.evicted += 1
        return True

    async def _retry_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await asyncio.sleep(RETRY_S)
            try:
                self.step()
            except Exception:
                log.exception("giving up slabs went wrong; it is tried again")
