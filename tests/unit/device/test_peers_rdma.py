"""Peers over RDMA: used where both ends have it, never in the way of TCP, and taken up again when it comes back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from infiniswap.device import rdma_upgrade, tether
from infiniswap.device.daemon_client import HeldLease, PeerError
from infiniswap.device.peer import Peer
from infiniswap.device.rdma_paths import RdmaPath
from infiniswap.shared.messages import Beat, Offered
from infiniswap.shared.path_messages import Region
from tests.support.peers_world import World, make_world
from tests.support.waiting import eventually

PATH = RdmaPath("rxe0/1", "::1", 0, "rxe1/1", "::2", 4096, {3: Region(1, 2)})


class FakeRdma:
    """Paths that work or do not."""

    def __init__(self) -> None:
        self.required = False
        self.working = True
        self.connected = 0
        self.over = False
        self.losses: list[int] = []
        self.tethers: list[socket.socket] = []  # the daemon's ends

    async def connect(self, slot: int, client: object, lease: HeldLease) -> RdmaPath:
        """A path, while it works."""
        del slot, client, lease
        await asyncio.sleep(0)
        if not self.working:
            raise PeerError("this host has no RDMA device")
        self.connected += 1
        return PATH

    def lost(self, slot: int) -> None:
        """Remembered."""
        self.losses.append(slot)

    def forget(self, slot: int) -> None:
        """Nothing is remembered of paths."""
        del slot

    def promising(self, slot: int) -> bool:
        """While it works."""
        del slot
        return self.working


@pytest.fixture
def rdma() -> FakeRdma:
    """RDMA at this end."""
    return FakeRdma()


@pytest.fixture
async def world(rdma: FakeRdma, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A peer with RDMA at both ends; upgrades are quick."""
    monkeypatch.setattr(rdma_upgrade, "UPGRADE_INTERVAL_S", 0.01)
    monkeypatch.setattr(rdma_upgrade, "UPGRADE_AFTER_S", 0.0)
    made = make_world(monkeypatch, rdma)
    offer = made.daemon.offer

    async def with_rdma() -> Offered:
        return replace(await offer(), link_layer="Ethernet")

    made.daemon.offer = with_rdma  # type: ignore[method-assign]
    open_lease = made.daemon.open_lease

    async def lease_with_rdma() -> HeldLease:
        return replace(await open_lease(), rdma=True)

    async def connect(*_: object) -> tuple[socket.socket, None]:
        if rdma.over:
            raise ConnectionRefusedError("the test is over")
        ours, theirs = socket.socketpair()
        rdma.tethers.append(theirs)
        return ours, None

    made.daemon.open_lease = lease_with_rdma  # type: ignore[method-assign]
    monkeypatch.setattr(tether, "connect", connect)
    yield made
    rdma.over = True
    for end in rdma.tethers:
        end.close()
    await made.peers.stop()


def hold(world: World, peer: Peer, slab: int) -> None:
    """The peer has the slab."""
    assert peer.lease is not None
    world.slabs.take(slab, peer.slot)
    world.daemon.leases[peer.lease.lease_id].add(slab)


async def test_rdma_comes_first(world: World, rdma: FakeRdma) -> None:
    """A path takes the place of TCP connections, and the key of a slab goes with each mapping."""
    world.peers.start()
    await world.peers.tried(5)
    assert (world.peer.transport, world.peer.path, world.peer.rdma_error) == ("rdma", PATH, "")
    assert world.engine.attachments == 0
    assert world.peer.key_to(4, Region(0x1000, 7)) == (0x1000, 7)
    with pytest.raises(OSError, match="no RDMA key for slab 4"):
        world.peer.key_to(4, None)


async def test_tcp_takes_its_place(world: World, rdma: FakeRdma) -> None:
    """Without a path the peer is reached over TCP, and it is known why."""
    rdma.working = False
    world.peers.start()
    await world.peers.tried(5)
    assert (world.peer.transport, world.peer.rdma_error) == ("tcp", "this host has no RDMA device")
    assert world.engine.attached == {0: 1}
    assert world.peer.key_to(4, Region(0x1000, 7)) is None


async def test_where_tcp_is_ruled_out(world: World, rdma: FakeRdma) -> None:
    """--transport rdma: the peer stays down, its lease is given back, and it is tried again."""
    rdma.required, rdma.working = True, False
    world.peers.start()
    await eventually(lambda: world.peer.failures >= 3, "tries")
    assert (world.peer.state, world.peer.transport) == ("down", None)
    assert world.engine.attachments == 0
    rdma.working = True
    await eventually(lambda: world.peer.transport == "rdma", "a path")
    await eventually(lambda: len(world.daemon.leases) == 1, "the leases without a path being given back")


async def test_loss_of_a_path(world: World, rdma: FakeRdma) -> None:
    """A lost path is told to who decides on the next one; a lost TCP connection is not."""
    world.peers.start()
    await world.peers.tried(5)
    world.hold(1, 2)
    world.peers.lose(world.peer, "page I/O failed")
    assert world.lost == [{1, 2}]
    assert rdma.losses == [0]
    assert (world.peer.path, world.peer.transport) == (None, None)
    rdma.working = False
    await eventually(lambda: world.peer.transport == "tcp", "TCP")
    world.peers.lose(world.peer, "page I/O failed")
    assert rdma.losses == [0]


