"""How registered memory is taken back: in which order, when its device vanishes, and when the verbs do not let go."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.rdma import REOPEN_INTERVAL_S, RdmaMode, RdmaOptions
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.slab_keys import SlabKeys
from infiniswap.shared.path_messages import Region
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_verbs import FakeVerbs, remote_end
from tests.support.rdma_world import World, rdma_world, reason_of


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A lender with RDMA."""
    async with rdma_world() as made:
        yield made


async def test_the_order_at_the_end_of_a_slab(world: World) -> None:
    """Cut off from the engine, then deregistered, then cleared, then free."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    address, offset = world.address(lease, 0), lease.slabs[0]
    world.journal.clear()
    await world.lender.unmap_slab(lease, 0)
    assert world.journal == ["unmap 0", f"deregister {address:#x}", f"clear {offset:#x}"]
    assert world.lender.used_bytes == 0
    assert not world.verbs.registered(address)
    assert world.keys.counts.regions_registered == world.keys.counts.regions_deregistered == 1


async def test_the_order_at_the_end_of_a_lease(world: World) -> None:
    """Queue pairs, the export, the registrations, the domain; only then is the memory cleared, the pool's as well."""
    lease = await world.connected()
    pairs = [pair.number for pair in world.verbs.pairs]
    for index in range(2):
        world.lender.map_slab(lease, index)
    offset = world.arena.allocator.allocate(MIB)
    assert offset is not None
    world.keys.put(lease, offset)
    world.journal.clear()
    await world.lender.release(lease)
    kinds = [line.split()[0] for line in world.journal]
    assert world.journal[:2] == [f"destroy pair {number}" for number in pairs]
    assert kinds == ["destroy"] * 2 + ["close"] + ["deregister"] * 4 + ["close"] + ["clear"] * 3
    assert world.journal[2] == "close export"
    assert world.journal[7] == "close domain"
    assert world.lender.used_bytes == 0
    assert world.verbs.regions == {}


async def test_memory_that_stays_registered_is_never_lent_again(world: World) -> None:
    """A deregistration that fails costs memory, not safety: the block is neither cleared nor free ever again."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    world.lender.map_slab(lease, 1)
    address = world.address(lease, 0)
    world.verbs.keep_regions = True
    await world.lender.unmap_slab(lease, 0)
    assert world.lender.used_bytes == 2 * MIB
    assert world.told("clear") == []
    await world.lender.release(lease)
    assert world.lender.used_bytes == 2 * MIB
    assert world.told("clear") == []
    assert world.keys.snapshot()["regions"] == 2
    other = world.lease(16)
    for index in range(14):
        world.lender.map_slab(other, index)
    with pytest.raises(RefusedError) as error:
        world.lender.map_slab(other, 14)
    assert reason_of(error) is Refusal.NO_MEMORY
    assert address not in [world.address(other, index) for index in other.slabs]


async def test_a_slab_whose_device_went_without_letting_go(world: World) -> None:
    """A mapped slab that outlived its device registered is served on, and freed only if letting go works in the end."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    world.verbs.keep_regions = True
    world.verbs.removing = True
    await world.paths.watch()
    assert world.keys.snapshot()["regions"] == 1
    assert world.lender.region(lease, 0) is None
    world.verbs.keep_regions = False
    await world.lender.unmap_slab(lease, 0)
    assert world.lender.used_bytes == 0
    assert world.keys.snapshot()["regions"] == 0


async def test_a_pool_whose_device_went_without_letting_go(world: World) -> None:
    """Blocks of a pool that outlived their device registered are never lent again; the others are free."""
    lease = await world.connected()
    blocks = [offset for _ in range(2) if (offset := world.arena.allocator.allocate(MIB)) is not None]
    for offset in blocks:
        world.keys.put(lease, offset)
    kept = world.keys.region(lease, blocks[0])
    assert kept is not None
    world.verbs.kept_keys = {kept.rkey}
    world.verbs.removing = True
    await world.paths.watch()
    assert world.told("clear") == [f"clear {blocks[1]:#x}"]
    assert world.lender.used_bytes == MIB


