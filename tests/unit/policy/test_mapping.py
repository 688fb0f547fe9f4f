"""Mapping policy: what is mapped, what is given up and why, and how long it pauses, without peers or an engine."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from infiniswap.policy.activity import Thresholds
from infiniswap.policy.mapping import (
    PAUSE_MAX_S,
    PAUSE_MIN_S,
    RELEASES_PER_TICK,
    RESIDENCE_MIN_S,
    Drain,
    Holder,
    MappingPolicy,
    Reason,
)
from infiniswap.policy.placement import Candidate, CoolDown
from infiniswap.policy.slow_peers import DRAIN_AFTER_S, DRAIN_SLABS_PER_S
from tests.support.clock import FakeClock

SLABS = 16
ALL = np.ones(SLABS, dtype=bool)


class World:
    """A policy over slabs whose counters a test sets."""

    def __init__(self, policy: str = "hot", cold: float | None = None, seed: int = 1) -> None:
        self.clock = FakeClock()
        self.resident_s = dict.fromkeys(range(SLABS), 1000.0)
        self.outs = np.zeros(SLABS, dtype=np.uint64)
        self.policy = MappingPolicy(
            policy,
            Thresholds(20.0, cold),
            self.outs,
            self.outs,
            slab_bytes=1,
            held_for_s=lambda slab: self.resident_s[slab],
            cool_down=CoolDown(self.clock),
            rng=Random(seed),
            clock=self.clock,
        )

    def second(self, **page_outs: int) -> None:
        """Page-outs to slabs, and the time they take."""
        for name, count in page_outs.items():
            self.outs[int(name[1:])] += np.uint64(count)
        self.clock.now_s += 1
        self.policy.activity.update(self.outs, 1.0)


def given(drain: Drain | None) -> list[int]:
    """Slabs to give up."""
    return [] if drain is None else list(drain.slabs)


@pytest.mark.parametrize(("policy", "wanted"), [("hot", [5, 3]), ("eager", [5, 3, 9]), ("never", [])])
def test_hottest_first(policy: str, wanted: list[int]) -> None:
    """Slabs without memory that are hot, then those touched where that is enough; what has memory is left out."""
    world = World(policy)
    world.second(s3=200, s5=900, s7=5000)
    unmapped = ALL.copy()
    unmapped[7] = False
    if policy == "eager":
        for slab in (5, 9, 7):
            world.policy.touch(slab)
    assert world.policy.to_map(unmapped) == wanted


def test_pauses_grow_until_there_is_room() -> None:
    """While no peer has room it is tried less and less often; a peer that comes up, or a success, ends that."""
    world = World()
    world.second(s3=900)
    lengths = []
    for _ in range(6):
        world.policy.no_room()
        world.policy.no_room()  # another slab in the same round
        begun_s = world.clock.now_s
        while not world.policy.to_map(ALL):
            world.clock.now_s += 0.5
        lengths.append(world.clock.now_s - begun_s)
    assert lengths == [PAUSE_MIN_S, 2, 4, 8, PAUSE_MAX_S, PAUSE_MAX_S]
    world.policy.no_room()
    assert not world.policy.touch(3)
    world.policy.came_up()
    assert world.policy.touch(3)
    world.policy.mapped(3)
    world.policy.no_room()
    world.clock.now_s += PAUSE_MIN_S
    assert world.policy.to_map(ALL) == [3]


def test_cold_slabs_go_once_they_had_time() -> None:
    """The coldest first, few at once, and none that has just been mapped or has no memory."""
    world = World(cold=5.0)
    world.second(s1=900, s2=10)
    world.resident_s[4] = RESIDENCE_MIN_S - 1
    mapped = ALL.copy()
    mapped[6] = False
    drain = world.policy.cold(mapped)
    assert (drain.reason, drain.most, drain.to) == (Reason.COLD, RELEASES_PER_TICK, None)
    assert given(drain) == [0, 3, 5, *range(7, SLABS), 2]
    assert given(World().policy.cold(mapped)) == []


def test_what_goes_because_of_its_peer() -> None:
    """Everything of a peer that is to be let go; of a slow one a little, once it has been slow for a while."""
    world = World()
    mapped = ALL.copy()
    mapped[2] = False
    holder = Holder(0, {1, 2}, 0, 0.0)
    assert world.policy.parting(holder, mapped) is None
    world.policy.slow.note(0, True)
    assert world.policy.parting(holder, mapped) is None
    world.clock.now_s += DRAIN_AFTER_S
    slow = world.policy.parting(holder, mapped)
    assert slow is not None
    assert (slow.reason, slow.most, given(slow)) == (Reason.SLOW, DRAIN_SLABS_PER_S, [1])
    parting = world.policy.parting(Holder(0, {1, 2}, 0, 0.0, parting=True), mapped)
    assert parting is not None
    assert (parting.reason, parting.most, given(parting)) == (Reason.PARTING, RELEASES_PER_TICK, [1])


def moved(world: World, **changes: bool) -> Drain | None:
    """A look for a move from a peer that holds all to one that holds nothing."""
    world.clock.now_s += 100
    holders = [
        Holder(0, frozenset(range(SLABS)), 0, 0.0),
        Holder(1, frozenset(), 1000, 0.0, parting=changes.get("parting", False)),
    ]
    return world.policy.move(holders, ALL, world.outs, world.outs, draining=changes.get("draining", False))


def test_a_move_says_where_to() -> None:
    """One hot slab that is written to, for the peer that holds nothing; none while anything else goes on."""
    world = World()
    world.second(s3=900)
    drain = moved(world)
    assert drain is not None
    assert (drain.reason, given(drain), drain.most, drain.to) == (Reason.MOVE, [3], 1, 1)
    for change in ("parting", "draining"):
        world = World()
        world.second(s3=900)
        assert moved(world, **{change: True}) is None


def test_the_same_numbers_decide_the_same() -> None:
    """Random numbers come in: two policies with one seed ask the same peers in the same order, the meant one first."""
    candidates = [Candidate(slot, slot % 3) for slot in range(8)]
    orders = [list(World(seed=7).policy.to_ask(candidates, 5)) for _ in range(2)]
    assert orders[0] == orders[1]
    assert orders[0][0] == (candidates[5],)
    assert orders[0] != list(World(seed=8).policy.to_ask(candidates, 5))
