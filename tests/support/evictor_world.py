"""An evictor over a real lender and real streams, with devices that answer as told; time is turned by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.evictor import Evictor
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.streams import Stream, Streams
from infiniswap.policy.headroom import HostMemory
from infiniswap.shared.stream_messages import ActivityAnswer, FromDevice, encode, from_device
from tests.support.clock import FakeClock
from tests.support.daemon_api import DEVICE_ID, MIB
from tests.support.fake_memory_engine import FakeEngine

ARENA_MIB = 64
ASK_S = 20.0  # real seconds: answers of these devices take next to none
GIVE_UP_S = 1.0  # on the world's clock


Answer = Callable[[dict[str, Any]], FromDevice | None]


def tells(rates: dict[int, float]) -> Answer:
    """A device that answers questions with these rates."""

    def answer(message: dict[str, Any]) -> FromDevice | None:
        if message["type"] != "ask":
            return None
        return ActivityAnswer(message["ask"], {slab: rates.get(slab, 0.0) for slab in message["slabs"]})

    return answer


class FakeSocket:
    """The device's end: keeps what it was sent, and may answer at once."""

    def __init__(self, answer: Answer) -> None:
        self.sent: list[dict[str, Any]] = []
        self.answer = answer
        self.stream: Stream | None = None

    async def send_str(self, data: str) -> None:
        message = json.loads(data)
        self.sent.append(message)
        answer = self.answer(message)
        if answer is not None and self.stream is not None:
            self.stream.hear(from_device(encode(answer)))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Messages of one type."""
        return [message for message in self.sent if message["type"] == kind]


@dataclass
class World:
    """One daemon; the host has as much memory free as the test says."""

    clock: FakeClock
    lender: Lender
    streams: Streams
    evictor: Evictor
    engine: FakeEngine
    host: list[int]  # memory of the host that slabs may take, MiB
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def lease(self, slabs: int, slab_mib: int = 1, device: str = "d") -> Lease:
        """A lease with so many slabs mapped."""
        size = max(1, slabs) * slab_mib * MIB
        lease, _ = self.lender.grant(device=device, device_id=DEVICE_ID, size_bytes=size, slab_bytes=slab_mib * MIB)
        for slab in range(slabs):
            self.lender.map_slab(lease, slab)
        return lease

    def connect(self, lease: Lease, answer: Answer | None = None) -> FakeSocket:
        """A device that listens; answer: what it says to a message, else that all its slabs are cold."""
        socket = FakeSocket(answer or tells({}))
        stream = Stream(self.lender, lease, socket, self.clock)
        socket.stream = stream
        self.streams.begin(stream)
        self.tasks.append(asyncio.create_task(stream.write()))
        return socket

    def may_lend(self, mib: int) -> None:
        """So much may be lent now."""
        self.host[0] = mib
        assert self.lender.monitor is not None
        self.lender.monitor.sample()

    async def settle(self) -> None:
        """Let messages travel and memory be cleared."""
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.gather(*self.lender.clearing._tasks)

    async def close(self) -> None:
        """End all."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for lease in self.lender.leases.leases():
            await self.lender.release(lease)
        await self.lender.close()
        self.lender.arena.close()


def make_world(ask_s: float = ASK_S) -> World:
    """A daemon of ARENA_MIB with nobody there; it can lend all of it. ask_s: for a device's answer, real seconds."""
    clock, engine, arena = FakeClock(), FakeEngine(), Arena(ARENA_MIB * MIB)
    host = [ARENA_MIB]
    # Nothing but slabs is on this host, so what they occupy is what is missing from its memory.
    monitor = MemoryMonitor(
        lambda: HostMemory(1 << 40, max(0, host[0] * MIB - arena.occupied_bytes())),
        arena.occupied_bytes,
        headroom_bytes=0,
    )
    leases = LeaseTable(clock, ttl_s=30.0)
    lender = Lender(arena=arena, leases=leases, engine=engine, monitor=monitor)
    streams = Streams(lender, clock)
    evictor = Evictor(lender, streams, clock=clock, rng=Random(1), ask_s=ask_s, give_up_s=GIVE_UP_S)
    return World(clock, lender, streams, evictor, engine, host)
