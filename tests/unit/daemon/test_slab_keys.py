"""Registered memory and the paths to it: who has a key to what, and what a device is told when it cannot be."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infiniswap.daemon.refused import Refusal, RefusedError
from tests.support.daemon_api import MIB
from tests.support.fake_verbs import port, remote_end
from tests.support.rdma_world import World, rdma_world, reason_of


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A lender with RDMA."""
    async with rdma_world() as made:
        yield made


async def test_a_path_is_two_connected_queue_pairs(world: World) -> None:
    """What the device is told are the numbers of queue pairs that are in RTS against its own, and a usable probe."""
    lease = world.lease()
    opened = await world.paths.open(lease, remote_end(mtu_bytes=512))
    first, second = world.verbs.pairs
    assert [pair.number for pair in opened.end.queue_pairs] == [first.number, second.number]
    assert first.connection is not None
    assert second.connection is not None
    assert [first.connection.psn, second.connection.psn] == [pair.psn for pair in opened.end.queue_pairs]
    assert (first.connection.remote.number, second.connection.remote.number) == (17, 18)
    assert first.connection.mtu_bytes == 512
    assert opened.end.mtu_bytes == 1024, "the own one is told: the other end takes the smaller one itself"
    assert opened.end.reads_max == 16, "of the device's 128, no more than the protocol uses"
    probe = world.verbs.regions[opened.probe.rkey]
    assert (probe.address, probe.length) == (opened.probe.address, 4096)
    content = ctypes.string_at(probe.address, 4096)
    assert any(content)
    again = await world.paths.open(lease, remote_end())
    assert ctypes.string_at(again.probe.address, 4096) != content, "a new path has a new probe"
    assert opened.port == "rxe0/1"
    assert world.keys.counts.paths_opened == 2


async def test_an_earlier_path_is_gone_before_anything_else(world: World) -> None:
    """Late writes of a dead device must not land: its queue pairs are destroyed before new ones are made."""
    lease = await world.connected()
    before = [pair.number for pair in world.verbs.pairs]
    assert world.lender.connections(lease) == 2
    world.verbs.refuse_connections = True
    with pytest.raises(RefusedError, match="cannot be connected") as error:
        await world.paths.open(lease, remote_end())
    assert reason_of(error) is Refusal.UNAVAILABLE
    assert world.told("destroy")[:2] == [f"destroy pair {number}" for number in before]
    assert world.verbs.pairs == []
    assert world.lender.connections(lease) == 0


async def test_an_earlier_path_does_not_wait_for_registrations(world: World) -> None:
    """Slabs that must be registered first take their time; the earlier path is gone before that."""
    lease = await world.connected()
    before = [f"destroy pair {pair.number}" for pair in world.verbs.pairs]
    world.lender.map_slab(lease, 0)
    assert world.keys.deregister(lease, lease.slabs[0])
    world.journal.clear()
    await world.paths.open(lease, remote_end())
    assert world.journal == [*before, f"register {world.address(lease, 0):#x}"]


async def test_a_path_that_cannot_be_destroyed_stays_in_the_way(world: World) -> None:
    """While old queue pairs cannot be destroyed, there is no new path, and the count does not say that all is over."""
    lease = await world.connected()
    world.verbs.keep_pairs = True
    for _ in range(2):
        with pytest.raises(RefusedError, match="cannot be destroyed") as error:
            await world.paths.open(lease, remote_end())
        assert reason_of(error) is Refusal.UNAVAILABLE
    with pytest.raises(RefusedError):
        await world.paths.close(lease)
    assert world.lender.connections(lease) == 2
    world.verbs.keep_pairs = False
    await world.paths.close(lease)
    assert world.lender.connections(lease) == 0