async def test_the_daemon_has_lost_its_end(world: World, rdma: FakeRdma) -> None:
    """A heartbeat that says so ends the lease, for pages would come to nothing."""
    world.peers.start()
    await world.peers.tried(5)
    heartbeat = world.daemon.heartbeat

    async def without_rdma(lease: HeldLease) -> Beat:
        beat = await heartbeat(lease)
        return replace(beat, rdma=rdma.losses != [])

    world.daemon.heartbeat = without_rdma  # type: ignore[method-assign]
    await eventually(lambda: rdma.losses == [0], "the loss")
    await eventually(lambda: world.peer.transport == "rdma", "a new path")
    assert world.peer.losses == 1


async def test_the_daemon_dies_while_nothing_is_asked(world: World, rdma: FakeRdma) -> None:
    """The end of the connection beside the path is the end of the path when the daemon does not answer either."""
    world.peers.start()
    await world.peers.tried(5)
    (end,) = rdma.tethers
    world.daemon.reachable = False
    end.close()
    await eventually(lambda: rdma.losses == [0], "the loss")
    world.daemon.reachable = True
    rdma.working = False
    await eventually(lambda: world.peer.transport == "tcp", "TCP")
    assert not world.peers.tethers.tied(world.peer)
    assert all(end.recv(1) == b"" for end in rdma.tethers[1:])


async def test_the_daemon_restarts_with_its_memory(world: World, rdma: FakeRdma) -> None:
    """Held as soon as the connection beside the path ends; reached over a new path, with the regions told anew."""
    world.peers.start()
    await world.peers.tried(5)
    world.engine.grace = True
    hold(world, world.peer, 3)
    lease = world.peer.lease
    world.daemon.reachable = False
    rdma.tethers[0].close()
    await eventually(lambda: world.peer.state == "held", "the hold")
    assert (rdma.losses, world.engine.regions) == ([], {})
    world.engine.attached[0] = 1  # FakeRdma attaches nothing
    world.daemon.reachable = True
    await eventually(lambda: world.peer.state == "up", "the peer")
    assert (world.peer.transport, world.peer.lease is lease) == ("rdma", True)
    assert world.engine.regions == {3: (1, 2)}


async def test_a_path_that_breaks_counts_against_rdma(world: World, rdma: FakeRdma) -> None:
    """Though the peer is only held: one that breaks again and again comes back over TCP."""
    world.peers.start()
    await world.peers.tried(5)
    world.engine.grace = True
    hold(world, world.peer, 3)
    rdma.working = False
    world.engine.hold_peer(0)
    world.peers.hold(world.peer, "page I/O failed: Input/output error")
    assert rdma.losses == [0]
    await eventually(lambda: world.peer.state == "up", "the peer")
    assert (world.peer.transport, world.peer.losses) == ("tcp", 0)


async def test_only_the_connection_ends(world: World, rdma: FakeRdma) -> None:
    """A daemon that answers keeps its pages, and gets another connection."""
    world.peers.start()
    await world.peers.tried(5)
    rdma.tethers[0].close()
    await eventually(lambda: len(rdma.tethers) == 2 and world.peers.tethers.tied(world.peer), "another connection")
    assert (rdma.losses, world.peer.transport) == ([], "rdma")


async def test_rdma_comes_back(world: World, rdma: FakeRdma) -> None:
    """A peer on TCP takes no more slabs, and once it holds none it is reached anew; no loss is counted."""
    rdma.working = False
    world.peers.start()
    await world.peers.tried(5)
    hold(world, world.peer, 5)
    await asyncio.sleep(0.05)
    assert not world.peer.upgrading
    rdma.working = True
    await eventually(lambda: world.peer.upgrading, "the upgrade")
    assert world.peers.up() == []
    await asyncio.sleep(0.05)
    assert world.peer.transport == "tcp"  # pages of slab 5 are there
    world.slabs.let_go(5)
    world.peers.dismiss(world.peer)  # as the mapper does
    await eventually(lambda: world.peer.transport == "rdma", "a path")
    assert (world.peer.losses, world.lost, world.peers.up()) == (0, [], [world.peer])
    await eventually(lambda: len(world.daemon.leases) == 1, "the lease over TCP being given back")


async def test_one_upgrade_at_a_time(world: World, rdma: FakeRdma) -> None:
    """While one peer is drained the others hold what it gives up."""
    first = world.peer
    second = Peer(1, first.address, first.client, world.slabs)
    world.peers.all.append(second)
    rdma.working = False
    world.peers.start()
    await world.peers.tried(5)
    hold(world, first, 1)
    hold(world, second, 2)
    rdma.working = True
    await eventually(lambda: first.upgrading or second.upgrading, "the upgrade")
    await asyncio.sleep(0.05)
    assert first.upgrading is not second.upgrading


async def test_a_slab_taken_by_force_costs_no_other(world: World, rdma: FakeRdma) -> None:
    """The key that was withdrawn broke the path of all; the new one has keys for those that are left."""
    world.engine.grace = True
    world.peers.start()
    await world.peers.tried(5)
    for slab in (3, 4):
        hold(world, world.peer, slab)
    assert world.peer.lease is not None
    world.daemon.leases[world.peer.lease.lease_id].discard(4)
    world.engine.hold_peer(0)
    world.engine.attached[0] = 1  # FakeRdma attaches nothing
    world.peers.hold(world.peer, "page I/O failed: Permission denied")
    await eventually(lambda: world.peer.state == "up", "the peer")
    assert world.engine.gone == [(4, 0)]
    assert world.engine.regions == {3: (1, 2)}
    assert (world.lost, world.peer.losses, rdma.connected) == ([], 0, 2)
