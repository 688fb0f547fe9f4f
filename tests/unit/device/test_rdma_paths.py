"""The device's end of RDMA paths: the right address, a path tried before it is used, and TCP for all that fails."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from infiniswap.device import rdma_paths as initiator_module
from infiniswap.device.config import DeviceConfig, load_config
from infiniswap.device.daemon_client import (
    HeldLease,
    LeaseGoneError,
    PeerError,
    RefusedError,
)
from infiniswap.device.rdma_paths import FAILURES_MAX, PAUSE_MAX_S, PAUSE_MIN_S, STABLE_S, Initiator, local_address
from infiniswap.engine.binding import Event, EventKind
from infiniswap.engine.rdma_values import RdmaConnection, RdmaPort
from infiniswap.shared.messages import OpenedPath
from infiniswap.shared.path_messages import LinkLayer, PathEnd, QueuePair, Region
from tests.support.fake_rdma_host import FakeRdmaHost
from tests.support.lease import make_lease
from tests.support.waiting import eventually

IPV4 = "0000:0000:0000:0000:0000:ffff:0a63:0001"  # 10.99.0.1
IPV6 = "fd00:0000:0000:0000:0000:0000:0000:0001"
PEER_TIMEOUT_MS = 100


class FakeEngine:
    """Remembers what it was told; paths are ready at once unless told otherwise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.connections: list[RdmaConnection] = []
        self.open_error: OSError | None = None
        self.connect_error: OSError | None = None
        self.news: list[EventKind] = [EventKind.PEER_READY]
        self.port = RdmaPort(mtu_bytes=1024, lid=7, reads_max=128, queue_depth=128, inline_bytes=512)
        self.is_open = False
        self.hold = threading.Event()
        self.hold.set()
        self.opening = threading.Event()
        self.tell: Callable[[Event], None] = lambda _event: None

    def rdma_open(self, name: str, port: int, poll_us: int) -> RdmaPort:
        """Once."""
        self.opening.set()
        self.hold.wait(60)
        self.calls.append(f"open {name}/{port} {poll_us}")
        if self.open_error is not None:
            raise self.open_error
        assert not self.is_open
        self.is_open = True
        return self.port

    def rdma_close(self) -> None:
        """Only what is open."""
        assert self.is_open
        self.is_open = False
        self.calls.append("close")

    def rdma_prepare(self, peer: int) -> tuple[int, ...]:
        """Numbers of the peer's own."""
        assert self.is_open
        self.calls.append(f"prepare {peer}")
        return 100 + 2 * peer, 101 + 2 * peer

    def rdma_connect(self, peer: int, connection: RdmaConnection) -> None:
        """Keeps the connection."""
        if self.connect_error is not None:
            raise self.connect_error
        self.calls.append(f"connect {peer}")
        self.connections.append(connection)

    def attach_peer_rdma(self, peer: int) -> None:
        """News follow."""
        self.calls.append(f"attach {peer}")
        for kind in self.news:
            asyncio.get_running_loop().call_soon(self.tell, Event(kind, peer, 0, 0))

    def detach_peer(self, peer: int) -> None:
        """Whether it was attached or not."""
        self.calls.append(f"detach {peer}")


class FakeClient:
    """A daemon that answers for one GID family or all."""

    def __init__(self) -> None:
        self.asked: list[PathEnd] = []
        self.closed = 0
        self.family: int | None = None
        self.link_layer = LinkLayer.ETHERNET
        self.lid = 0
        self.mtu_bytes = 4096

    async def open_rdma(self, lease: HeldLease, end: PathEnd) -> OpenedPath:
        """Its end, at an address of the family that was asked from."""
        del lease
        self.asked.append(end)
        mapped = end.gid.ipv4_mapped is not None
        if self.family is not None and (self.family == 4) is not mapped:
            raise RefusedError("it refused: no GID of that family", 409)
        gid = ipaddress.IPv6Address("::ffff:10.99.0.2" if mapped else "fd00::2")
        pairs = (QueuePair(5, 50), QueuePair(6, 60))
        there = PathEnd(self.link_layer, gid, self.lid, self.mtu_bytes, 16, pairs)
        return OpenedPath(there, "rxe7/1", Region(0x1000, 9), {3: Region(0x2000, 10)})

    async def export_name(self, lease: HeldLease) -> str:
        return lease.export

    async def close_rdma(self, lease: HeldLease) -> None:
        """Counted."""
        del lease
        self.closed += 1


