"""A mapper over fake peers and a fake engine."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pytest

from infiniswap.device import mapper as mapper_module
from infiniswap.device.daemon_client import HeldLease, PeerError, RefusedError
from infiniswap.device.eviction import Evictions
from infiniswap.device.mapper import Mapper
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import SLAB_DTYPE, Event, EventKind, SlabState
from infiniswap.policy.activity import Thresholds
from infiniswap.policy.mapping import MappingPolicy
from infiniswap.policy.placement import CoolDown
from infiniswap.shared.address import HostPort
from infiniswap.shared.messages import Mapped, Offered
from tests.support.clock import FakeClock
from tests.support.peers_world import FakeDaemon, FakeEngine

SLAB_BYTES = 1 << 20
SLABS = 8


class SlabDaemon(FakeDaemon):
    """A daemon with little memory, which may refuse or break."""

    broken = False
    refuse = False
    failures = 0
    latency_turns = 0  # of the event loop, before it answers

    async def _travel(self) -> None:
        for _ in range(self.latency_turns):
            await asyncio.sleep(0)

    async def offer(self) -> Offered:
        if self.broken:
            self.failures += 1
            raise PeerError("no answer")
        await self._travel()
        offered = await super().offer()
        await self._travel()
        return offered

    async def map_slab(self, lease: HeldLease, slab: int) -> Mapped:
        await self._travel()
        if self.refuse or self.free_bytes < SLAB_BYTES:
            raise RefusedError("it refused: no memory", 507)
        await super().map_slab(lease, slab)
        self.free_bytes -= SLAB_BYTES
        return Mapped(self.free_bytes)


@dataclass
class FakeRecord:
    """The record of leases, on a disk that may be full."""

    trace: list[str]
    full: bool = False

    def admit(self, lease: HeldLease) -> None:
        del lease
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def mapped(self, lease: HeldLease, slab: int) -> None:
        self.admit(lease)
        self.trace.append(f"record {slab}")

    def unmapped(self, lease: HeldLease, slab: int) -> None:
        del lease
        self.trace.append(f"forget {slab}")


class SlabTable(FakeEngine):
    """The engine's slab table."""

    def __init__(self, trace: list[str]) -> None:
        super().__init__()
        self.slabs: np.ndarray[Any, np.dtype[Any]] = np.zeros(SLABS, SLAB_DTYPE)
        self.trace = trace
        self.refuse_slabs = False
        self.refuse_moves = 0  # errno
        self.moving: dict[int, int] = {}  # by slab: the peer that is to have it
        self.limits_ms: dict[int, int] = {}

    def forget_slab(self, slab: int) -> None:
        assert self.slabs[slab]["state"] == SlabState.UNMAPPED
        self.trace.append(f"no page of {slab} is remote")

    def map_slab(self, slab: int, peer: int, adopt: bool = False, region: tuple[int, int] | None = None) -> None:
        assert not adopt
        assert region is None
        if self.refuse_slabs:
            raise OSError(errno.ENOTCONN, "peer is gone")
        assert self.slabs[slab]["state"] == SlabState.UNMAPPED
        self.trace.append(f"map {slab}")
        self.slabs[slab]["state"], self.slabs[slab]["peer"] = SlabState.MAPPED, peer

    def unmap_slab(self, slab: int) -> None:
        self.trace.append(f"unmap {slab}")
        self.slabs[slab]["state"] = SlabState.DRAINING

    def move_slab(self, slab: int, peer: int, limit_ms: int = 0, region: tuple[int, int] | None = None) -> None:
        assert region is None
        if self.refuse_moves:
            raise OSError(self.refuse_moves, "no move")
        assert self.slabs[slab]["state"] != SlabState.UNMAPPED
        assert self.slabs[slab]["peer"] != peer
        assert self.moving.get(slab, peer) == peer
        self.trace.append(f"move {slab} to {peer}")
        self.moving[slab], self.limits_ms[slab] = peer, limit_ms

    def cancel_move(self, slab: int) -> None:
        if slab not in self.moving:
            raise OSError(errno.EINVAL, "it does not move")
        if self.moving[slab] == self.slabs[slab]["peer"]:
            raise OSError(errno.EALREADY, "it has moved")
        self.trace.append(f"cancel {slab}")

    def settle_slab(self, slab: int) -> None:
        if self.moving.pop(slab, None) != self.slabs[slab]["peer"]:
            raise OSError(errno.EINVAL, "it is lost")
        self.trace.append(f"settle {slab}")
        self.slabs[slab]["state"] = SlabState.MAPPED

    def moved(self, slab: int, pages: int = 7) -> Event:
        """The engine has copied slab."""
        self.slabs[slab]["state"], self.slabs[slab]["peer"] = SlabState.DRAINING, self.moving[slab]
        return Event(EventKind.SLAB_MOVED, self.moving[slab], slab, pages)

    def move_failed(self, slab: int, error: int = errno.ENOTCONN) -> Event:
        """The engine has not."""
        return Event(EventKind.MOVE_FAILED, self.moving.pop(slab), slab, error)

    def drained(self, slab: int, kind: EventKind = EventKind.SLAB_RELEASED) -> Event:
        """The engine has let slab go."""
        peer = int(self.slabs[slab]["peer"])
        self.slabs[slab]["state"], self.slabs[slab]["peer"] = SlabState.UNMAPPED, -1
        return Event(kind, peer, slab, 0 if kind == EventKind.SLAB_RELEASED else errno.ESHUTDOWN)


