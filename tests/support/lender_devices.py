"""Devices of one lender that do what a random sequence tells them."""

from __future__ import annotations

import asyncio
import ctypes
import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.slab_keys import SlabKeys
from infiniswap.policy.headroom import HostMemory
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine

GIB = 1 << 30


class Devices(RuleBasedStateMachine):
    """Devices that lease, map, scribble, unmap and vanish, on a host whose free memory comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.engine = FakeEngine(exports_max=3)
        self.arena = Arena(16 * MIB)
        self.leases = LeaseTable(self.clock, ttl_s=10.0, leases_max=4)
        self.available = 64 * MIB
        self.monitor = MemoryMonitor(
            lambda: HostMemory(GIB, self.available), self.arena.occupied_bytes, headroom_bytes=16 * MIB
        )
        self.keys = self.make_keys()
        self.lender = Lender(
            arena=self.arena, leases=self.leases, engine=self.engine, monitor=self.monitor, keys=self.keys
        )
        self.held: list[Lease] = []

    def make_keys(self) -> SlabKeys | None:
        """No RDMA here."""
        return None

    def other_bytes(self) -> int:
        """Memory that is taken, but in no slab."""
        return 0

    @initialize()
    def start(self) -> None:
        assert self.lender.offer().free_bytes == 16 * MIB

    @rule(slab=st.sampled_from([MIB, 2 * MIB, 4 * MIB, 8 * MIB]), slabs=st.integers(1, 6))
    def lease(self, slab: int, slabs: int) -> None:
        def grant() -> Lease:
            return self.lender.grant(device="d", device_id="i", size_bytes=slab * slabs, slab_bytes=slab)[0]

        if len(self.engine.exports) < 3:
            self.held.append(grant())
            return
        with pytest.raises(RefusedError) as refusal:
            grant()
        assert refusal.value.reason is Refusal.UNAVAILABLE

    @precondition(lambda self: self.held)
    @rule(data=st.data(), index=st.integers(0, 5))
    def map(self, data: st.DataObject, index: int) -> None:
        lease = data.draw(st.sampled_from(self.held))
        before = dict(lease.slabs)
        if index < lease.slab_count and index not in before:
            self.loop.run_until_complete(self.lender.make_room(lease))  # as the API does: lapsed leases give way
            self.held = [other for other in self.held if other in self.leases.leases()]
        # Mapping looks at the host anew, so the promise is compared with a fresh one.
        self.monitor.refresh()
        free = self.lender.free_bytes(lease)
        wanted = index < lease.slab_count and index not in before
        if index >= lease.slab_count or (wanted and free < lease.slab_bytes):
            with pytest.raises(RefusedError) as refusal:
                self.lender.map_slab(lease, index)
            assert refusal.value.reason is (Refusal.NO_MEMORY if wanted else Refusal.INVALID)
            assert lease.slabs == before
            return
        self.lender.map_slab(lease, index)
        if not wanted:
            assert lease.slabs == before
            return
        address = self.engine.exports[lease.export].mapped[index]
        assert address == self.arena.address + lease.slabs[index]
        assert self.lender.free_bytes(lease) == free - lease.slab_bytes
        assert not any(ctypes.string_at(address, lease.slab_bytes)), "a new slab is not zero"
        ctypes.memset(address, 0xAA, lease.slab_bytes)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), index=st.integers(0, 5))
    def unmap(self, data: st.DataObject, index: int) -> None:
        lease = data.draw(st.sampled_from(self.held))
        if index < lease.slab_count:
            self.loop.run_until_complete(self.lender.unmap_slab(lease, index))
            assert index not in lease.slabs

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.held))
        self.held.remove(lease)
        self.loop.run_until_complete(self.lender.release(lease))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        self.leases.renew(data.draw(st.sampled_from(self.held)))

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.held = [lease for lease in self.held if self.leases.remaining_s(lease) > 0]
        self.loop.run_until_complete(self.lender.expire())
        assert set(self.leases.leases()) == set(self.held)

    @rule(available=st.integers(0, 64 * MIB))
    def the_host_changes(self, available: int) -> None:
        self.available = available
        self.monitor.sample()

    @invariant()
    def every_slab_has_memory_of_its_own(self) -> None:
        ranges = sorted((offset, lease.slab_bytes) for lease in self.held for offset in lease.slabs.values())
        for (offset, size), (following, _) in itertools.pairwise(ranges):
            assert offset + size <= following
        assert sum(size for _, size in ranges) + self.other_bytes() == self.lender.used_bytes
        assert self.arena.occupied_bytes() <= self.lender.used_bytes

    @invariant()
    def the_engine_knows_the_same(self) -> None:
        assert {lease.export for lease in self.held} == set(self.engine.exports)
        for lease in self.held:
            assert set(self.engine.exports[lease.export].mapped) == set(lease.slabs)

    @invariant()
    def the_offer_is_true(self) -> None:
        offer = self.lender.offer()
        assert 0 <= offer.free_bytes <= offer.total_bytes - offer.used_bytes
        assert offer.total_bytes <= 16 * MIB
        assert offer.used_bytes + offer.free_bytes <= max(offer.used_bytes, self.monitor.lendable_bytes())

    def teardown(self) -> None:
        for lease in self.held:
            self.loop.run_until_complete(self.lender.release(lease))
        self.held.clear()
        assert self.arena.occupied_bytes() == self.other_bytes()
        self.loop.run_until_complete(self.lender.close())
        self.arena.close()
        self.loop.close()
