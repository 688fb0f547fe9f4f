"""Pools make mapping quick, take little, and give it back when it is needed."""

from __future__ import annotations

import asyncio
import ctypes
import errno
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.pool import POOL_SLABS, PoolKeeper, pool_target
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.slab_keys import POOL_PAUSE_S, SlabKeys
from infiniswap.policy.headroom import HostMemory
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine
from tests.support.fake_verbs import FakeVerbs, remote_end
from tests.support.waiting import eventually

GIB = 1 << 30


class World:
    """A lender of 64 MiB on a host whose memory is what the test says, with RDMA and pools that it tends by hand."""

    def __init__(self) -> None:
        self.verbs = FakeVerbs()
        self.clock = FakeClock()
        self.available = 4 * GIB
        self.arena = Arena(64 * MIB)
        self.monitor = MemoryMonitor(
            lambda: HostMemory(8 * GIB, self.available), self.arena.occupied_bytes, headroom_bytes=GIB, beta=1.0
        )
        self.keys = SlabKeys(self.arena, self.verbs.host(self.clock), clock=self.clock)
        self.keys.host.start()
        self.engine = FakeEngine()
        self.lender = Lender(
            arena=self.arena,
            leases=LeaseTable(self.clock, ttl_s=60.0),
            engine=self.engine,
            monitor=self.monitor,
            keys=self.keys,
        )
        self.paths = RdmaPaths(self.lender)
        self.pools = PoolKeeper(self.paths)

    async def connected(self, slab_bytes: int = MIB) -> Lease:
        lease, _ = self.lender.grant(device="d", device_id="i", size_bytes=64 * slab_bytes, slab_bytes=slab_bytes)
        await self.paths.open(lease, remote_end())
        return lease

    def have_available(self, size_bytes: int) -> None:
        self.available = size_bytes
        self.monitor.sample()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A world."""
    made = World()
    yield made
    await made.lender.close()
    made.keys.close()
    made.arena.close()


@pytest.mark.parametrize(
    ("supply", "target"), [(0, 0), (3, 0), (4, 1), (15, 1), (16, 2), (31, 3), (32, 4), (1 << 20, POOL_SLABS)]
)
def test_the_size_of_a_pool(supply: int, target: int) -> None:
    """An eighth of what is free, one if there are four, and never more than POOL_SLABS."""
    assert pool_target(supply) == target


async def test_mapping_takes_from_the_pool(world: World) -> None:
    """A pooled slab is registered already and zero; the pool is filled again, and both are counted."""
    lease = await world.connected()
    await world.pools.tend()
    assert world.keys.pooled(lease) == POOL_SLABS
    assert world.arena.occupied_bytes() == POOL_SLABS * MIB, "its pages are there"
    registered = world.keys.counts.regions_registered
    for index in range(POOL_SLABS):
        world.lender.map_slab(lease, index)
        region = world.lender.region(lease, index)
        assert region is not None
        assert not any(ctypes.string_at(region.address, MIB))
    assert world.keys.counts.regions_registered == registered == POOL_SLABS
    assert (world.keys.counts.pool_hits, world.keys.counts.pool_misses) == (POOL_SLABS, 0)
    world.lender.map_slab(lease, POOL_SLABS)
    assert (world.keys.counts.pool_hits, world.keys.counts.pool_misses) == (POOL_SLABS, 1)
    assert world.lender.region(lease, POOL_SLABS) is not None, "the slow way has the same end"
    await world.pools.tend()
    assert world.keys.pooled(lease) == POOL_SLABS


async def test_the_keeper_does_it_by_itself(world: World) -> None:
    """Opening a path and mapping slabs wake the keeper; a step that fails is logged, and the next one comes."""
    world.pools.start()
    lease = await world.connected()
    await eventually(lambda: world.keys.pooled(lease) == POOL_SLABS, "the pool is filled")
    world.lender.map_slab(lease, 0)
    await eventually(lambda: world.keys.pooled(lease) == POOL_SLABS, "the pool is filled again")
    await world.pools.close()


async def test_a_failing_keeper_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody thought of is logged, and pools are kept all the same."""
    lease = await world.connected()
    await world.paths.clearing.recover(world.keys.drain(lease, 1), MIB)
    failures = iter([True])

    def supply(asking: Lease) -> int:
        if next(failures, False):
            raise RuntimeError("what nobody thought of")
        return Lender.supply(world.lender, asking)

    monkeypatch.setattr(world.lender, "supply", supply)
    world.pools.start()
    await eventually(lambda: world.keys.pooled(lease) > 0, "the pool is filled")
    await world.pools.close()
    assert "could not be looked after" in caplog.text


async def test_only_leases_with_a_path_have_pools(world: World) -> None:
    """Not one that pages over TCP, and not one whose path was closed."""
    over_tcp, _ = world.lender.grant(device="d", device_id="i", size_bytes=MIB, slab_bytes=MIB)
    lease = await world.connected()
    await world.pools.tend()
    assert world.keys.pooled(over_tcp) == 0
    await world.paths.close(lease)
    await world.pools.tend()
    assert world.keys.pooled(lease) == 0
    assert world.lender.used_bytes == 0


