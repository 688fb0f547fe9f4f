"""A lender with RDMA over fakes, and one journal of all that ends, in order."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from infiniswap.daemon.arena import Arena, punch_hole
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.slab_keys import SlabKeys
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine
from tests.support.fake_verbs import FakeVerbs, remote_end


class World:
    """A lender of 16 MiB with RDMA over fakes, and one journal of all that ends."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.verbs = FakeVerbs(journal=self.journal)
        self.engine = FakeEngine()
        self.engine.journal = self.journal
        self.clock = FakeClock()
        self.populating = threading.Event()
        self.may_populate = threading.Event()
        self.may_populate.set()
        self.arena = Arena(16 * MIB, punch=self._punch)
        self._populate = self.arena.populate
        self.arena.populate = self._wait_and_populate  # type: ignore[method-assign]
        self.leases = LeaseTable(self.clock, ttl_s=10.0)
        self.keys = SlabKeys(self.arena, self.verbs.host(self.clock), clock=self.clock)
        self.keys.host.start()
        self.lender = Lender(arena=self.arena, leases=self.leases, engine=self.engine, monitor=None, keys=self.keys)
        self.paths = RdmaPaths(self.lender)
        self.journal.clear()

    def _punch(self, fd: int, offset: int, length: int) -> None:
        self.journal.append(f"clear {offset:#x}")
        punch_hole(fd, offset, length)

    def _wait_and_populate(self, offset: int, length: int) -> None:
        self.populating.set()
        assert self.may_populate.wait(20)
        self._populate(offset, length)

    def lease(self, slabs: int = 4, slab_bytes: int = MIB) -> Lease:
        return self.lender.grant(device="d", device_id="i", size_bytes=slabs * slab_bytes, slab_bytes=slab_bytes)[0]

    async def connected(self, slabs: int = 4) -> Lease:
        """A lease with a path and an empty pool."""
        lease = self.lease(slabs)
        await self.paths.open(lease, remote_end())
        await self.paths.clearing.recover(self.keys.drain(lease, 1), lease.slab_bytes)
        self.keys.counts.regions_registered = self.keys.counts.regions_deregistered = 0
        self.journal.clear()
        return lease

    def address(self, lease: Lease, index: int) -> int:
        return self.arena.address + lease.slabs[index]

    def told(self, *words: str) -> list[str]:
        """The journal's lines that begin with one of the words."""
        return [line for line in self.journal if line.startswith(words)]


@asynccontextmanager
async def rdma_world() -> AsyncIterator[World]:
    """A world, whose threads end before its memory goes."""
    world = World()
    try:
        yield world
    finally:
        world.may_populate.set()
        await world.lender.close()
        world.arena.close()


def reason_of(error: pytest.ExceptionInfo[RefusedError]) -> Refusal:
    """Why it was refused."""
    return error.value.reason
