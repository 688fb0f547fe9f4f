"""Whatever devices do, no byte of one lease reaches another, no memory is promised twice, all comes back."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings

from infiniswap.daemon.arena import Arena, punch_hole
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.refused import Refusal, RefusedError
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine
from tests.support.lender_devices import GIB, Devices
from tests.support.waiting import eventually

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
