"""Slabs that leave a peer go to another with their pages, in the order that no kill can harm, and else are drained."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import pytest

from infiniswap.device.moving import LIMIT_MS, LIMIT_MS_MIN, MOVES_AT_ONCE
from infiniswap.engine.binding import Event, EventKind, SlabState
from infiniswap.policy.mapping import Reason
from infiniswap.shared.stream_messages import Evict
from tests.support.mapper_world import SLAB_BYTES, World, make_world


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Slab 0 is hot, and peer 0 holds it."""
    world = await make_world(monkeypatch)
    for daemon in world.daemons[1:]:
        daemon.free_bytes = 0
    world.busy(0)
    await world.second()
    assert world.slabs.holder(0) == 0
    for daemon in world.daemons[1:]:
        daemon.free_bytes = 2 * SLAB_BYTES
    world.trace.clear()
    yield world
    await world.mapper.stop()
    await world.peers.stop()


def taker(world: World) -> int:
    """The peer that slab 0 is on its way to."""
    return world.engine.moving[0]


def released(slot: int) -> Event:
    """The engine has done with a peer's slab 0."""
    return Event(EventKind.SLAB_RELEASED, slot, 0, 0)


def given_back(world: World, slot: int) -> list[int]:
    """Slabs whose memory a daemon was told to take back."""
    return [int(call.split()[1]) for call in world.daemons[slot].calls if call.startswith("unmap")]


async def begin(world: World, reason: Reason = Reason.EVICTED, limit_ms: int = LIMIT_MS) -> None:
    """The engine copies slab 0."""
    assert world.mapper.moves.begin(0, reason, limit_ms=limit_ms)
    await world.settle()
    assert 0 in world.engine.moving


async def test_from_one_peer_to_another(world: World) -> None:
    """Memory first, then the engine; when it has all pages the record, then the engine; the old memory last of all."""
    await begin(world)
    to = taker(world)
    assert to != 0
    assert world.trace == [f"move 0 to {to}"]
    assert 0 < world.engine.limits_ms[0] < LIMIT_MS
    assert (world.slabs.holder(0), world.slabs.leaving(0)) == (0, Reason.EVICTED)
    assert 0 in world.slabs.asked(to)  # so that no heartbeat gives it back
    world.mapper.handle(world.engine.moved(0))
    assert world.trace[1:] == ["record 0", "settle 0"]
    assert (world.slabs.holder(0), world.slabs.leaving(0)) == (to, None)
    assert (0 in world.slabs.asked(to), 0 in world.slabs.asked(0)) == (False, True)
    await world.settle()
    assert given_back(world, 0) == []
    world.mapper.handle(released(0))
    await world.settle()
    assert given_back(world, 0) == [0]
    assert world.slabs.asked(0) == set()
    assert (world.mapper.counts.moved, world.mapper.counts.released) == (1, 1)
    assert world.mapped() == [0]


async def test_nobody_has_room(world: World) -> None:
    """Then it is drained, as one that is not hot is at once."""
    for daemon in world.daemons:
        daemon.free_bytes = 0
    assert world.mapper.moves.begin(0, Reason.EVICTED)
    await world.settle()
    assert world.trace == ["unmap 0"]
    assert world.slabs.leaving(0) is Reason.EVICTED
    world.mapper.handle(world.engine.drained(0))
    await world.settle()
    assert given_back(world, 0) == [0]


async def test_what_is_not_worth_it(world: World) -> None:
    """A slab that is cold, that nobody holds, that is given up already, or whose time is too short."""
    moves = world.mapper.moves
    assert not moves.begin(0, Reason.EVICTED, limit_ms=LIMIT_MS_MIN - 1)
    assert not moves.begin(1, Reason.EVICTED)
    assert not moves.begin(0, Reason.EVICTED, to=0)
    world.mapper._policy.activity.values[0] = 1.0
    assert not moves.begin(0, Reason.EVICTED)
    world.mapper._policy.activity.values[0] = 100.0
    world.engine.slabs[0]["state"] = SlabState.DRAINING
    assert not moves.begin(0, Reason.EVICTED)
    assert MOVES_AT_ONCE > 1


async def test_the_engine_has_no_place_for_another_move(world: World) -> None:
    """Memory that was mapped for it is given back, and it is drained."""
    world.engine.refuse_moves = errno.EAGAIN
    assert world.mapper.moves.begin(0, Reason.SLOW)
    await world.settle()
    assert world.trace == ["unmap 0"]
    assert sorted(slab for slot in range(3) for slab in given_back(world, slot)) == [0]
    assert not any(world.slabs.asked(slot) for slot in range(3))


@pytest.mark.parametrize(("reason", "trace"), [(Reason.EVICTED, ["unmap 0"]), (Reason.MOVE, [])])
async def test_the_new_peer_refuses(world: World, reason: Reason, trace: list[str]) -> None:
    """What must go is drained, what was only to be moved stays; the peer that failed cools down."""
    await begin(world, reason)
    to = taker(world)
    world.trace.clear()
    world.mapper.handle(world.engine.move_failed(0))
    await world.settle()
    assert world.trace == trace
    assert world.slabs.holder(0) == 0
    assert world.slabs.leaving(0) is (None if reason is Reason.MOVE else reason)
    assert given_back(world, to) == [0]
    assert world.slabs.asked(to) == set()
    assert to not in [candidate.slot for candidate in world.mapper._placer.candidates()]


