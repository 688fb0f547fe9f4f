"""Donors lend what is free beyond their headroom, and take back as much as they lack, the least active first."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np

from infiniswap.policy.activity import Activity
from infiniswap.simulation.cluster import NOBODY, Cluster
from infiniswap.simulation.donors import Donors
from infiniswap.simulation.figures import Tally
from infiniswap.simulation.scenario import GIB, Scenario

MEMORY = 64 * GIB


@dataclass
class World:
    """A donor (0) and two devices (1, 2) of 20 slabs each."""

    cluster: Cluster = field(default_factory=lambda: Cluster([MEMORY] * 3, [0, 20, 20], GIB))
    tally: Tally = field(default_factory=Tally)
    notices: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.activity = Activity(np.zeros(40, dtype=np.uint64))
        self.activity.values[:] = 1000.0
        self.donors = Donors(Scenario(machines=3), self.cluster, self.activity, self.tally, Random(1), self.notify)

    def notify(self, slab: int, donor: int) -> None:
        assert donor == 0
        self.notices.append(slab)
        self.cluster.leave(slab)

    def lend(self, slabs: int) -> None:
        """Of each device, alternately."""
        for number in range(slabs):
            self.cluster.take(number // 2 + 20 * (number % 2), 0, 0.0)


def test_what_is_free_beyond_the_headroom_is_offered() -> None:
    """By hand: 64 GiB less 10 % headroom, of which new slabs leave an eighth more, less 20 own and 10 lent."""
    world = World()
    world.cluster.own_bytes[0] = 20 * GIB
    world.lend(10)
    world.donors.second()
    assert world.donors.free_bytes(0) == int(64 * 0.9 - 0.8 - 20 - 10) * GIB == 26 * GIB
    assert world.notices == []
    world.cluster.up[0] = False
    assert world.donors.free_bytes(0) == 0


def test_as_much_is_taken_back_as_is_lacking() -> None:
    """40 slabs lent and own use that leaves 33.6 GiB: seven go, and no more."""
    world = World()
    world.lend(40)
    world.donors.second()
    world.cluster.own_bytes[0] = 24 * GIB
    world.donors.second()
    assert (world.tally.forced, world.notices) == (7, []), "nothing is left, so nobody can wait for owners"
    world.donors.second()
    assert world.cluster.lent[0] == 33
    assert world.tally.evicted == 7


def test_an_eviction_with_time() -> None:
    """Own use that grows by little: nobody is forced, and while slabs leave no others are asked for."""
    world = World()
    world.lend(40)
    world.cluster.own_bytes[0] = 19 * GIB
    for _ in range(3):
        world.donors.second()
        assert len(world.notices) == 2
    assert world.tally.forced == 0
    for slab in world.notices:
        world.cluster.arrive(slab, 0.0)
    world.donors.second()
    assert len(world.notices) == 2


def test_the_least_active_go_and_the_dead_count_as_cold() -> None:
    """Of a sample twice as large as what is wanted; a device that is down does not answer for its hot slabs."""
    world = World()
    world.lend(40)
    world.activity.values[:20] = 5.0
    world.cluster.own_bytes[0] = 20 * GIB
    world.donors.second()
    assert world.notices
    assert all(slab < 20 for slab in world.notices)
    assert world.tally.evicted_hot == 0
    other = World()
    other.lend(40)
    other.activity.values[:20] = 5.0
    other.cluster.up[2] = False
    other.cluster.own_bytes[0] = 20 * GIB
    other.donors.second()
    assert other.notices == []
    assert (other.cluster.holder[20:] == NOBODY).sum() == 3


def test_hard_pressed_hosts_do_not_wait() -> None:
    """Below half of the headroom slabs go in the same second: those that leave already first, then the least active."""
    world = World()
    world.lend(40)
    world.donors.second()
    world.activity.values[5] = 1.0
    world.cluster.leave(9)
    world.cluster.own_bytes[0] = 22 * GIB  # 2 GiB left of 6.4
    world.donors.second()
    gone = {slab for slab in range(40) if world.cluster.holder[slab] == NOBODY}
    assert {5, 9} <= gone
    assert len(gone) == world.tally.forced == 5
    assert world.cluster.available_bytes(0) >= 6 * GIB