@dataclass
class World:
    """A host with one RDMA port, and what the initiator did with it."""

    host: FakeRdmaHost
    config: DeviceConfig
    engine: FakeEngine = field(default_factory=FakeEngine)
    client: FakeClient = field(default_factory=FakeClient)
    now_s: float = 1000.0
    made: list[Initiator] = field(default_factory=list)
    lease: HeldLease = field(default_factory=lambda: replace(make_lease(1), rdma=True, address=("10.99.0.2", 7402)))

    def initiator(self, **options: object) -> Initiator:
        """A new one over this host; options change the configuration."""
        config = replace(self.config, **options)  # type: ignore[arg-type]
        made = Initiator(self.engine, config, root=self.host.root, clock=lambda: self.now_s)
        self.engine.tell = made.handle
        self.made.append(made)
        return made


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """rxe0 on the network 10.99.0.0, by IPv4 and IPv6."""
    monkeypatch.setattr(initiator_module, "READY_GRACE_S", 0.05)
    monkeypatch.setattr(initiator_module, "WATCH_INTERVAL_S", 0.01)

    async def local(_remote: object) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Address("10.99.0.1")

    monkeypatch.setattr(initiator_module, "local_address", local)
    (tmp_path / "host").mkdir()
    host = FakeRdmaHost(tmp_path / "host")
    host.add_device("rxe0", parent="eth0")
    host.add_port("rxe0", gids={0: IPV6, 1: IPV4}, netdev="eth0")
    given = {"size": "8MiB", "backup": str(tmp_path / "b"), "peer_timeout_ms": PEER_TIMEOUT_MS}
    made = World(host, load_config("vol", given))
    yield made
    for one in made.made:
        await one.stop()


async def test_a_path_is_made_and_tried(world: World) -> None:
    """Queue pairs, exchange, connection and attachment in that order, with the smaller MTU and what each end told."""
    path = await world.initiator().connect(2, world.client, world.lease)
    assert world.engine.calls == ["open rxe0/1 50", "prepare 2", "connect 2", "attach 2"]
    (asked,) = world.client.asked
    assert (str(asked.gid.ipv4_mapped), asked.lid, asked.mtu_bytes, asked.reads_max) == ("10.99.0.1", 7, 1024, 16)
    assert [pair.number for pair in asked.queue_pairs] == [104, 105]
    (made,) = world.engine.connections
    assert made.gid == ipaddress.IPv6Address("::ffff:10.99.0.2").packed
    assert (made.gid_index, made.global_route, made.mtu_bytes, made.reads_max) == (1, True, 1024, 16)
    assert (made.number, made.psn) == ((5, 6), (50, 60))
    assert made.own_psn == tuple(pair.psn for pair in asked.queue_pairs)
    assert (made.probe_address, made.probe_rkey) == (0x1000, 9)
    assert path.regions == {3: Region(0x2000, 10)}
    assert str(path) == "rxe0/1 ::ffff:10.99.0.1 [1] to rxe7/1 ::ffff:10.99.0.2, MTU 1024"


async def test_acknowledgement_time_fits_the_peer_timeout(world: World) -> None:
    """All tries of a lost packet end before the peer time-out does."""
    await world.initiator().connect(0, world.client, world.lease)
    (made,) = world.engine.connections
    assert 4.096e-3 * 2**made.ack_timeout * (1 + made.retries) <= PEER_TIMEOUT_MS


async def test_the_port_is_opened_once(world: World) -> None:
    """Several peers share it, also when they come at the same time."""
    initiator = world.initiator()
    await asyncio.gather(*(initiator.connect(slot, world.client, world.lease) for slot in range(3)))
    assert [call for call in world.engine.calls if call.startswith("open")] == ["open rxe0/1 50"]
    assert initiator.port == "rxe0/1"


async def test_the_other_address_family(world: World) -> None:
    """A daemon without an IPv4 GID is asked by IPv6."""
    world.client.family = 6
    await world.initiator().connect(0, world.client, world.lease)
    assert [end.gid.ipv4_mapped is None for end in world.client.asked] == [False, True]
    assert world.engine.connections[0].gid_index == 0


async def test_a_given_gid_is_the_only_one(world: World) -> None:
    """--rdma-gid-index: no other is tried."""
    world.client.family = 4
    with pytest.raises(PeerError, match="no GID of that family"):
        await world.initiator(rdma_gid_index=0).connect(0, world.client, world.lease)
    assert len(world.client.asked) == 1