@dataclass
class World:
    """A mapper over fake peers and a fake engine."""

    mapper: Mapper
    peers: Peers
    slabs: Slabs
    engine: SlabTable
    daemons: list[SlabDaemon]
    clock: FakeClock
    trace: list[str]
    record: FakeRecord
    evictions: Evictions

    def busy(self, *slabs: int, page_outs: int = 1000) -> None:
        """Let these slabs be written to."""
        for slab in slabs:
            self.engine.slabs[slab]["page_outs"] += page_outs

    async def second(self, *, settle: bool = True) -> None:
        """One tick, and what it sets off."""
        self.clock.now_s += 1.0
        self.mapper.tick(1.0)
        if settle:
            await self.settle()

    async def settle(self) -> None:
        """Until nothing is queued or under way."""
        for _ in range(1000):
            await asyncio.sleep(0)

    def mapped(self) -> list[int]:
        """Slabs with remote memory."""
        return [int(i) for i in np.flatnonzero(self.engine.slabs["state"] == SlabState.MAPPED)]


async def make_world(
    monkeypatch: pytest.MonkeyPatch, *, policy: str = "hot", cold: float | None = None, peers: int = 3
) -> World:
    """Peers with leases, each with room for two slabs."""
    clock = FakeClock()
    monkeypatch.setattr(mapper_module, "TICK_S", 3600.0)  # the test ticks
    trace: list[str] = []
    engine = SlabTable(trace)
    daemons = [SlabDaemon() for _ in range(peers)]
    all_peers = []
    slabs = Slabs(clock)
    for slot, daemon in enumerate(daemons):
        daemon.free_bytes = 2 * SLAB_BYTES
        peer = Peer(slot, HostPort("h", slot + 1), daemon, slabs)  # type: ignore[arg-type]
        peer.lease = await daemon.open_lease()
        all_peers.append(peer)
    cool_down = CoolDown(clock)
    rng = Random(3)
    decisions = MappingPolicy(
        policy,
        Thresholds(20.0, cold),
        engine.slabs["page_ins"],
        engine.slabs["page_outs"],
        slab_bytes=SLAB_BYTES,
        held_for_s=slabs.held_for_s,
        cool_down=cool_down,
        rng=rng,
        clock=clock,
    )
    evictions = Evictions(engine, slabs, decisions.activity.values, cool_down=cool_down, clock=clock)
    group = Peers(
        all_peers,
        slabs,
        engine,
        cool_down=cool_down,
        changed=lambda: trace.append("record"),
        lost=lambda peer, slabs: mapper.lost(peer, slabs),  # noqa: PLW0108 - made below
        connect_timeout_s=1.0,
        listener=evictions,
        rng=rng,
        clock=clock,
    )
    record = FakeRecord(trace)
    mapper = Mapper(engine, group, slabs, decisions, slab_bytes=SLAB_BYTES, cool_down=cool_down, record=record)
    evictions.moves = mapper.moves
    mapper.start()
    return World(mapper, group, slabs, engine, daemons, clock, trace, record, evictions)
