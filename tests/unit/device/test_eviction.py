"""Slabs that donors want back are given up, whatever else goes on with them; the donor is left alone for a while."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infiniswap.device.eviction import DUE_S_MAX
from infiniswap.device.peer import Peer
from infiniswap.engine.binding import SlabState
from infiniswap.policy.mapping import Reason
from infiniswap.shared.stream_messages import ActivityAnswer, Ask, Evict, Noticed
from tests.support.mapper_world import World, make_world


@pytest_asyncio.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Three peers with room for two slabs each, of which three are taken; slabs drain, and do not move."""
    made = await make_world(monkeypatch)
    made.busy(0, 1, 2)
    await made.second()
    assert made.mapped() == [0, 1, 2]
    made.evictions.moves = None
    yield made
    await made.mapper.stop()
    await made.peers.stop()


def owner(world: World, slab: int) -> Peer:
    """Who holds slab."""
    peer = world.peers.owner(slab)
    assert peer is not None
    return peer


def state(world: World, slab: int) -> SlabState:
    """Of the engine's table."""
    return SlabState(int(world.engine.slabs[slab]["state"]))


async def test_a_hot_slab_moves_to_another_donor(world: World) -> None:
    """It drains, its memory is given back, the donor cools down, and another one has the slab in the next second."""
    giver = owner(world, 0)
    assert world.evictions.evict(giver, Evict(1, (0,), 800)) == Noticed(1, (0,))
    assert state(world, 0) is SlabState.DRAINING
    assert world.slabs.leaving(0) is Reason.EVICTED
    assert world.evictions.counts.evicted == world.evictions.counts.notices == 1
    world.mapper.handle(world.engine.drained(0))
    await world.settle()
    assert world.daemons[giver.slot].calls[-1] == "unmap 0"
    world.busy(0, 1, 2)
    await world.second()
    assert owner(world, 0) is not giver


async def test_taken_again_after_it_was_mapped_again(world: World) -> None:
    """A slab that a donor takes, gets back and takes once more is given up twice: the second one is another."""
    giver = owner(world, 0)
    for count in (1, 2):
        world.evictions.taken(giver, (0,))
        world.evictions.taken(giver, (0,))  # told again while it is on its way
        assert (world.evictions.counts.taken, state(world, 0)) == (count, SlabState.DRAINING)
        world.mapper.handle(world.engine.drained(0))
        await world.settle()
        world.engine.slabs["state"][0] = SlabState.MAPPED
        world.slabs.take(0, giver.slot)


async def test_a_notice_again_changes_nothing(world: World) -> None:
    """The same answer, and the slab is given up once."""
    giver = owner(world, 0)
    for number in (1, 1, 2):
        assert world.evictions.evict(giver, Evict(number, (0,), 800)) == Noticed(number, (0,))
    assert world.trace.count("unmap 0") == 1
    assert world.evictions.counts.evicted == 1


async def test_a_notice_that_is_stale(world: World) -> None:
    """The slab went back long ago and lives elsewhere: it stays there."""
    giver = owner(world, 0)
    world.evictions.evict(giver, Evict(1, (0,), 800))
    world.mapper.handle(world.engine.drained(0))
    await world.settle()
    world.busy(0, 1, 2)
    await world.second()
    taker = owner(world, 0)
    assert world.evictions.evict(giver, Evict(1, (0,), 800)) == Noticed(1, (), (0,))
    assert (owner(world, 0), state(world, 0)) == (taker, SlabState.MAPPED)


async def test_a_daemon_that_wants_more_than_it_lent(world: World) -> None:
    """What it does not hold is told so, counted, and looked after by a heartbeat; what it holds is given up."""
    giver = owner(world, 0)
    strange = [slab for slab in (0, 1, 2, 7, 10**9) if slab not in giver.slabs]
    answer = world.evictions.evict(giver, Evict(1, tuple(giver.slabs) + tuple(strange), 800))
    assert answer == Noticed(1, tuple(giver.slabs), tuple(strange))
    assert world.evictions.counts.unknown == len(strange)
    assert giver.wake.is_set()
    for slab in (0, 1, 2):
        assert (state(world, slab) is SlabState.DRAINING) == (slab in giver.slabs)


async def test_nothing_it_holds_costs_it_nothing(world: World) -> None:
    """A notice about nothing leaves a donor usable."""
    giver = owner(world, 0)
    world.evictions.evict(giver, Evict(1, (7,), 800))
    world.evictions.evict(giver, Evict(2, (), 800))
    assert not world.evictions._cool_down.active(giver.slot)
    assert world.evictions._due == {}


async def test_what_the_engine_does_not_let_go_yet_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it does."""
    giver = owner(world, 0)
    refusing = [True]
    unmap = world.engine.unmap_slab

    def may_refuse(slab: int) -> None:
        if refusing:
            raise OSError(errno.EAGAIN, "not now")
        unmap(slab)

    monkeypatch.setattr(world.engine, "unmap_slab", may_refuse)
    assert world.evictions.evict(giver, Evict(1, (0,), 800)).leaving == (0,)
    assert state(world, 0) is SlabState.MAPPED
    refusing.clear()
    world.evictions.step()
    assert state(world, 0) is SlabState.DRAINING
    assert world.evictions._due == {}


async def test_a_slab_that_is_being_mapped_leaves_once_it_is(world: World) -> None:
    """The notice came before the answer to the map request."""
    peer = world.peers.all[0]
    with world.slabs.asking(0, 5):
        assert world.evictions.evict(peer, Evict(1, (5,), 800)).leaving == (5,)
        assert state(world, 5) is SlabState.UNMAPPED
        world.slabs.take(5, 0)
        world.engine.map_slab(5, 0)
    world.evictions.step()
    assert state(world, 5) is SlabState.DRAINING


async def test_a_slab_that_never_came_is_forgotten(world: World) -> None:
    """The map request failed."""
    with world.slabs.asking(0, 5):
        world.evictions.evict(world.peers.all[0], Evict(1, (5,), 800))
        assert world.evictions._due
    world.evictions.step()
    assert world.evictions._due == {}


async def test_a_notice_ends_some_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has long acted by itself."""

    def refuse(_slab: int) -> None:
        raise OSError(errno.EAGAIN, "not now")

    monkeypatch.setattr(world.engine, "unmap_slab", refuse)
    world.evictions.evict(owner(world, 0), Evict(1, (0,), 800))
    world.clock.now_s += DUE_S_MAX + 1
    world.evictions.step()
    assert world.evictions._due == {}


async def test_taken_by_force(world: World) -> None:
    """What is gone is given up here, once; what is not held is no news."""
    giver = owner(world, 0)
    for _ in range(2):
        world.evictions.taken(giver, (0, 7))
    assert state(world, 0) is SlabState.DRAINING
    assert world.evictions.counts.taken == 1
    assert world.evictions._cool_down.active(giver.slot)
    assert world.trace.count("unmap 0") == 1


async def test_activity_is_told_of_what_is_held_there(world: World) -> None:
    """Other slabs, and such as do not exist, are left out."""
    giver = owner(world, 0)
    world.evictions._activity[0] = 12.34567
    asked = Ask(3, (0, *[slab for slab in (1, 2) if slab not in giver.slabs], 7, 10**9), 100)
    assert world.evictions.activity(giver, asked) == ActivityAnswer(3, {0: 12.346})
