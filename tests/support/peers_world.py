"""Peers over a fake daemon and a fake engine."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from infiniswap.device import attachment
from infiniswap.device import peers as peers_module
from infiniswap.device.attachment import Rdma
from infiniswap.device.daemon_client import HeldLease, LeaseGoneError, PeerError
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.slabs import Slabs
from infiniswap.policy.placement import CoolDown
from infiniswap.shared.address import HostPort
from infiniswap.shared.messages import Beat, Mapped, Offered, Standing
from infiniswap.shared.stream_messages import ActivityAnswer, Ask, Evict, Noticed
from tests.support.clock import SteadyClock
from tests.support.lease import make_lease

now = SteadyClock()  # leases live for fractions of a second here


class FakeDaemon:
    """A daemon behind the client's interface."""

    def __init__(self) -> None:
        self.reachable = True
        self.incarnation = "i"
        self.leases: dict[str, set[int]] = {}
        self.granted = 0
        self.calls: list[str] = []
        self.ttl_s = 0.15
        self.free_bytes = 1 << 30
        self.standing = Standing("1.0")

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if not self.reachable:
            raise PeerError("no answer within 1 s")

    def _slabs(self, lease: HeldLease) -> set[int]:
        if lease.lease_id not in self.leases:
            raise LeaseGoneError("it does not know the lease any more")
        return self.leases[lease.lease_id]

    async def offer(self) -> Offered:
        self._answer("offer")
        return Offered(self.free_bytes, 1 << 30, self.incarnation, standing=self.standing)

    async def open_lease(self) -> HeldLease:
        self._answer("open")
        self.granted += 1
        lease = make_lease(self.granted)
        self.leases[lease.lease_id] = set()
        return replace(lease, ttl_s=self.ttl_s, renewal=[now()])

    async def export_name(self, lease: HeldLease) -> str:
        return lease.export

    async def heartbeat(self, lease: HeldLease) -> Beat:
        self._answer("heartbeat")
        slabs = self._slabs(lease)
        lease.renewed(now())
        return Beat(frozenset(slabs), self.free_bytes, standing=self.standing)

    async def map_slab(self, lease: HeldLease, slab: int) -> Mapped:
        self._answer(f"map {slab}")
        self._slabs(lease).add(slab)
        return Mapped(self.free_bytes)

    async def unmap_slab(self, lease: HeldLease, slab: int) -> None:
        self._answer(f"unmap {slab}")
        self._slabs(lease).discard(slab)

    async def release(self, lease: HeldLease) -> None:
        self._answer("release")
        self.leases.pop(lease.lease_id, None)

    async def open_stream(self, lease: HeldLease) -> None:
        self._slabs(lease)
        raise PeerError("it has no streams")


class FakeListener:
    """Remembers what daemons want back."""

    def __init__(self) -> None:
        self.gone: list[tuple[int, ...]] = []
        self.wanted: list[dict[int, int]] = []

    def evict(self, peer: Peer, notice: Evict) -> Noticed:
        self.wanted.append(dict.fromkeys(notice.slabs, notice.deadline_ms))
        return Noticed(notice.notice, notice.slabs)

    def taken(self, peer: Peer, slabs: tuple[int, ...]) -> None:
        if slabs:
            self.gone.append(slabs)

    def activity(self, peer: Peer, ask: Ask) -> ActivityAnswer:
        return ActivityAnswer(ask.ask, dict.fromkeys(ask.slabs, 1.0))

    def give_up(self, peer: Peer, deadlines_ms: Mapping[int, int]) -> None:
        self.wanted.append(dict(deadlines_ms))


class FakeEngine:
    """Remembers what was attached."""

    def __init__(self) -> None:
        self.attached: dict[int, int] = {}
        self.attachments = 0
        self.refuse = False
        self.grace = False  # peers that break are held
        self.held: set[int] = set()
        self.regions: dict[int, tuple[int, int]] = {}
        self.answers: Callable[[], int] = lambda: 0
        self.gone: list[tuple[int, int]] = []  # slabs that a held peer has no more

    def attach_peer(self, peer: int, read_sock: socket.socket, write_sock: socket.socket) -> None:
        read_sock.close()
        write_sock.close()
        if self.refuse:
            raise OSError(errno.ENOMEM, "no memory")
        assert peer not in self.attached
        self.attachments += 1
        self.attached[peer] = self.attachments

    def detach_peer(self, peer: int) -> None:
        held = peer in self.held
        self.held.discard(peer)
        if self.attached.pop(peer, None) is None and not held:
            raise OSError(errno.ENOTCONN, "not attached")

    def answered_bytes(self, _peer: int) -> int:
        return self.answers()

    def hold_peer(self, peer: int) -> None:
        if not self.grace:
            raise OSError(errno.EAGAIN, "it is not held")
        self.attached.pop(peer, None)
        self.held.add(peer)

    def resume_peer(self, peer: int) -> None:
        if peer not in self.held or peer not in self.attached:
            raise OSError(errno.ENOTCONN, "not held")
        self.held.discard(peer)

    def slab_gone(self, slab: int, peer: int) -> None:
        """Only of a peer that is held."""
        if peer not in self.held:
            raise OSError(errno.ENOTCONN, "not held")
        self.gone.append((slab, peer))

    def set_region(self, slab: int, peer: int, region: tuple[int, int]) -> None:
        assert peer in self.held
        self.regions[slab] = region


@dataclass
class World:
    """One peer, its daemon and what the peers told."""

    daemon: FakeDaemon
    engine: FakeEngine
    peers: Peers
    slabs: Slabs
    cool_down: CoolDown
    listener: FakeListener
    lost: list[frozenset[int]] = field(default_factory=list)
    recorded: int = 0

    @property
    def peer(self) -> Peer:
        """The only one."""
        return self.peers.all[0]

    def hold(self, *slabs: int) -> None:
        """The peer holds these slabs."""
        for slab in slabs:
            self.slabs.take(slab, self.peer.slot)


def make_world(monkeypatch: pytest.MonkeyPatch, rdma: Rdma | None = None) -> World:
    """Peers over fakes; retries are quick."""

    async def connections(*_: object) -> tuple[socket.socket, socket.socket]:
        return socket.socketpair()

    monkeypatch.setattr(attachment, "open_connections", connections)
    monkeypatch.setattr(peers_module, "BACK_OFF_MIN_S", 0.01)
    monkeypatch.setattr(peers_module, "BACK_OFF_MAX_S", 0.03)
    monkeypatch.setattr(peers_module, "HEARTBEAT_RETRY_S", 0.02)
    daemon, engine, slabs, cool_down = FakeDaemon(), FakeEngine(), Slabs(now), CoolDown(now)
    listener = FakeListener()

    def changed() -> None:
        made.recorded += 1

    peers = Peers(
        [Peer(0, HostPort("h", 1), daemon, slabs)],  # type: ignore[arg-type]
        slabs,
        engine,
        cool_down=cool_down,
        changed=changed,
        lost=lambda _peer, slabs: made.lost.append(slabs),
        connect_timeout_s=1.0,
        listener=listener,
        rng=Random(1),
        clock=now,
        rdma=rdma,
    )
    made = World(daemon, engine, peers, slabs, cool_down, listener)
    return made
