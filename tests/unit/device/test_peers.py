"""Peers: leases are taken, renewed, lost and taken anew, whatever the daemon and the engine do meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from infiniswap.device import peers as peers_module
from infiniswap.device.daemon_client import HeldLease
from infiniswap.shared.messages import Offered, Standing
from tests.support.lease import make_lease
from tests.support.peers_world import World, make_world, now
from tests.support.waiting import eventually

DEADLINE_S = 20.0


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Without RDMA."""
    made = make_world(monkeypatch)
    yield made
    await made.peers.stop()


async def test_takes_a_lease_and_keeps_it(world: World) -> None:
    """Heartbeats come often enough that a short-lived lease outlives many of its lives."""
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    assert (world.peer.state, world.peers.up()) == ("up", [world.peer])
    assert (world.engine.attached, world.recorded) == ({0: 1}, 1)
    lease = world.peer.lease
    await eventually(lambda: world.daemon.calls.count("heartbeat") >= 10, "heartbeats")
    assert world.peer.lease is lease
    assert (world.peer.free_bytes, world.peer.total_bytes) == (1 << 30, 1 << 30)


async def test_a_peer_that_lends_nothing_gets_nothing(world: World) -> None:
    """It keeps its lease and what it has; offers and heartbeats tell when it lends again, and its version."""
    world.daemon.standing = Standing("1.0", lending=False)
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    assert (world.peer.state, world.peers.up(), world.peer.standing.word) == ("up", [], "cordoned")
    world.daemon.standing = Standing("1.1", lending=True)
    await eventually(lambda: world.peers.up() == [world.peer], "lending")
    assert world.peer.standing == Standing("1.1")


@pytest.mark.parametrize(
    ("draining", "slabs", "level"), [(True, 0, "INFO"), (True, 1, "WARNING"), (False, 0, "WARNING")]
)
async def test_a_drained_peer_may_end(
    world: World, caplog: pytest.LogCaptureFixture, draining: bool, slabs: int, level: str
) -> None:
    """That it goes is no fault of anybody's, unless it goes too early."""
    caplog.set_level("INFO")
    world.daemon.standing = Standing("1.0", lending=not draining, draining=draining)
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    for slab in range(slabs):
        world.slabs.take(slab, world.peer.slot)
    world.peers.lose(world.peer, "gone")
    (line,) = [record for record in caplog.records if "is lost with" in record.message]
    assert (line.levelname, f"with {slabs} slabs" in line.message) == (level, True)


async def test_unreachable_peer_is_asked_again_for_ever_but_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A daemon that is not there yet is used when it comes."""
    caplog.set_level("INFO")
    world.daemon.reachable = False
    world.peers.start()
    await eventually(lambda: world.peer.failures >= 5, "tries")
    assert (world.peer.state, world.peer.last_error) == ("down", "no answer within 1 s")
    assert caplog.text.count("no answer within 1 s") == 1
    world.daemon.reachable = True
    await eventually(lambda: world.peer.state == "up", "lease")
    assert world.peer.last_error == ""
    assert "is back" in caplog.text


async def test_tried_does_not_wait_for_a_peer_that_hangs(world: World) -> None:
    """The start of the device must not hang on a peer."""

    async def hang() -> Offered:
        await asyncio.sleep(3600)
        raise AssertionError

    world.daemon.offer = hang  # type: ignore[method-assign]
    world.peers.start()
    async with asyncio.timeout(DEADLINE_S):
        await world.peers.tried(0.05)
    assert world.peer.state == "connecting"


async def test_lost_lease_is_dead_for_good(world: World) -> None:
    """The engine's bad news: slabs are told lost, the old lease is given back, a new one taken."""
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    first = world.peer.lease
    world.hold(3, 4)
    world.peers.lose(world.peer, "page I/O failed")
    assert world.lost == [{3, 4}]
    assert world.cool_down.active(0)
    assert world.engine.attached == {}
    world.peers.lose(world.peer, "again")
    assert len(world.lost) == 1, "one loss is told once"
    await eventually(lambda: world.peer.lease is not None, "new lease")
    assert world.peer.lease is not first
    assert list(world.daemon.leases) == ["lease2"], "the old lease was given back"
    assert world.peer.slabs == set()


async def test_daemon_that_forgot_the_lease(world: World) -> None:
    """A restarted daemon knows nothing: its slabs are lost at the next heartbeat."""
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    world.hold(1)
    world.daemon.leases.clear()
    await eventually(lambda: world.lost == [{1}], "loss")
    await eventually(lambda: world.peer.state == "up", "new lease")


async def test_silent_daemon_is_lost_only_when_the_lease_has_run_out(world: World) -> None:
    """A short silence costs nothing; a long one costs the lease, as the daemon has let it go by then."""
    world.daemon.ttl_s = 0.4
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    world.daemon.reachable = False
    failures = world.peer.failures
    await eventually(lambda: world.peer.failures > failures, "failure")
    assert world.peer.lease is not None
    world.daemon.reachable = True
    await eventually(lambda: world.peer.last_error == "", "recovered heartbeat")
    assert world.lost == []
    world.daemon.reachable = False
    await eventually(lambda: world.peer.lease is None, "loss")
    assert len(world.lost) == 1