async def test_pools_count_as_used_but_not_for_their_own_lease(world: World) -> None:
    """Others are not offered what is in a pool; the lease that has it can map every slab it is told of."""
    lease, other = await world.connected(), await world.connected()
    await world.pools.tend()
    assert world.lender.used_bytes == 2 * POOL_SLABS * MIB
    assert world.lender.offer(MIB).free_bytes == (64 - 2 * POOL_SLABS) * MIB
    assert world.lender.free_bytes(lease) == world.lender.free_bytes(other) == (64 - POOL_SLABS) * MIB
    for index in range(64 - POOL_SLABS):
        world.lender.map_slab(lease, index)
    assert world.lender.free_bytes(lease) == 0


async def test_a_pool_shrinks_with_what_is_free(world: World) -> None:
    """The last slabs are nobody's pool: when little is free, all of it is offered, and it does not swing."""
    lease, other = await world.connected(), await world.connected()
    await world.pools.tend()
    for index in range(60):
        world.lender.map_slab(lease, index)
        await world.pools.tend()
        assert world.keys.pooled(lease) <= max(1, (64 - index - 1) // 8)
    registered = world.keys.counts.regions_registered
    for _ in range(3):
        await world.pools.tend()
    assert world.keys.counts.regions_registered == registered, "a pool that is as it should be is left alone"
    for index in range(2):
        world.lender.map_slab(lease, 60 + index)
        await world.pools.tend()
    assert world.keys.pooled(lease) == world.keys.pooled(other) == 0
    assert world.lender.offer(MIB).free_bytes == 2 * MIB


async def test_a_host_that_needs_its_memory_gets_the_pools(world: World) -> None:
    """When less may be lent than is lent, pools go back, and no slab is mapped out of them meanwhile."""
    lease = await world.connected()
    await world.pools.tend()
    for index in range(8):
        world.lender.map_slab(lease, index)
    await world.pools.tend()
    assert world.lender.used_bytes == 12 * MIB
    world.have_available(GIB - 4 * MIB)
    with pytest.raises(RefusedError) as error:
        world.lender.map_slab(lease, 8)
    assert error.value.reason is Refusal.NO_MEMORY
    await world.pools.tend()
    assert world.keys.pooled(lease) == 0
    assert world.lender.used_bytes == 8 * MIB
    assert world.arena.occupied_bytes() == 8 * MIB


async def test_a_refused_map_empties_the_pools_of_others(world: World) -> None:
    """A slab for which the pools of others left no room is refused once; they go back, and the next try succeeds."""
    small = await world.connected()
    await world.pools.tend()
    large = await world.connected(32 * MIB)
    world.lender.map_slab(large, 0)
    with pytest.raises(RefusedError) as error:
        world.lender.map_slab(large, 1)
    assert error.value.reason is Refusal.NO_MEMORY
    await world.pools.tend()
    assert world.keys.pooled(small) == 0
    world.lender.map_slab(large, 1)
    await world.lender.unmap_slab(large, 1)
    await world.pools.tend()
    assert world.keys.pooled(small) == 0, "not at once again"
    world.clock.now_s += POOL_PAUSE_S
    await world.pools.tend()
    assert world.keys.pooled(small) == POOL_SLABS


@pytest.mark.parametrize("how", ["registration", "memory"])
async def test_blocks_that_cannot_be_pooled(world: World, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is free again, and the next try waits: neither the log nor the processor is flooded."""
    lease = await world.connected()
    tries = 0

    def fail(_offset: int, _length: int) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOMEM, "no memory")

    if how == "memory":
        monkeypatch.setattr(world.arena, "populate", fail)
    else:
        world.verbs.refuse_registrations = errno.ENOMEM
    for _ in range(5):
        await world.pools.tend()
    assert tries <= 1
    assert world.lender.used_bytes == 0
    monkeypatch.undo()
    world.verbs.refuse_registrations = 0
    world.clock.now_s += POOL_PAUSE_S
    await world.pools.tend()
    assert world.keys.pooled(lease) == POOL_SLABS


@pytest.mark.parametrize("what", ["released", "vanished"])
async def test_what_goes_while_a_block_is_prepared(world: World, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block for a lease or a device that is gone by the time it is there is free again, and registered nowhere."""
    lease = await world.connected()
    populate = world.arena.populate
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(offset: int, size_bytes: int) -> None:
        begun.set()
        await go_on.wait()
        populate(offset, size_bytes)

    monkeypatch.setattr(world.lender.clearing, "populate", slow)
    tending = asyncio.create_task(world.pools.tend())
    await begun.wait()
    if what == "released":
        await world.lender.release(lease)
    else:
        world.verbs.removing = True
        await world.paths.watch()
    go_on.set()
    await tending
    assert world.verbs.regions == {}
    assert world.lender.used_bytes == 0
    assert world.arena.occupied_bytes() == 0


async def test_a_pooled_block_that_stays_registered(world: World) -> None:
    """When a pool is to shrink and the verbs do not let go, the memory stays taken rather than being lent again."""
    lease = await world.connected()
    await world.pools.tend()
    world.verbs.keep_regions = True
    world.keys.pause()
    await world.pools.tend()
    assert world.keys.pooled(lease) == 0
    assert world.lender.used_bytes == POOL_SLABS * MIB
    await world.lender.release(lease)
    assert world.lender.used_bytes == POOL_SLABS * MIB