async def test_infiniband_by_lid(world: World) -> None:
    """Within a subnet InfiniBand is addressed by LID, without a global routing header; between subnets with one."""
    world.host.remove("rxe0")
    world.host.add_device("mlx5_0")
    gid = "fd00:0000:0000:0000:0002:c903:0000:0001"
    world.host.add_port("mlx5_0", link_layer="InfiniBand", lid="0x7", gids={0: gid}, kinds={0: "IB/RoCE v1"})
    world.client.link_layer, world.client.lid = LinkLayer.INFINIBAND, 11
    await world.initiator().connect(0, world.client, world.lease)
    (made,) = world.engine.connections
    assert (made.lid, made.global_route) == (11, False)


async def test_link_layers_do_not_mix(world: World) -> None:
    """InfiniBand there and Ethernet here is no path, and the daemon's end is closed again."""
    world.client.link_layer = LinkLayer.INFINIBAND
    with pytest.raises(PeerError, match="InfiniBand"):
        await world.initiator().connect(0, world.client, world.lease)
    assert world.client.closed == 1


@pytest.mark.parametrize(
    ("news", "what"),
    [
        ([EventKind.PEER_LOST], "no page comes through"),
        ([EventKind.PEER_READY, EventKind.PEER_LOST], "no page comes through"),
        ([], "in time"),
    ],
)
async def test_a_path_that_carries_nothing(world: World, news: list[EventKind], what: str) -> None:
    """Lost, lost as soon as it was ready, or silent: no path, and nothing of it is left at either end."""
    world.engine.news = news
    with pytest.raises(PeerError, match=what):
        await world.initiator().connect(1, world.client, world.lease)
    assert world.engine.calls[-1] == "detach 1"
    assert world.client.closed == 1


async def test_what_cannot_be_connected(world: World) -> None:
    """The kernel's reason is told."""
    world.engine.connect_error = OSError(errno.ENETUNREACH, "RDMA path to peer 0: Network is unreachable")
    with pytest.raises(PeerError, match="Network is unreachable"):
        await world.initiator().connect(0, world.client, world.lease)


async def test_no_port_no_path(world: World) -> None:
    """Without a device, with the port down, or without libibverbs there is a reason, and the daemon is not asked."""
    world.engine.open_error = OSError(errno.ENOENT, "libibverbs is not installed")
    with pytest.raises(PeerError, match="libibverbs is not installed"):
        await world.initiator().connect(0, world.client, world.lease)
    (world.host.root / "sys/class/infiniband/rxe0/ports/1/state").write_text("1: DOWN\n")
    with pytest.raises(PeerError, match="rxe0/1 is DOWN"):
        await world.initiator().connect(0, world.client, world.lease)
    world.host.remove("rxe0")
    with pytest.raises(PeerError, match="no RDMA device"):
        await world.initiator().connect(0, world.client, world.lease)
    with pytest.raises(PeerError, match="offers no RDMA"):
        await world.initiator().connect(0, world.client, replace(world.lease, rdma=False))
    told = replace(world.lease, rdma=False, no_rdma="pyverbs is not installed")
    with pytest.raises(PeerError, match="offers no RDMA: pyverbs is not installed"):
        await world.initiator().connect(0, world.client, told)
    assert world.client.asked == []


async def test_a_device_being_removed_is_let_go(world: World) -> None:
    """Its removal waits for us: the port is closed by itself, and opened anew when the device is back."""
    initiator = world.initiator()
    initiator.start()
    await initiator.connect(0, world.client, world.lease)
    world.host.close("rxe0")
    await eventually(lambda: not world.engine.is_open)
    assert initiator.port is None
    assert not initiator.promising(0)
    world.host.remove("rxe0")
    world.host.add_link("rxe0", "eth0")
    assert initiator.promising(0)
    await initiator.connect(0, world.client, world.lease)
    assert world.engine.is_open


async def test_a_port_that_fails_is_closed(world: World) -> None:
    """RDMA_LOST: it is opened anew for the next path."""
    initiator = world.initiator()
    await initiator.connect(0, world.client, world.lease)
    initiator.handle(Event(EventKind.RDMA_LOST, 0, 0, errno.ENODEV))
    await eventually(lambda: not world.engine.is_open)
    await initiator.connect(0, world.client, world.lease)
    assert world.engine.calls.count("open rxe0/1 50") == 2


