"""Slabs move to peers that hold far fewer, slowly, cheaply and never to and fro; the mapper carries it out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import numpy as np
import pytest

from infiniswap.engine.binding import Event, EventKind
from infiniswap.policy.rebalance import MOVE_INTERVAL_S, SETTLED_S, Rebalance, Share, Use, cheapest
from tests.support.clock import FakeClock
from tests.support.mapper_world import SLAB_BYTES, World, make_world

ROOM = 100 * SLAB_BYTES


@pytest.fixture
def clock() -> FakeClock:
    """Some time after all peers were attached."""
    clock = FakeClock()
    clock.now_s = 1000.0
    return clock


def share(slot: int, slabs: int, free_slabs: int = 100, attached_s: float = 0.0) -> Share:
    """A peer."""
    return Share(slot, slabs, free_slabs * SLAB_BYTES, attached_s)


@pytest.mark.parametrize(
    ("giver", "taker", "moves"),
    [
        (share(0, 3, 97), share(1, 0), True),
        (share(0, 2, 98), share(1, 0), False),  # a difference of two is none
        (share(0, 8, 92), share(1, 4), False),  # twice as many is not much more
        (share(0, 9, 91), share(1, 4), True),
        (share(0, 9, 99), share(1, 0), False),  # placement would rather send it back
        (share(0, 9, 91), share(1, 0, attached_s=1000 - SETTLED_S + 1), False),
        (share(0, 9, 91, attached_s=1000 - SETTLED_S + 1), share(1, 0), False),
    ],
)
def test_pair(clock: FakeClock, giver: Share, taker: Share, moves: bool) -> None:
    """Only between peers that have been there for a while, with very different shares, and where there is more room."""
    rebalance = Rebalance(SLAB_BYTES, Random(1), clock)
    for shares in ([giver, taker], [taker, giver]):
        assert rebalance.pair(shares) == ((giver, taker) if moves else None)
    assert rebalance.pair([giver]) is None


def test_rate(clock: FakeClock) -> None:
    """A look every MOVE_INTERVAL_S, however long nobody looked."""
    rebalance = Rebalance(SLAB_BYTES, Random(1), clock)
    looks = 0
    for _ in range(60):
        clock.now_s += 1
        looks += rebalance.due()
    assert looks == 60 / MOVE_INTERVAL_S
    clock.now_s += 600
    assert [rebalance.due(), rebalance.due()] == [True, False]


@pytest.mark.parametrize("peers", [2, 3, 8])
def test_it_comes_to_rest(clock: FakeClock, peers: int) -> None:
    """From one peer that holds everything to shares that differ by no more than twice, and then nothing moves."""
    rebalance = Rebalance(SLAB_BYTES, Random(2), clock)
    slabs = [32] + [0] * (peers - 1)
    moves, last = 0, 0
    for step in range(4000):
        pair = rebalance.pair([share(slot, held, 100 - held) for slot, held in enumerate(slabs)])
        if pair is not None:
            giver, taker = pair
            slabs[giver.slot] -= 1
            slabs[taker.slot] += 1
            moves, last = moves + 1, step
    assert moves <= 32
    assert last < 2000
    assert all(a <= 2 * b or a - b < 3 for a in slabs for b in slabs)


def test_cheapest() -> None:
    """The least read of those that are written to; what nobody writes would stay on the backup, and is left."""
    assert cheapest([Use(1, 0, 0), Use(2, 50, 10), Use(3, 5, 1), Use(4, 5, 9)]) == 4
    assert cheapest([Use(1, 0, 0)]) is None
    assert cheapest([]) is None


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Two peers; the first holds six slabs that are written to, the second has just come back."""
    world = await make_world(monkeypatch, policy="eager", peers=2)
    returning = world.peers.all[1]
    lease, returning.lease = returning.lease, None
    world.daemons[0].free_bytes = ROOM
    for slab in range(6):
        world.busy(slab)
        world.mapper.handle(Event(EventKind.SLAB_TOUCHED, 0, slab, 0))
    await world.second()
    assert len(world.peers.all[0].slabs) == 6
    returning.lease, world.daemons[1].free_bytes = lease, ROOM
    for peer, daemon in zip(world.peers, world.daemons, strict=True):
        peer.attached_s, peer.free_bytes = world.clock.now_s, daemon.free_bytes
    yield world
    await world.mapper.stop()


async def pass_time(world: World, seconds: int) -> None:
    """Seconds in which all six slabs are written to, slab 4 read least; the engine copies what is to move."""
    for _ in range(seconds):
        world.busy(*range(6))
        world.engine.slabs["page_ins"][:6] += np.array([9, 9, 9, 9, 1, 9], np.uint64)
        before = len(world.trace)
        await world.second()
        for line in world.trace[before:]:
            if line.startswith("move "):
                slab = int(line.split()[1])
                giver = world.slabs.holder(slab)
                assert giver is not None
                world.mapper.handle(world.engine.moved(slab))
                world.mapper.handle(Event(EventKind.SLAB_RELEASED, giver, slab, 0))
                await world.settle()
        for peer, daemon in zip(world.peers, world.daemons, strict=True):
            peer.free_bytes = daemon.free_bytes


async def test_a_returning_peer_is_used_again(world: World) -> None:
    """Nothing for half a minute, then the least read slab first, a few a minute, until shares are alike; then rest."""
    first, returning = world.peers.all
    await pass_time(world, int(SETTLED_S) - 1)
    assert not returning.slabs
    await pass_time(world, int(MOVE_INTERVAL_S) + 1)
    assert returning.slabs == {4}
    await pass_time(world, 300)
    assert len(returning.slabs) == 2
    assert len(first.slabs) == 4
    assert world.mapper.counts.moved == 2


async def test_it_goes_where_it_is_meant_to(world: World) -> None:
    """To the peer that holds far fewer and nowhere else, with its pages; one that has no room leaves it where it is."""
    while "move 0 to 1" not in world.trace:
        world.busy(*range(6))
        await world.second()
    world.mapper.handle(world.engine.moved(0))
    assert world.peers.all[1].slabs == {0}
    world.mapper.handle(Event(EventKind.SLAB_RELEASED, 0, 0, 0))
    world.daemons[1].free_bytes = 0
    world.trace.clear()
    for _ in range(60):
        world.busy(*range(6))
        await world.second()
    assert not world.trace
    assert world.peers.all[1].slabs == {0}


@pytest.mark.parametrize("trouble", ["cool-down", "upgrading", "draining", "idle"])
async def test_not_now(world: World, trouble: str) -> None:
    """While a peer is in trouble or drained, while a slab drains, and while nobody writes, all stays where it is."""
    if trouble == "upgrading":
        world.peers.all[1].upgrading = True
        world.slabs.take(7, 1)
    elif trouble == "draining":
        world.engine.unmap_slab(7)
    for _ in range(12):
        if trouble == "cool-down":
            world.mapper._cool_down.start(1)
        if trouble == "idle":
            for _ in range(10):
                await world.second()
        else:
            await pass_time(world, 10)
    assert world.mapper.counts.moved == 0
