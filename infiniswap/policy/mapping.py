"""What to map, what to give up and why, where to ask first, and how long to pause while no peer has room.

Pure decisions over activity, placement and what is known of the peers; the mapper carries them out and tells what came
of it. Which slabs are mapped, or are not, comes as an array of truth values, one a slab.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from random import Random

import numpy as np
from numpy.typing import NDArray

from infiniswap.policy.activity import Activity, Thresholds
from infiniswap.policy.placement import Candidate, CoolDown, Offer, OnTheWay, pairs, ranked
from infiniswap.policy.rebalance import Rebalance, Share, Use, cheapest
from infiniswap.policy.slow_peers import DRAIN_SLABS_PER_S, SlowPeers
from infiniswap.shared.clock import Clock

RELEASES_PER_TICK = 8  # cold slabs given up at once: draining competes with the clients for the backup
RESIDENCE_MIN_S = 10.0  # a slab mapped later than that has had no time to be hot
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 10.0  # between tries while no peer has room

Mask = NDArray[np.bool_]


class Reason(StrEnum):
    """Why a slab is given up."""

    COLD = "it is cold"
    MOVE = "another peer holds far fewer"
    SLOW = "its peer answers too late"
    EVICTED = "its donor needs the memory"
    PARTING = "its peer is not configured any more, or is to be reached anew"


@dataclass(frozen=True, slots=True)
class Drain:
    """Slabs to give up in this order, as many as begin to drain, up to most. to: the peer they are meant for."""

    reason: Reason
    slabs: Iterable[int]
    most: int
    to: int | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer with a lease. parting: it takes nothing, and what it holds is to go."""

    slot: int
    slabs: AbstractSet[int]
    free_bytes: int
    attached_s: float
    parting: bool = False


class MappingPolicy:
    """The decisions of one device."""

    def __init__(
        self,
        policy: str,
        thresholds: Thresholds,
        page_ins: NDArray[np.uint64],
        page_outs: NDArray[np.uint64],
        *,
        slab_bytes: int,
        held_for_s: Callable[[int], float],
        cool_down: CoolDown,
        rng: Random,
        clock: Clock,
    ) -> None:
        """policy: hot, eager or never. page_ins, page_outs: of each slab so far. held_for_s: of a slab.

        clock: monotonic seconds.
        """
        self.eager = policy == "eager"
        self._never = policy == "never"
        self.activity = Activity(page_ins + page_outs)
        self.slow = SlowPeers(clock)
        self.on_the_way = OnTheWay()
        self._slab_bytes = slab_bytes
        self._thresholds = thresholds
        self._held_for_s = held_for_s
        self._cool_down = cool_down
        self._rng = rng
        self._clock = clock
        self._rebalance = Rebalance(slab_bytes, rng, clock)
        self._io_before = (page_ins.copy(), page_outs.copy())  # at the last look for a move
        self._touched: dict[int, None] = {}  # eager: written to and not mapped yet, oldest first
        self._pause_s = 0.0
        self._paused_until_s = 0.0

    def change(self, policy: str, thresholds: Thresholds) -> None:
        """Go by other ones from now on; policy as in __init__."""
        self.eager = policy == "eager"
        self._never = policy == "never"
        self._thresholds = thresholds

    # ---- mapping ----

    def touch(self, slab: int) -> bool:
        """Eager: slab was written to and has no memory; whether to look for some at once."""
        self._touched[slab] = None
        return not self._pausing()

    def to_map(self, unmapped: Mask) -> list[int]:
        """Slabs to map now, the hottest first."""
        for slab in [slab for slab in self._touched if not unmapped[slab]]:
            del self._touched[slab]
        if self._never or self._pausing():
            return []
        hot = self.activity.hot(self._thresholds)
        return list(dict.fromkeys([*hot[unmapped[hot]].tolist(), *self._touched]))

    def usable(self, peers: Iterable[Candidate]) -> list[Candidate]:
        """Those of peers that may be asked."""
        return self._cool_down.usable(peer for peer in peers if not self.slow.avoided(peer.slot))

    def to_ask(self, candidates: Sequence[Candidate], meant: int | None) -> Iterator[tuple[Candidate, ...]]:
        """Whom to ask together, one group after the other; meant: the peer that the slab was given up for."""
        first = [(candidate,) for candidate in candidates if candidate.slot == meant]
        return itertools.chain(first, pairs(candidates, self._rng))

    def ranked(self, offers: Iterable[Offer]) -> list[Offer]:
        """Which of offers to take, best first; those without room are left out."""
        return ranked(offers, self._slab_bytes, self.on_the_way)

    def mapped(self, slab: int) -> None:
        """Slab has memory now."""
        self._touched.pop(slab, None)
        self._pause_s = 0.0

    def no_room(self) -> None:
        """No peer took a slab: pause, longer each time."""
        if not self._pausing():
            self._pause_s = min(max(2 * self._pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
            self._paused_until_s = self._clock() + self._pause_s

    def came_up(self) -> None:
        """There is a peer more: no pause."""
        self._pause_s = self._paused_until_s = 0.0

    def _pausing(self) -> bool:
        return self._clock() < self._paused_until_s

    # ---- giving up ----

    def worth_moving(self, slab: int) -> bool:
        """Whether slab would be mapped again at once, so that its pages are better taken along."""
        return not self._never and (self.eager or bool(self.activity.values[slab] >= self._thresholds.hot))

    def cold(self, mapped: Mask) -> Drain:
        """Cold slabs, the coldest first."""
        cold = self.activity.cold(self._thresholds)
        return Drain(Reason.COLD, filter(self._resident, cold[mapped[cold]].tolist()), RELEASES_PER_TICK)

    def parting(self, holder: Holder, mapped: Mask) -> Drain | None:
        """What is to go because of its peer."""
        if holder.parting:
            reason, most = Reason.PARTING, RELEASES_PER_TICK
        elif self.slow.drained(holder.slot):
            reason, most = Reason.SLOW, DRAIN_SLABS_PER_S
        else:
            return None
        return Drain(reason, [slab for slab in holder.slabs if mapped[slab]], most)

    def move(
        self,
        holders: Sequence[Holder],
        mapped: Mask,
        page_ins: NDArray[np.uint64],
        page_outs: NDArray[np.uint64],
        *,
        draining: bool,
    ) -> Drain | None:
        """A slab to move to a peer that holds far fewer, when it is time for one and nothing else is going on."""
        if self._never or not self._rebalance.due():
            return None
        ins, outs = page_ins - self._io_before[0], page_outs - self._io_before[1]
        self._io_before = (page_ins.copy(), page_outs.copy())
        troubled = any(
            holder.parting or self._cool_down.active(holder.slot) or self.slow.avoided(holder.slot)
            for holder in holders
        )
        if troubled or draining:
            return None
        by_slot = {holder.slot: holder for holder in holders}
        pair = self._rebalance.pair([Share(h.slot, len(h.slabs), h.free_bytes, h.attached_s) for h in holders])
        if pair is None:
            return None
        giver, taker = (by_slot[share.slot] for share in pair)
        # One that would not be mapped again at once would only lose by it.
        held = giver.slabs if self.eager else giver.slabs & set(self.activity.hot(self._thresholds).tolist())
        slab = cheapest(
            Use(slab, int(ins[slab]), int(outs[slab])) for slab in held if mapped[slab] and self._resident(slab)
        )
        return None if slab is None else Drain(Reason.MOVE, [slab], 1, taker.slot)

    def _resident(self, slab: int) -> bool:
        return self._held_for_s(slab) >= RESIDENCE_MIN_S
