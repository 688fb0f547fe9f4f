"""What is promised counts as used until it is given back: on any host, whatever its programs and the devices do."""

from __future__ import annotations

import asyncio
import ctypes

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.refused import RefusedError
from infiniswap.policy.headroom import GROWTH_SHARE, HostMemory
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine

TOTAL = 64 * MIB
HEADROOM = 16 * MIB
SLAB = 2 * MIB
PAGE = 4096


class Promises(RuleBasedStateMachine):
    """A host of 64 MiB whose programs grow and shrink beside an arena of 48 MiB with real pages."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.programs = 0
        self.arena = Arena(48 * MIB)
        self.monitor = MemoryMonitor(self.look, self.arena.occupied_bytes, headroom_bytes=HEADROOM)
        leases = LeaseTable(FakeClock(), ttl_s=10.0)
        self.lender = Lender(arena=self.arena, leases=leases, engine=FakeEngine(), monitor=self.monitor)
        self.lease = self.lender.grant(device="d", device_id="i", size_bytes=24 * SLAB, slab_bytes=SLAB)[0]

    def look(self) -> HostMemory:
        """As the kernel counts: what programs and slabs do not occupy is available, and never less than nothing."""
        return HostMemory(TOTAL, max(0, TOTAL - self.programs - self.arena.occupied_bytes()))

    @rule(index=st.integers(0, 23))
    def lend(self, index: int) -> None:
        """Another slab, which stays empty for now."""
        had_it = index in self.lease.slabs
        try:
            self.lender.map_slab(self.lease, index)
        except RefusedError:
            assert not had_it
            return
        if not had_it:
            # Every slab that was ever promised could be filled now, and the headroom would still be free.
            assert TOTAL - self.programs - self.lender.used_bytes >= HEADROOM + HEADROOM // GROWTH_SHARE

    @precondition(lambda self: self.lease.slabs)
    @rule(data=st.data(), pages=st.integers(1, SLAB // PAGE))
    def fill(self, data: st.DataObject, pages: int) -> None:
        """The device writes to a slab that it has: nobody is asked."""
        offset = self.lease.slabs[data.draw(st.sampled_from(sorted(self.lease.slabs)))]
        ctypes.memset(self.arena.address + offset, 1, pages * PAGE)

    @precondition(lambda self: self.lease.slabs)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.lease.slabs)))
        self.loop.run_until_complete(self.lender.unmap_slab(self.lease, index))

    @rule(programs=st.integers(0, TOTAL // MIB))
    def programs_change(self, programs: int) -> None:
        self.programs = programs * MIB

    @rule()
    def second(self) -> None:
        self.monitor.sample()

    @rule()
    def look_between(self) -> None:
        self.monitor.refresh()

    @invariant()
    def it_adds_up(self) -> None:
        """Available, occupied and programs are all memory; what slabs occupy was promised; an offer is beside that."""
        self.monitor.refresh()
        occupied, promised = self.arena.occupied_bytes(), self.lender.used_bytes
        assert promised == SLAB * len(self.lease.slabs)
        assert 0 <= occupied <= promised
        host = self.monitor.host
        assert host.available_bytes == max(0, TOTAL - self.programs - occupied)
        offer = self.lender.offer(SLAB)
        assert offer.used_bytes == promised
        assert offer.free_bytes == self.lender.free_bytes(self.lease)
        if offer.free_bytes:
            lendable = min(self.monitor.lendable_bytes(), self.arena.total_bytes)
            assert promised + offer.free_bytes <= lendable
            assert TOTAL - self.programs - promised - offer.free_bytes >= HEADROOM

    @invariant()
    def clearing_is_known(self) -> None:
        """Nothing is on its way back when nobody gives back."""
        assert self.lender.clearing.in_hand_bytes == 0

    def teardown(self) -> None:
        self.loop.run_until_complete(self.lender.release(self.lease))
        assert self.arena.occupied_bytes() == 0
        self.loop.run_until_complete(self.lender.close())
        self.arena.close()
        self.loop.close()


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


async def test_an_empty_promise_is_not_made_twice() -> None:
    """Slabs that nobody has touched yet take as much from the next offer as filled ones."""
    world = Promises()
    for index in range(23):
        world.lend(index)
    assert len(world.lease.slabs) == (TOTAL - HEADROOM - HEADROOM // GROWTH_SHARE) // SLAB == 23
    with pytest.raises(RefusedError):
        world.lender.map_slab(world.lease, 23)
    await world.lender.release(world.lease)
    await world.lender.close()
    world.arena.close()
    world.loop.close()