async def test_the_new_peer_is_lost(world: World) -> None:
    """While pages are copied: the slab is drained, and late news of that peer mean nothing."""
    await begin(world)
    to = taker(world)
    late = Event(EventKind.SLAB_MOVED, to, 0, 3)
    world.trace.clear()
    world.peers.lose(world.peers.all[to], "gone")
    assert [what for what in world.trace if what != "record"] == ["unmap 0"]
    world.mapper.handle(late)
    assert world.slabs.holder(0) == 0
    assert "settle 0" not in world.trace


async def test_the_new_peer_is_lost_before_its_news_are_heard(world: World) -> None:
    """The engine has moved the slab and lost it there: the old peer is told as after a drain."""
    await begin(world)
    to = taker(world)
    event = world.engine.moved(0)
    world.peers.lose(world.peers.all[to], "gone")
    world.engine.slabs[0]["state"], world.engine.slabs[0]["peer"] = SlabState.UNMAPPED, -1
    world.mapper.handle(event)
    assert world.slabs.holder(0) == 0
    world.mapper.handle(released(0))
    await world.settle()
    assert given_back(world, 0) == [0]
    assert world.slabs.asked(0) == set()


@pytest.mark.parametrize("first", ["news", "lease"])
async def test_the_old_peer_is_lost(world: World, first: str) -> None:
    """Whoever notices first: what was copied is at the new peer, and nothing waits for the old one."""
    await begin(world)
    to = taker(world)
    event = world.engine.moved(0)
    if first == "news":
        world.mapper.handle(event)
        world.peers.lose(world.peers.all[0], "gone")
    else:
        world.peers.lose(world.peers.all[0], "gone")
        world.mapper.handle(event)
    await world.settle()
    assert world.slabs.holder(0) == to
    assert world.mapped() == [0]
    assert world.slabs.asked(0) == set()
    world.mapper.handle(released(0))
    await world.settle()
    assert given_back(world, 0) == []


async def test_a_notice_moves_what_is_hot(world: World) -> None:
    """Within its time; said again, it hurries what is under way."""
    peer = world.peers.all[0]
    noticed = world.evictions.evict(peer, Evict(1, (0,), 4000, False))
    assert (noticed.leaving, noticed.unknown) == ((0,), ())
    await world.settle()
    assert world.trace == [f"move 0 to {taker(world)}"]
    assert 0 < world.engine.limits_ms[0] < 4000
    assert world.evictions.counts.evicted == 1


async def test_a_notice_hurries_a_move(world: World) -> None:
    """A slab that moved at leisure is wanted back meanwhile."""
    await begin(world, Reason.MOVE)
    to = taker(world)
    world.evictions.evict(world.peers.all[0], Evict(1, (0,), 1000, False))
    assert world.trace == [f"move 0 to {to}"] * 2
    assert 0 < world.engine.limits_ms[0] < 1000
    assert world.slabs.leaving(0) is Reason.EVICTED


async def test_the_new_peer_wants_its_memory_back(world: World) -> None:
    """While pages are copied there: the move is called off, and the slab drained."""
    await begin(world)
    to = taker(world)
    noticed = world.evictions.evict(world.peers.all[to], Evict(1, (0,), 4000, False))
    assert noticed.leaving == (0,)
    assert world.trace[-1] == "cancel 0"
    world.mapper.handle(world.engine.move_failed(0, errno.ECANCELED))
    await world.settle()
    assert given_back(world, to) == [0]
    assert world.trace[-1] == "unmap 0"


async def test_dropped_news(world: World) -> None:
    """What had moved is settled; what is copied still is called off; what has ended unheard is drained."""
    await begin(world)
    to = taker(world)
    world.mapper.handle(Event(EventKind.OVERFLOW, 0, 0, 0))
    assert world.trace[-1] == "cancel 0"
    world.engine.moved(0)
    world.mapper.handle(Event(EventKind.OVERFLOW, 0, 0, 0))
    assert world.trace[-2:] == ["record 0", "settle 0"]
    assert world.slabs.holder(0) == to
    world.mapper.handle(released(0))
    await asyncio.sleep(0)
    world.busy(1)
    for daemon in world.daemons:
        daemon.free_bytes = 2 * SLAB_BYTES
    await world.second()
    assert world.mapper.moves.begin(1, Reason.PARTING)
    await world.settle()
    del world.engine.moving[1]
    world.mapper.handle(Event(EventKind.OVERFLOW, 0, 0, 0))
    assert world.trace[-1] == "unmap 1"


async def test_stopping_ends_the_search(world: World) -> None:
    """Nobody is asked any more."""
    world.daemons[1].latency_turns = world.daemons[2].latency_turns = 10_000
    assert world.mapper.moves.begin(0, Reason.EVICTED)
    await asyncio.sleep(0)
    await world.mapper.stop()
    assert 0 not in world.engine.moving
