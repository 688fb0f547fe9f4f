"""Mapper: hot slabs get memory, cold ones give it up, on record before the engine hears of it, whatever peers do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator

import pytest

from infiniswap.engine.binding import Event, EventKind, SlabState
from infiniswap.policy.mapping import RESIDENCE_MIN_S
from infiniswap.policy.slow_peers import DRAIN_AFTER_S, DRAIN_SLABS_PER_S
from tests.support.mapper_world import SLAB_BYTES, SLABS, World, make_world


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Policy hot, three peers."""
    world = await make_world(monkeypatch)
    yield world
    await world.mapper.stop()


async def test_hot_slabs_are_mapped_and_idle_ones_are_not(world: World) -> None:
    """20 page I/O per second make the difference; one peer owns each slab."""
    world.busy(1, 5)
    world.busy(2, page_outs=90)  # 18 per second
    await world.second()
    assert world.mapped() == [1, 5]
    for slab in (1, 5):
        owner = world.peers.owner(slab)
        assert owner is not None
        assert owner.slot == world.engine.slabs[slab]["peer"]
    assert world.mapper.counts.mapped == 2


async def test_on_record_before_the_engine_maps(world: World) -> None:
    """A device killed at any moment finds every slab that may hold pages."""
    world.busy(4)
    await world.second()
    assert world.trace == ["no page of 4 is remote", "record 4", "map 4"]


async def test_full_peers_are_passed_over(world: World) -> None:
    """Refusals lead to the next peer until all memory is used, then to a pause, not to a loop."""
    world.daemons[0].refuse = True
    world.busy(*range(SLABS))
    await world.second()
    assert len(world.mapped()) == 4
    assert all(len(peer.slabs) <= 2 for peer in world.peers)
    assert world.mapper.counts.no_room >= 1
    calls = sum(len(daemon.calls) for daemon in world.daemons)
    world.clock.now_s -= 0.9
    await world.second()
    assert sum(len(daemon.calls) for daemon in world.daemons) == calls, "no peer is asked again at once"
    world.daemons[0].refuse = False
    for _ in range(20):
        world.busy(*range(SLABS))
        await world.second()
    assert len(world.mapped()) == 6


async def test_no_peers_no_work(world: World) -> None:
    """A device without peers goes on; when one comes up it is used at the next tick."""
    leases = [peer.lease for peer in world.peers]
    for peer in world.peers:
        peer.lease = None
    for _ in range(3):
        world.busy(1)
        await world.second()
    assert world.mapped() == []
    for peer, lease in zip(world.peers, leases, strict=True):
        peer.lease = lease
    world.peers.came_up.set()
    world.busy(1)
    await world.second()
    assert world.mapped() == [1]


async def test_eager_maps_on_first_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for a tick; a touch that finds no room is remembered."""
    world = await make_world(monkeypatch, policy="eager", peers=1)
    for slab in (6, 2, 7):
        world.mapper.handle(Event(EventKind.SLAB_TOUCHED, 0, slab, 0))
    await world.settle()
    assert world.mapped() == [2, 6]
    world.daemons[0].free_bytes = SLAB_BYTES
    for _ in range(3):
        await world.second()
    assert world.mapped() == [2, 6, 7]
    await world.mapper.stop()


async def test_touch_means_nothing_to_other_policies(world: World) -> None:
    """Policy hot waits for the activity."""
    world.mapper.handle(Event(EventKind.SLAB_TOUCHED, 0, 6, 0))
    await world.second()
    assert world.mapped() == []


async def test_never_maps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However hot."""
    world = await make_world(monkeypatch, policy="never")
    world.busy(*range(SLABS))
    await world.second()
    world.mapper.handle(Event(EventKind.SLAB_TOUCHED, 0, 6, 0))
    await world.settle()
    assert world.mapped() == []
    await world.mapper.stop()


async def test_cold_slabs_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time to warm up; the daemon gets its memory back when the engine has drained the slab, not before."""
    world = await make_world(monkeypatch, cold=5.0)
    world.busy(1, 2)
    await world.second()
    for _ in range(20):
        world.busy(2)
        await world.second()
        if world.engine.slabs[1]["state"] == SlabState.DRAINING:
            break
    assert "unmap 1" in world.trace
    assert "unmap 2" not in world.trace
    owner = world.peers.owner(1)
    assert owner is not None, "the peer owns the slab until the engine has let it go"
    daemon = world.daemons[owner.slot]
    assert "unmap 1" not in daemon.calls
    world.mapper.handle(world.engine.drained(1))
    await world.settle()
    assert world.peers.owner(1) is None
    assert "unmap 1" in daemon.calls
    await world.mapper.stop()


async def test_slab_just_mapped_has_time_to_become_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped at its first touch it is cold by every measure, and would be given up at once."""
    world = await make_world(monkeypatch, policy="eager", cold=5.0)
    world.mapper.handle(Event(EventKind.SLAB_TOUCHED, 0, 6, 0))
    await world.settle()
    for _ in range(int(RESIDENCE_MIN_S) - 1):
        await world.second(settle=False)
        assert world.mapped() == [6]
    for _ in range(2):
        await world.second(settle=False)
    assert world.mapped() == []
    await world.mapper.stop()