async def test_pages_renew_a_lease_whose_heartbeats_are_shut_out(world: World) -> None:
    """As long as it answers page I/O a daemon is not lost, however long no heartbeat gets through; then it is."""
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    lease = world.peer.lease
    assert lease is not None
    moving = itertools.count(1)
    world.engine.answers = lambda: next(moving)
    world.daemon.reachable = False
    failed = world.daemon.calls.count("heartbeat")
    began_s = now()
    await eventually(lambda: now() - began_s > 5 * lease.ttl_s, "many lives")
    assert (world.peer.lease, world.lost) == (lease, [])
    assert world.daemon.calls.count("heartbeat") > failed
    world.engine.answers = lambda: 1
    await eventually(lambda: world.peer.losses == 1, "the loss")


async def test_a_slab_missing_at_the_daemon_was_taken_by_force(world: World) -> None:
    """It is given up here too, and the others stay."""
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    assert world.peer.lease is not None
    world.daemon.leases[world.peer.lease.lease_id].add(1)
    world.hold(1, 2)
    await eventually(lambda: (2,) in world.listener.gone, "loss")
    assert world.lost == []


async def test_stray_slab_is_given_back(world: World) -> None:
    """Memory mapped by a request whose answer was lost does not leak; what is being mapped is left alone."""
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    assert world.peer.lease is not None
    slabs = world.daemon.leases[world.peer.lease.lease_id]
    with world.slabs.asking(0, 8):
        slabs |= {7, 8}
        await eventually(lambda: slabs == {8}, "stray slab given back")
    assert world.lost == []


async def test_engine_that_refuses_the_connections(world: World) -> None:
    """The lease is given back and tried again later; it is not leaked at the daemon."""
    world.engine.refuse = True
    world.peers.start()
    await eventually(lambda: world.daemon.granted >= 3, "tries")
    world.engine.refuse = False
    await eventually(lambda: world.peer.state == "up", "lease")
    assert len(world.daemon.leases) == 1


async def test_unexpected_failure_does_not_end_the_peer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake of ours is logged, and the peer is used again."""
    offer = world.daemon.offer

    async def broken() -> Offered:
        world.daemon.offer = offer  # type: ignore[method-assign]
        raise RuntimeError("mistake")

    world.daemon.offer = broken  # type: ignore[method-assign]
    world.peers.start()
    await eventually(lambda: world.peer.state == "up", "lease")
    assert "unexpected failure" in caplog.text


async def test_all_leases_are_given_back(world: World) -> None:
    """The dead ones that could not be told of before too."""
    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    await world.peers.stop()
    world.peer.dead_leases.append(make_lease(9))
    world.daemon.leases["lease9"] = set()
    await world.peers.release_all()
    assert world.daemon.leases == {}
    assert world.peer.lease is None


async def test_giving_back_has_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that hangs does not keep the device from ending."""
    monkeypatch.setattr(peers_module, "CLOSE_TIMEOUT_S", 0.05)

    async def hang(lease: HeldLease) -> None:
        assert lease is not None
        await asyncio.sleep(3600)

    world.peers.start()
    await world.peers.tried(DEADLINE_S)
    await world.peers.stop()
    world.daemon.release = hang  # type: ignore[method-assign]
    async with asyncio.timeout(DEADLINE_S):
        await world.peers.release_all()


async def test_retired_peer_is_kept_until_it_is_empty(world: World) -> None:
    """A peer that is not configured any more gets no slabs, keeps its lease while it holds some, then is let go."""
    peer = world.peer
    peer.retired = True
    peer.lease = await world.daemon.open_lease()
    world.engine.attached[0] = 1
    world.hold(5)
    world.daemon.leases[peer.lease.lease_id].add(5)
    world.peers.start()
    assert world.peers.up() == []
    await eventually(lambda: "heartbeat" in world.daemon.calls, "heartbeat")
    world.peers.dismiss(peer)
    assert peer.lease is not None, "it still holds a slab"
    world.slabs.let_go(5)
    world.peers.dismiss(peer)
    await eventually(lambda: not world.daemon.leases, "lease given back")
    assert (world.engine.attached, world.lost, world.daemon.granted) == ({}, [], 1)


async def test_slab_being_given_back_is_not_asked_for_twice(world: World) -> None:
    """Two requests to unmap one slab could hit a mapping made in between."""
    lease = await world.daemon.open_lease()
    with world.slabs.giving_back(0, 4):
        await world.peer.give_back(lease, 4)
    assert "unmap 4" not in world.daemon.calls
    await world.peer.give_back(lease, 4)
    assert "unmap 4" in world.daemon.calls
    assert not world.slabs.is_given_back(0, 4)


async def test_owner(world: World) -> None:
    """A slab's owner is found by the slab."""
    world.hold(2)
    assert world.peers.owner(2) is world.peer
    assert world.peers.owner(3) is None