async def test_closing_a_path_keeps_the_keys(world: World) -> None:
    """The queue pairs go, as often as asked; slabs stay registered and mapped, ready for the next path."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    region = world.lender.region(lease, 0)
    assert world.keys.healthy(lease)
    for _ in range(2):
        await world.paths.close(lease)
    assert not world.keys.healthy(lease)
    assert world.verbs.pairs == []
    assert world.lender.region(lease, 0) == region
    await world.paths.open(lease, remote_end())
    assert world.lender.region(lease, 0) == region
    assert world.keys.healthy(lease)


async def test_a_failed_queue_pair_is_noticed(world: World) -> None:
    """A device learns from its heartbeat that a queue pair of its path has failed at this end."""
    lease = await world.connected()
    assert world.keys.healthy(lease)
    world.verbs.pairs[1].failed = True
    assert not world.keys.healthy(lease)
    assert world.lender.connections(lease) == 2


async def test_slabs_of_a_lease_with_rdma_are_registered_and_never_punchable(world: World) -> None:
    """A slab is either registered or given to the engine with its descriptor, to punch pages out; never both."""
    plain = world.lease()
    world.lender.map_slab(plain, 0)
    assert world.engine.descriptors == [world.arena.fd]
    assert world.lender.region(plain, 0) is None
    ctypes.memset(world.address(plain, 0), 0xAA, MIB)
    with pytest.raises(RefusedError, match="take a new lease") as refused:
        await world.paths.open(plain, remote_end())
    assert refused.value.reason is Refusal.CONFLICT
    assert world.engine.exports[plain.export].mapped[0] == world.address(plain, 0), "it was not cut off"
    assert "unmap 0" not in world.journal
    assert world.lender.region(plain, 0) is None
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    assert world.engine.descriptors == [world.arena.fd, -1]
    assert (plain.punchable, lease.punchable) == ({0}, set())
    region = world.lender.region(lease, 0)
    assert region is not None
    assert region.address == world.address(lease, 0)
    assert world.verbs.regions[region.rkey].length == MIB


async def test_every_lease_has_a_protection_domain_of_its_own(world: World) -> None:
    """A key of one lease is of another domain than the queue pairs of any other."""
    first, second = await world.connected(), await world.connected()
    world.lender.map_slab(first, 0)
    world.lender.map_slab(second, 0)
    (device,) = world.verbs.open_devices
    assert len(device.domains) == 2
    for lease, domain in zip((first, second), device.domains, strict=True):
        region = world.lender.region(lease, 0)
        assert region is not None
        assert world.verbs.regions[region.rkey].domain is domain
        assert len(domain.pairs) == 2


@pytest.mark.parametrize(("code", "words"), [(errno.ENOMEM, "ulimit -l"), (errno.EFAULT, "cannot be registered")])
async def test_a_slab_that_cannot_be_registered_is_not_mapped(world: World, code: int, words: str) -> None:
    """The refusal says what is wrong, and the block is free again after its pages have gone back to the host."""
    lease = await world.connected()
    world.verbs.refuse_registrations = code
    with pytest.raises(RefusedError, match=words) as error:
        world.lender.map_slab(lease, 0)
    assert reason_of(error) is Refusal.UNAVAILABLE
    assert lease.slabs == {}
    assert world.engine.exports[lease.export].mapped == {}
    await world.lender.close()
    assert world.lender.used_bytes == 0
    assert world.arena.occupied_bytes() == 0


async def test_a_slab_for_which_the_host_has_no_memory(world: World) -> None:
    """Registered memory must be there at once: when it cannot be, that is no memory, not a crash."""
    lease = await world.connected()

    def fail(offset: int, length: int) -> None:
        raise OSError(errno.ENOMEM, f"no memory for {length} bytes at {offset}")

    world.arena.populate = fail  # type: ignore[method-assign]
    with pytest.raises(RefusedError) as error:
        world.lender.map_slab(lease, 0)
    assert reason_of(error) is Refusal.NO_MEMORY
    late = world.lease()
    with pytest.raises(RefusedError) as error:
        await world.paths.open(late, remote_end())
    assert reason_of(error) is Refusal.NO_MEMORY
    assert world.lender.connections(late) == 0


async def test_a_slab_that_the_engine_refuses(world: World) -> None:
    """The registration goes again with the block."""
    lease = await world.connected()
    world.engine.refuse_maps = True
    with pytest.raises(RefusedError):
        world.lender.map_slab(lease, 0)
    await world.lender.close()
    assert world.lender.used_bytes == 0
    assert len(world.verbs.regions) == 1, "only the probe"


async def test_a_path_through_which_nothing_could_be_reached(world: World) -> None:
    """Where no slab can be registered there is no path, and the lease goes on over TCP as if there were no RDMA."""
    lease = world.lease()
    world.verbs.refuse_slabs = errno.ENOMEM
    with pytest.raises(RefusedError, match="LimitMEMLOCK") as error:
        await world.paths.open(lease, remote_end())
    assert reason_of(error) is Refusal.UNAVAILABLE
    assert world.verbs.pairs == []
    assert world.verbs.regions == {}
    assert world.keys.find(lease) is None
    assert world.lender.used_bytes == 0
    world.lender.map_slab(lease, 2)
    assert world.engine.descriptors[-1] == world.arena.fd
    world.verbs.refuse_slabs = 0
    await world.lender.unmap_slab(lease, 2)
    await world.paths.open(lease, remote_end())
    world.lender.map_slab(lease, 2)
    assert world.lender.region(lease, 2) is not None


async def test_a_path_that_is_closed_before_there_were_slabs(world: World) -> None:
    """The lease is one for TCP again: nothing is registered ahead, and its slabs can be punched out."""
    lease = await world.connected()
    await world.paths.close(lease)
    assert world.keys.find(lease) is None
    assert world.verbs.regions == {}
    world.lender.map_slab(lease, 0)
    assert world.engine.descriptors == [world.arena.fd]


async def test_a_failed_second_path(world: World) -> None:
    """A path that fails although one before it worked leaves no keys either: the device does not know of any."""
    lease = await world.connected()
    world.lender.map_slab(lease, 0)
    world.verbs.ports = (port(state="DOWN"),)
    with pytest.raises(RefusedError, match="rxe0/1 is DOWN"):
        await world.paths.open(lease, remote_end())
    assert world.verbs.regions == {}
    assert world.lender.region(lease, 0) is None
    assert world.engine.exports[lease.export].mapped == {0: world.address(lease, 0)}


async def test_a_path_without_memory_to_spare(world: World) -> None:
    """With every block taken there is nothing to try a registration with: the path is opened, its own slabs as ever."""
    other = world.lease(16)
    for index in range(16):
        world.lender.map_slab(other, index)
    lease = world.lease()
    await world.paths.open(lease, remote_end())
    assert world.keys.healthy(lease)
    assert len(world.verbs.regions) == 1, "the probe"


async def test_no_way_to_the_other_end(world: World) -> None:
    """A port that is down, a family without a GID: a conflict in one sentence, and no queue pair is left."""
    lease = world.lease()
    world.verbs.ports = (port(state="DOWN"),)
    with pytest.raises(RefusedError, match="rxe0/1 is DOWN") as error:
        await world.paths.open(lease, remote_end())
    assert reason_of(error) is Refusal.CONFLICT
    assert world.verbs.pairs == []