async def refusal(initiator: Initiator, world: World) -> str | None:
    """Why there is no path; None: there is one."""
    try:
        await initiator.connect(0, world.client, world.lease)
    except PeerError as error:
        return str(error)
    return None


async def test_a_path_that_is_lost_again_and_again_rests(world: World) -> None:
    """The first loss costs nothing, each further one twice the pause of the one before; a stable path forgives all."""
    initiator = world.initiator()
    pauses = []
    for _ in range(9):
        await initiator.connect(0, world.client, world.lease)
        initiator.lost(0)
        before_s = world.now_s
        while (said := await refusal(initiator, world)) is not None:
            assert "rests" in said
            world.now_s += 1
        pauses.append(world.now_s - before_s)
    assert pauses[0] == 0
    assert pauses[1] == 2 * PAUSE_MIN_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S
    assert not initiator.promising(0)
    world.now_s += STABLE_S
    initiator.lost(0)
    assert initiator.promising(0)


async def test_where_tcp_is_ruled_out_nothing_rests(world: World) -> None:
    """--transport rdma: the next try comes when the peer's own back-off says so."""
    initiator = world.initiator(transport="rdma")
    assert initiator.required
    for _ in range(3):
        await initiator.connect(0, world.client, world.lease)
        initiator.lost(0)
    await initiator.connect(0, world.client, world.lease)


async def test_stop_waits_for_the_thread(world: World) -> None:
    """The engine may be closed after stop(): no thread of ours is in it any more."""
    world.engine.hold.clear()
    initiator = world.initiator()
    connecting = asyncio.create_task(initiator.connect(0, world.client, world.lease))
    await eventually(world.engine.opening.is_set, "the thread being in the engine")
    connecting.cancel()
    stopping = asyncio.create_task(initiator.stop())
    await asyncio.sleep(0.02)
    assert not stopping.done()
    world.engine.hold.set()
    await stopping
    assert world.engine.calls == ["open rxe0/1 50"]
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_local_address() -> None:
    """By which this host reaches another, without a packet; nothing for what cannot be reached."""
    assert await local_address(("127.0.0.1", 9)) == ipaddress.ip_address("127.0.0.1")
    assert await local_address(("no.such.host.invalid", 9)) is None


async def test_a_port_that_cannot_be_opened_costs_nobody_his_slabs(world: World) -> None:
    """What sysfs shows and cannot be used is not promising for long, and after a few tries not at all."""
    world.engine.open_error = OSError(errno.ENOMEM, "cannot pin the buffers: raise the memlock limit")
    initiator = world.initiator()
    tries = 0
    while world.now_s < 1000 + 10 * PAUSE_MAX_S:
        if initiator.promising(0):
            tries += 1
            with pytest.raises(PeerError, match="memlock"):
                await initiator.connect(0, world.client, world.lease)
            assert not initiator.promising(0)
        world.now_s += 1
    assert tries == FAILURES_MAX


async def test_a_lease_that_is_gone_says_nothing_of_rdma(world: World) -> None:
    """A daemon that was restarted is reached over RDMA as soon as it grants another lease."""
    initiator = world.initiator()

    async def gone(lease: HeldLease, end: PathEnd) -> OpenedPath:
        raise LeaseGoneError("it does not know the lease any more")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.client, "open_rdma", gone)
        with pytest.raises(LeaseGoneError):
            await initiator.connect(0, world.client, world.lease)
    await initiator.connect(0, world.client, world.lease)


async def test_an_answer_that_does_not_come(world: World) -> None:
    """The daemon may have made its end all the same: it is told to give it up, and no other GID is tried."""

    async def silent(lease: HeldLease, end: PathEnd) -> OpenedPath:
        raise PeerError("no answer within 3 s")

    world.client.open_rdma = silent  # type: ignore[method-assign]
    with pytest.raises(PeerError, match="no answer"):
        await world.initiator().connect(0, world.client, world.lease)
    assert world.client.closed == 1
    assert world.engine.calls == ["open rxe0/1 50", "prepare 0"]


async def test_news_after_the_stop(world: World) -> None:
    """A port that fails while the device stops is left to the engine's end."""
    initiator = world.initiator()
    await initiator.connect(0, world.client, world.lease)
    await initiator.stop()
    initiator.handle(Event(EventKind.RDMA_LOST, 0, 0, errno.ENODEV))
    await asyncio.sleep(0.01)
    assert world.engine.is_open