async def test_a_slab_registered_twice(world: World) -> None:
    """Registered anew while an earlier device still holds on to it: each is taken back, and only both make it free."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    address = world.address(lease, 0)
    world.verbs.keep_regions = world.verbs.removing = True
    await world.paths.watch()
    world.verbs.removing = False
    world.clock.now_s += REOPEN_INTERVAL_S
    await world.paths.watch()
    await world.paths.open(lease, remote_end())
    earlier, later = [region.rkey for region in world.verbs.regions.values() if region.address == address]
    assert world.lender.region(lease, 0) == Region(address, later)
    world.verbs.keep_regions = False
    world.verbs.kept_keys = {earlier}
    await world.lender.unmap_slab(lease, 0)
    assert later not in world.verbs.regions
    assert world.lender.used_bytes == MIB


async def test_a_device_that_vanishes(world: World) -> None:
    """All that was made of it is closed before it is, in order; slabs stay mapped; pools go back; it may come back."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    address = world.address(lease, 0)
    ctypes.memset(address, 0xAA, MIB)
    pooled = world.arena.allocator.allocate(MIB)
    assert pooled is not None
    world.keys.put(lease, pooled)
    world.journal.clear()
    world.verbs.removing = True
    await world.paths.watch()
    kinds = [line.split()[0] for line in world.journal]
    assert kinds == ["destroy"] * 2 + ["deregister"] * 3 + ["close"] * 2 + ["clear"]
    assert world.journal[5:] == ["close domain", "close device", f"clear {pooled:#x}"]
    assert world.keys.host.state == "unavailable"
    assert world.keys.counts.devices_lost == 1
    assert not world.keys.healthy(lease)
    assert world.lender.connections(lease) == 0
    assert world.lender.region(lease, 0) is None
    assert world.lender.used_bytes == MIB
    assert world.engine.exports[lease.export].mapped == {0: address}
    with pytest.raises(RefusedError) as error:
        await world.paths.open(lease, remote_end())
    assert reason_of(error) is Refusal.NO_RDMA
    world.lender.map_slab(lease, 1)
    assert world.engine.descriptors[-1] == world.arena.fd, "without RDMA, slabs are as they were before there was any"
    world.verbs.removing = False
    world.clock.now_s += REOPEN_INTERVAL_S
    await world.paths.watch()
    assert world.keys.host.state == "ready"
    await world.lender.unmap_slab(lease, 1)
    await world.paths.open(lease, remote_end())
    assert world.lender.region(lease, 0) is not None
    assert ctypes.string_at(address, MIB) == b"\xaa" * MIB
    assert world.keys.healthy(lease)


async def test_a_required_device_that_vanishes(caplog: pytest.LogCaptureFixture) -> None:
    """The daemon goes on without it, and warns."""
    clock, verbs = FakeClock(), FakeVerbs()
    arena = Arena(MIB)
    keys = SlabKeys(arena, verbs.host(clock, RdmaOptions(RdmaMode.REQUIRED)), clock=clock)
    keys.host.start()
    verbs.removing = True
    assert keys.watch() == []
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "though --rdma required" in record.getMessage()
    clock.now_s += REOPEN_INTERVAL_S
    verbs.removing = False
    keys.watch()
    assert keys.host.state == "ready"
    keys.close()
    arena.close()


@pytest.mark.parametrize("what", ["unmapped", "released", "vanished"])
async def test_what_happens_while_pages_are_brought_in(world: World, what: str) -> None:
    """A slab that is being prepared may go, with its lease or its device: then it is not registered."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    address = world.address(lease, 0)
    world.verbs.removing = True  # its key went with a former device
    await world.paths.watch()
    world.verbs.removing = False
    world.clock.now_s += REOPEN_INTERVAL_S
    await world.paths.watch()
    world.may_populate.clear()
    opening = asyncio.create_task(world.paths.open(lease, remote_end()))
    await asyncio.to_thread(world.populating.wait, 20)
    if what == "unmapped":
        await world.lender.unmap_slab(lease, 0)
    elif what == "released":
        await world.lender.release(lease)
    else:
        world.verbs.removing = True
        await world.paths.watch()
    world.may_populate.set()
    if what == "unmapped":
        await opening
        assert world.lender.region(lease, 0) is None
        assert [world.arena.address + offset for offset in world.keys.drain(lease, 1)] == [address], "free, and pooled"
    else:
        with pytest.raises(RefusedError) as error:
            await opening
        expected = {"released": Refusal.UNKNOWN, "vanished": Refusal.UNAVAILABLE}
        assert reason_of(error) == expected[what]
        assert world.verbs.pairs == []
    assert not world.verbs.registered(address)


@pytest.mark.parametrize("what", ["released", "vanished"])
async def test_what_happens_before_the_first_slab(world: World, what: str) -> None:
    """A lease without slabs may end, or its device go, while it is tried whether slabs can be registered."""
    lease = world.lease()
    world.may_populate.clear()
    opening = asyncio.create_task(world.paths.open(lease, remote_end()))
    await asyncio.to_thread(world.populating.wait, 20)
    if what == "released":
        await world.lender.release(lease)
    else:
        world.verbs.removing = True
        await world.paths.watch()
        world.verbs.removing = False
        world.clock.now_s += REOPEN_INTERVAL_S
        await world.paths.watch()
    world.may_populate.set()
    with pytest.raises(RefusedError) as error:
        await opening
    expected = {"released": Refusal.UNKNOWN, "vanished": Refusal.UNAVAILABLE}
    assert reason_of(error) == expected[what]
    assert world.keys.find(lease) is None
    assert world.verbs.regions == {}
    assert world.lender.used_bytes == 0


async def test_a_lease_that_expires(world: World) -> None:
    """A device that is silent for too long can do nothing any more, by RDMA least of all."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    world.clock.now_s += 11
    assert await world.lender.expire() == 1
    assert world.verbs.pairs == []
    assert world.verbs.regions == {}
    assert world.lender.used_bytes == 0


async def test_the_end_of_the_daemon(world: World) -> None:
    """Everything is closed, the device last."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    world.journal.clear()
    world.keys.disconnect_all()
    world.keys.close()
    assert [line.split()[0] for line in world.journal] == ["destroy"] * 2 + ["deregister"] * 2 + ["close"] * 2
    assert world.journal[-1] == "close device"
    assert world.verbs.open_devices == []
