"""Peers whose connections broke: the same lease is reached again and again while the data path holds their slabs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from infiniswap.device import holding as holding_module
from tests.support.peers_world import World, make_world
from tests.support.waiting import eventually

DEADLINE_S = 20.0


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A peer that is up and holds slabs 3 and 4, over TCP; an engine that holds peers that break."""
    monkeypatch.setattr(holding_module, "PAUSE_MAX_S", 0.06)
    made = make_world(monkeypatch)
    made.engine.grace = True
    made.daemon.ttl_s = 30.0  # no heartbeat comes between
    made.peers.start()
    await made.peers.tried(DEADLINE_S)
    made.hold(3, 4)
    made.daemon.leases["lease1"] = {3, 4}
    made.daemon.calls.clear()
    yield made
    await made.peers.stop()


def break_it(world: World) -> None:
    """As the data path does it, and tells."""
    world.engine.hold_peer(0)
    world.peers.hold(world.peer, "page I/O failed: Connection reset by peer")


async def test_comes_back_with_its_memory(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The same lease, tried at once; nothing is lost, and meanwhile it gets no slabs."""
    caplog.set_level("INFO")
    lease = world.peer.lease
    break_it(world)
    assert (world.peer.state, world.peers.up(), world.peer.transport) == ("held", [], None)
    await eventually(lambda: world.peer.state == "up", "the peer")
    assert world.peer.lease is lease
    assert (world.lost, world.peer.losses, world.peer.holds) == ([], 0, 1)
    assert world.engine.attached == {0: 2}
    assert world.engine.held == set()
    assert world.peer.slabs == {3, 4}
    assert "2 slabs are kept until it is back" in caplog.text
    assert "is back with its 2 slabs" in caplog.text


async def test_is_tried_again_until_it_answers(world: World) -> None:
    """A daemon that takes a while to start."""
    world.daemon.reachable = False
    break_it(world)
    await eventually(lambda: world.daemon.calls.count("heartbeat") >= 4, "tries")
    assert (world.peer.state, world.lost) == ("held", [])
    world.daemon.reachable = True
    await eventually(lambda: world.peer.state == "up", "the peer")


async def test_lease_that_is_gone_loses_it_at_once(world: World) -> None:
    """Its memory went with it: nobody waits for the end of the grace time, and a new lease is taken."""
    world.daemon.leases.clear()
    break_it(world)
    await eventually(lambda: world.lost == [{3, 4}], "the loss")
    assert world.engine.held == set(), "the data path waits no more"
    await eventually(lambda: world.peer.state == "up", "a new lease")
    assert world.peer.lease is not None
    assert world.peer.lease.lease_id == "lease2"


async def test_slabs_that_it_gave_up_meanwhile_are_told(world: World) -> None:
    """The others count again; a heartbeat follows at once, and tells who listens that some were taken."""
    world.daemon.leases["lease1"].discard(4)
    break_it(world)
    await eventually(lambda: world.listener.gone[:1] == [(4,)], "the news")
    assert (world.peer.state, world.lost) == ("up", [])


async def test_the_grace_time_is_over(world: World) -> None:
    """The data path's news end the tries; a lease that was lost is never used again."""
    world.daemon.reachable = False
    break_it(world)
    await eventually(lambda: world.daemon.calls.count("heartbeat") >= 2, "tries")
    world.engine.held.clear()
    world.peers.lose(world.peer, "page I/O failed: Connection reset by peer")
    assert world.lost == [{3, 4}]
    assert not world.peer.held
    tries = world.daemon.calls.count("heartbeat")
    await asyncio.sleep(0.2)
    assert world.daemon.calls.count("heartbeat") == tries
    world.daemon.reachable = True
    await eventually(lambda: world.peer.state == "up", "a new lease")


async def test_the_data_path_was_quicker(world: World) -> None:
    """The grace time ends while the peer is being reached: what is attached then is let go, and the peer is lost."""
    attach = world.engine.attach_peer

    def too_late(*arguments: object) -> None:
        attach(*arguments)  # type: ignore[arg-type]
        world.engine.held.clear()

    world.engine.attach_peer = too_late  # type: ignore[method-assign, assignment]
    break_it(world)
    await eventually(lambda: world.lost == [{3, 4}], "the loss")
    assert world.engine.attached == {}


async def test_told_twice(world: World) -> None:
    """One task tries, however often it is told."""
    world.daemon.reachable = False
    break_it(world)
    world.peers.hold(world.peer, "again")
    assert world.peer.holds == 1
    assert sum(task.get_name().endswith("is held") for task in asyncio.all_tasks()) == 1
