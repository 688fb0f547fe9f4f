"""Whatever devices do, no byte of one lease reaches another, no memory is promised twice, all comes back."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infiniswap.daemon.arena import Arena, punch_hole
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import HostMemory, MemoryMonitor
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.slab_keys import SlabKeys
from tests.daemon.support import MIB, FakeClock, FakeEngine, eventually

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


TestDevices = Devices.TestCase
TestDevices.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class SlowPunch:
    """Punches holes only when the test says so."""

    def __init__(self) -> None:
        self.allowed = threading.Event()

    def __call__(self, fd: int, offset: int, length: int) -> None:
        assert self.allowed.wait(20)
        punch_hole(fd, offset, length)


@pytest.fixture
def slow() -> SlowPunch:
    """A punch that waits."""
    return SlowPunch()


@pytest.fixture
def arena(slow: SlowPunch) -> Iterator[Arena]:
    """2 MiB whose clearing takes as long as the test wants."""
    made = Arena(2 * MIB, punch=slow)
    yield made
    made.close()


@pytest.fixture
def engine() -> FakeEngine:
    """An engine without threads."""
    return FakeEngine()


@pytest.fixture
def lender(arena: Arena, engine: FakeEngine) -> Lender:
    """A lender without a monitor, as with huge pages."""
    leases = LeaseTable(FakeClock(), ttl_s=10.0)
    return Lender(arena=arena, leases=leases, engine=engine, monitor=None)


def grant(lender: Lender) -> Lease:
    """A lease of two slabs of 1 MiB."""
    return lender.grant(device="d", device_id="i", size_bytes=2 * MIB, slab_bytes=MIB)[0]


async def test_memory_is_nobodys_until_it_is_clear(lender: Lender, slow: SlowPunch, engine: FakeEngine) -> None:
    """While a slab is being cleared it is neither offered nor mapped, even when the one who asked has gone."""
    lease = grant(lender)
    lender.map_slab(lease, 0)
    lender.map_slab(lease, 1)
    asking = asyncio.create_task(lender.unmap_slab(lease, 0))
    await eventually(lambda: 0 not in engine.exports[lease.export].mapped, "slab 0 is cut off from the engine")
    assert lender.offer(MIB).free_bytes == 0
    with pytest.raises(RefusedError) as refusal:
        lender.map_slab(lease, 0)
    assert refusal.value.reason is Refusal.NO_MEMORY
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert lender.used_bytes == 2 * MIB
    slow.allowed.set()
    await eventually(lambda: lender.offer(MIB).free_bytes == MIB, "the slab is free after clearing")
    lender.map_slab(lease, 0)
    await lender.release(lease)
    await lender.close()


async def test_closing_waits_for_clearing(lender: Lender, slow: SlowPunch, arena: Arena) -> None:
    """The arena may be unmapped after close(): no thread is still clearing in it."""
    lease = grant(lender)
    lender.map_slab(lease, 0)
    ctypes.memset(arena.address + lease.slabs[0], 0xAA, MIB)
    releasing = asyncio.create_task(lender.release(lease))
    await asyncio.sleep(0)
    closing = asyncio.create_task(lender.close())
    done, _ = await asyncio.wait([closing], timeout=0.05)
    assert not done
    slow.allowed.set()
    await asyncio.gather(closing, releasing)
    assert arena.occupied_bytes() == 0


async def test_an_engine_without_room_costs_nothing(lender: Lender, engine: FakeEngine) -> None:
    """When the data path refuses an export or a slab, neither the lease slot nor the memory is lost."""
    engine.exports_max = 0
    with pytest.raises(RefusedError) as refusal:
        grant(lender)
    assert refusal.value.reason is Refusal.UNAVAILABLE
    assert len(lender.leases) == 0
    engine.exports_max = 1
    lease = grant(lender)
    engine.refuse_maps = True
    with pytest.raises(RefusedError) as refusal:
        lender.map_slab(lease, 0)
    assert refusal.value.reason is Refusal.UNAVAILABLE
    assert lender.used_bytes == 0
    assert lease.slabs == {}
    await lender.close()


@pytest.mark.parametrize("huge_pages", [False, True])
async def test_the_engine_may_punch_holes_in_ordinary_pages_only(
    lender: Lender, arena: Arena, engine: FakeEngine, huge_pages: bool
) -> None:
    """A TRIM that punched a hole into huge pages would lose their reservation, and a later touch kill the daemon."""
    arena.huge_pages = huge_pages
    lender.map_slab(grant(lender), 0)
    assert engine.descriptors == [-1 if huge_pages else arena.fd]
    await lender.close()


async def test_slabs_of_many_sizes_share_the_arena(slow: SlowPunch) -> None:
    """Free bytes are told for the size asked: 1 MiB pieces left between slabs are no offer of 2 MiB."""
    slow.allowed.set()
    arena = Arena(4 * MIB, punch=slow)
    lender = Lender(arena=arena, leases=LeaseTable(FakeClock(), ttl_s=9), engine=FakeEngine(), monitor=None)
    small = lender.grant(device="d", device_id="i", size_bytes=4 * MIB, slab_bytes=MIB)[0]
    for index in range(4):
        lender.map_slab(small, index)
    await lender.unmap_slab(small, 0)
    await lender.unmap_slab(small, 2)
    assert lender.offer(MIB).free_bytes == lender.offer().free_bytes == 2 * MIB
    assert lender.offer(2 * MIB).free_bytes == 0
    await lender.unmap_slab(small, 1)
    assert lender.offer(2 * MIB).free_bytes == 2 * MIB
    await lender.close()
    arena.close()


@pytest.mark.parametrize("size", [0, 1, MIB // 2, 3 * MIB, 2 * GIB])
async def test_offers_for_no_slab_size(lender: Lender, size: int) -> None:
    """A size that no slab can have is refused, not answered with zero."""
    with pytest.raises(RefusedError, match="power of two between 1 MiB and 1024 MiB") as refusal:
        lender.offer(size)
    assert refusal.value.reason is Refusal.INVALID
    await lender.close()