async def test_cold_slabs_stay_when_nothing_is_configured(world: World) -> None:
    """By default memory is kept."""
    world.busy(1)
    await world.second()
    for _ in range(100):
        await world.second(settle=False)
    assert world.mapped() == [1]


async def test_slab_is_not_mapped_where_it_is_being_given_back(world: World) -> None:
    """The late request to unmap would take the new mapping away."""
    with contextlib.ExitStack() as returning:
        for peer in world.peers:
            returning.enter_context(world.slabs.giving_back(peer.slot, 1))
        world.busy(1)
        await world.second()
        assert world.mapped() == []


async def test_dropped_news_are_made_up_for(world: World) -> None:
    """After an overflow the tables tell which slabs the engine has let go."""
    world.busy(1)
    await world.second()
    owner = world.peers.owner(1)
    assert owner is not None
    world.engine.slabs[1]["state"] = SlabState.UNMAPPED
    world.mapper.handle(Event(EventKind.OVERFLOW, 0, 0, 0))
    await world.settle()
    assert world.peers.owner(1) is None
    assert "unmap 1" in world.daemons[owner.slot].calls


async def test_dropped_touches_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy eager finds the slabs that were written to."""
    world = await make_world(monkeypatch, policy="eager")
    world.busy(3, page_outs=1)
    world.mapper.handle(Event(EventKind.OVERFLOW, 0, 0, 0))
    await world.settle()
    assert world.mapped() == [3]
    await world.mapper.stop()


async def test_retired_peer_is_drained_and_dismissed(world: World) -> None:
    """A peer that is not configured any more keeps its pages until they are safe, then is let go."""
    world.busy(1)
    await world.second()
    owner = world.peers.owner(1)
    assert owner is not None
    owner.retired = True
    world.engine.refuse_moves = errno.EAGAIN  # else it would be taken along
    world.busy(1)
    await world.second()
    assert world.engine.slabs[1]["state"] == SlabState.DRAINING
    assert owner.lease is not None
    world.engine.attached[owner.slot] = 1
    world.mapper.handle(world.engine.drained(1))
    await world.second()
    assert world.engine.attached == {}
    assert not world.mapper.counts.lost


async def test_slow_peer_gets_nothing_and_gives_up_what_it_holds(world: World) -> None:
    """New slabs go to the others; when it stays slow its own go, too, a few a second, until it is quick again."""

    def news(slow: bool) -> None:
        world.mapper.handle(Event(EventKind.PEER_SLOW, 0, 0, int(slow)))

    for peer in world.peers.all[1:]:
        world.mapper.note_slow(peer, True)
    world.daemons[0].free_bytes = SLABS * SLAB_BYTES
    world.busy(*range(4))
    await world.second()
    assert len(world.peers.all[0].slabs) == 4
    news(slow=True)
    await world.second()
    assert not any(entry.startswith("unmap") for entry in world.trace)
    world.clock.now_s += DRAIN_AFTER_S
    await world.second()
    assert sum(entry.startswith("unmap") for entry in world.trace) == DRAIN_SLABS_PER_S
    news(slow=False)
    await world.second()
    assert sum(entry.startswith("unmap") for entry in world.trace) == DRAIN_SLABS_PER_S


async def test_new_slabs_spread_over_all_peers(world: World) -> None:
    """Power of two choices by free memory: six slabs on three peers with room for two each fill them evenly."""
    for _ in range(5):
        world.busy(*range(6))
        await world.second()
    assert sorted(len(peer.slabs) for peer in world.peers) == [2, 2, 2]


async def test_a_burst_is_shared_by_equal_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs that are placed at the same time, on the same figures, go as if they were placed in turn."""
    world = await make_world(monkeypatch, peers=2)
    for daemon in world.daemons:
        daemon.free_bytes, daemon.latency_turns = 100 * SLAB_BYTES, 5
    world.busy(0, 1, 2, 3)
    await world.second()
    assert [len(peer.slabs) for peer in world.peers] == [2, 2]
    await world.mapper.stop()


async def test_a_bad_second_does_not_end_the_mapping(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in one slab's mapping is logged; the worker goes on."""
    real = world.mapper.map_one

    async def broken(slab: int) -> bool:
        if slab == 0:
            raise RuntimeError("mistake")
        return await real(slab)

    monkeypatch.setattr(world.mapper, "map_one", broken)
    world.busy(*range(5))
    await world.second()
    assert world.mapped() == [1, 2, 3, 4]
    assert "slab 0 could not be mapped" in caplog.text
