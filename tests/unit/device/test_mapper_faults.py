"""Mapper: a record that cannot be written, peers and an engine that refuse, break and are lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from infiniswap.device.daemon_client import HeldLease
from infiniswap.device.peer import Peer
from infiniswap.engine.binding import EventKind, SlabState
from infiniswap.shared.messages import Mapped
from tests.support.mapper_world import World, make_world


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Policy hot, three peers."""
    world = await make_world(monkeypatch)
    yield world
    await world.mapper.stop()


async def test_nothing_is_mapped_while_the_record_is_full(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """No memory is asked for only to be given back, it is told once, and slabs are mapped when there is room again."""
    world.record.full = True
    world.busy(4, 5)
    for _ in range(20):
        await world.second()
        world.busy(4, 5)
    assert world.mapped() == []
    calls = [call for daemon in world.daemons for call in daemon.calls]
    assert not any("map" in call for call in calls)
    assert calls.count("offer") < 50, "it backs off"
    assert caplog.text.count("No space left on device") == 1
    world.record.full = False
    for _ in range(12):
        world.busy(4, 5)
        await world.second()
    assert world.mapped() == [4, 5]


async def test_slab_that_its_peer_refuses(world: World) -> None:
    """A slab lost alone leaves its peer's set, its memory is given back, and it is mapped anew, owned by one peer."""
    world.busy(4)
    await world.second()
    (owner,) = [peer for peer in world.peers if peer.slabs]
    event = world.engine.drained(4, EventKind.SLAB_LOST)
    world.busy(4)
    await world.second()
    assert world.mapped() == [], "not before the news of the loss is handled, which would undo it"
    world.mapper.handle(event)
    await world.settle()
    assert (owner.slabs, world.mapper.counts.lost, world.mapper.counts.released) == (set(), 1, 0)
    assert world.trace[-1] == "forget 4"
    assert "unmap 4" in world.daemons[owner.slot].calls
    assert owner.lease is not None, "the rest of the peer lives on"
    world.busy(4)
    await world.second()
    assert world.mapped() == [4]
    found = world.peers.owner(4)
    assert found is not None
    assert found.slot == world.engine.slabs[4]["peer"] != owner.slot, "it cools down"
    world.mapper.handle(event)  # late
    assert world.peers.owner(4) is found


async def test_broken_peer_cools_down_and_is_used_again(world: World) -> None:
    """One peer that fails does not block the others, and a failed peer is used again later."""
    world.daemons[1].broken = True
    world.busy(*range(4))
    await world.second()
    assert len(world.mapped()) == 4
    assert not world.peers.all[1].slabs
    failures = world.daemons[1].failures
    world.busy(*range(6))
    await world.second()
    assert world.daemons[1].failures == failures > 0, "it is left alone for a while"
    world.daemons[1].broken = False
    for _ in range(30):
        world.busy(*range(6))
        await world.second()
    assert len(world.mapped()) == 6
    assert len(world.peers.all[1].slabs) == 2


async def test_lost_slabs_are_mapped_elsewhere_while_hot(world: World) -> None:
    """A peer lost under load costs its slabs their memory for one second."""
    world.busy(0, 1, 2)
    await world.second()
    victim = next(peer for peer in world.peers if peer.slabs)
    gone = set(victim.slabs)
    for slab in gone:
        world.engine.slabs[slab]["state"] = SlabState.UNMAPPED
    world.peers.lose(victim, "page I/O failed")
    world.busy(0, 1, 2)
    await world.second()
    assert set(world.mapped()) == {0, 1, 2}
    assert not victim.slabs
    assert world.mapper.counts.lost == len(gone)


async def test_peer_lost_while_mapping(world: World) -> None:
    """The answer of a lease that died meanwhile is not acted upon."""
    for daemon, peer in zip(world.daemons, world.peers, strict=True):
        real = daemon.map_slab

        async def map_slab(lease: HeldLease, slab: int, real: Any = real, peer: Peer = peer) -> Mapped:
            mapped: Mapped = await real(lease, slab)
            world.peers.lose(peer, "lost just now")
            return mapped

        daemon.map_slab = map_slab  # type: ignore[method-assign]
    world.busy(3)
    await world.second()
    assert world.mapped() == []
    assert not any(line.startswith("map") for line in world.trace)


async def test_engine_that_refuses(world: World) -> None:
    """The slab's memory is given back at the daemon."""
    world.engine.refuse_slabs = True
    world.busy(3)
    await world.second()
    assert world.mapped() == []
    assert all(not peer.slabs for peer in world.peers)
    assert all(not slabs for daemon in world.daemons for slabs in daemon.leases.values())
