"""Taking memory back: the least active on notice, by force once the time is over, and nobody silent is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.shared.stream_messages import SILENCE_S, FromDevice
from tests.support.daemon_api import MIB
from tests.support.evictor_world import ASK_S, GIVE_UP_S, World, make_world, tells


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A daemon of 64 MiB."""
    made = make_world()
    yield made
    await made.close()


async def test_nothing_is_asked_while_memory_lasts(world: World) -> None:
    """Everything promised fits: no question, no notice."""
    lease = world.lease(8)
    socket = world.connect(lease)
    await world.evictor.step()
    await world.settle()
    assert socket.of("ask") == socket.of("evict") == []


async def test_promised_memory_counts_though_it_was_never_touched(world: World) -> None:
    """Slabs that nobody has written to are wanted back like others: they may be filled at any moment."""
    lease = world.lease(8)
    world.connect(lease)
    assert world.lender.arena.occupied_bytes() == 0
    world.may_lend(3)
    assert world.lender.shortage_bytes() == 5 * MIB
    await world.evictor.step()
    assert len(lease.leaving) == 5


async def test_the_least_active_get_notice(world: World) -> None:
    """Two of eight must go: the ones in least use, and the notice says until when."""
    lease = world.lease(8)
    socket = world.connect(lease, tells({slab: 100.0 for slab in range(8) if slab not in (2, 5)}))
    world.may_lend(6)
    await world.evictor.step()
    await world.settle()
    (notice,) = socket.of("evict")
    assert (sorted(notice["slabs"]), notice["deadline_ms"], notice["now"]) == ([2, 5], GIVE_UP_S * 1000, False)
    assert set(lease.leaving) == {2, 5}
    assert world.lender.leases.leaving_ms(lease) == {2: 1000, 5: 1000}
    await world.evictor.step()
    assert len(socket.of("evict")) == 1, "what is leaving is enough"


async def test_what_is_given_up_in_time_is_not_forced(world: World) -> None:
    """The device's DELETE ends it; it counts as evicted."""
    lease = world.lease(4)
    world.connect(lease)
    world.may_lend(2)
    await world.evictor.step()
    for slab in list(lease.leaving):
        await world.lender.unmap_slab(lease, slab)
    world.clock.now_s += 2 * GIVE_UP_S
    await world.evictor.step()
    assert (world.lender.counts.evicted, world.lender.counts.evicted_by_force) == (2, 0)
    assert world.lender.used_bytes == 2 * MIB


async def test_force_when_the_time_is_over(world: World) -> None:
    """Not a moment before; the device is told, its slabs are cut off, and their memory is free."""
    lease = world.lease(4)
    socket = world.connect(lease)
    world.may_lend(1)
    await world.evictor.step()
    world.clock.now_s += GIVE_UP_S - 0.01
    await world.evictor.step()
    assert world.lender.counts.evicted_by_force == 0
    doomed = set(lease.leaving)
    world.clock.now_s += 0.02
    await world.evictor.step()
    await world.settle()
    assert world.lender.counts.evicted_by_force == 3
    assert set(lease.slabs) == {0, 1, 2, 3} - doomed == set(world.engine.exports[lease.export].mapped)
    assert world.lender.used_bytes == MIB
    (taken,) = socket.of("taken")
    assert set(taken["slabs"]) == doomed


async def test_who_is_silent_is_not_asked_and_pays_first(world: World) -> None:
    """A device that stands still costs others neither time nor slabs."""
    stuck, busy = world.lease(4, device="stuck"), world.lease(4, device="busy")
    silent = world.connect(stuck)
    world.clock.now_s += SILENCE_S + 0.1
    world.connect(busy, tells(dict.fromkeys(range(4), 50.0)))
    world.may_lend(6)
    began_s = time.monotonic()
    await world.evictor.step()
    assert time.monotonic() - began_s < ASK_S, "none of it was waited for"
    assert silent.of("ask") == []
    assert (len(stuck.leaving), len(busy.leaving)) == (2, 0)


async def test_no_answer_in_time_counts_as_cold(world: World) -> None:
    """The device listens but does not answer."""
    mute, busy = world.lease(4, device="mute"), world.lease(4, device="busy")
    world.connect(mute, lambda _: None)
    world.evictor._ask_s = 0.2
    world.connect(busy, tells(dict.fromkeys(range(4), 50.0)))
    world.may_lend(6)
    await world.evictor.step()
    assert (len(mute.leaving), len(busy.leaving)) == (2, 0)
    assert world.lender.counts.ask_timeouts == 1


async def test_without_a_stream_a_poll_tells(world: World) -> None:
    """The answer to a heartbeat carries what is to go."""
    lease = world.lease(4)
    world.may_lend(3)
    await world.evictor.step()
    assert list(world.lender.leases.leaving_ms(lease).values()) == [1000]


async def test_a_stream_that_comes_late_hears_of_it(world: World) -> None:
    """With what is left of the time."""
    lease = world.lease(4)
    world.may_lend(3)
    await world.evictor.step()
    world.clock.now_s += 0.25
    socket = world.connect(lease)
    await world.settle()
    (notice,) = socket.of("evict")
    assert notice["slabs"] == list(lease.leaving)
    assert notice["deadline_ms"] == pytest.approx(750, abs=2)


async def test_an_earlier_deadline_stays(world: World) -> None:
    """A drain with time does not prolong what is to go now, and a later notice shortens."""
    lease = world.lease(2)
    world.evictor.give_notice({lease: [0]}, deadline_s=1.0)
    world.evictor.give_notice({lease: [0, 1]}, deadline_s=30.0)
    assert world.lender.leases.leaving_ms(lease) == {0: 1000, 1: 30_000}
    world.evictor.give_notice({lease: [0, 1, 7]}, deadline_s=0.5, now=True)
    assert world.lender.leases.leaving_ms(lease) == {0: 500, 1: 500}


async def test_force_now_takes_the_least_active_by_the_last_figures(world: World) -> None:
    """Without asking anybody, and also what has notice."""
    lease = world.lease(4)
    socket = world.connect(lease, tells({0: 9.0, 1: 80.0, 2: 70.0, 3: 60.0}))
    world.may_lend(3)
    await world.evictor.step()
    await world.evictor.survey()
    assert world.evictor.force_now(2 * MIB) == 2 * MIB
    assert set(lease.slabs) == {1, 2}
    assert set(world.engine.exports[lease.export].mapped) == {1, 2}
    await world.settle()
    assert world.lender.used_bytes == 2 * MIB
    assert set(socket.of("taken")[0]["slabs"]) == {0, 3}


async def test_a_device_that_confirms_and_writes_on(world: World) -> None:
    """Its slab is cut off before its memory is anybody else's."""
    lease = world.lease(2)
    await world.lender.unmap_slab(lease, 1)
    assert set(world.engine.exports[lease.export].mapped) == {0}
    await world.lender.unmap_slab(lease, 1)
    assert world.lender.used_bytes == MIB


async def test_a_lease_that_ends_while_it_is_asked(world: World) -> None:
    """Its slabs are nobody's: others are not asked for more than is still missing."""
    going, staying = world.lease(4, device="going"), world.lease(4, device="staying")

    def end(message: dict[str, Any]) -> FromDevice | None:
        if message["type"] == "ask" and world.lender.leases.is_live(going):
            world.tasks.append(asyncio.create_task(world.lender.release(going)))
        return tells({})(message)

    world.connect(going, end)
    world.connect(staying)
    world.may_lend(4)
    await world.evictor.step()
    await world.settle()
    assert not world.lender.leases.is_live(going)
    assert not staying.leaving
    assert world.lender.used_bytes == 4 * MIB


async def test_a_quota(world: World) -> None:
    """One lease may not hold more; another one still may."""
    world.lender.lease_bytes_max = 2 * MIB
    first, second = world.lease(0), world.lease(2)
    assert world.lender.free_bytes(second) == 0
    assert world.lender.free_bytes(first) == 2 * MIB
    first_of_three, _ = world.lender.grant(device="d", device_id="i", size_bytes=3 * MIB, slab_bytes=MIB)
    for slab in range(2):
        world.lender.map_slab(first_of_three, slab)
    with pytest.raises(RefusedError, match="one lease may hold 2 MiB") as refusal:
        world.lender.map_slab(first_of_three, 2)
    assert refusal.value.reason is Refusal.NO_MEMORY


async def test_not_lending(world: World) -> None:
    """Nothing is offered, a map is refused, and what is held stays and can be mapped again to the same place."""
    lease = world.lease(2)
    world.lender.lending = False
    assert world.lender.offer().free_bytes == world.lender.free_bytes(lease) == 0
    world.lender.map_slab(lease, 1)
    other, _ = world.lender.grant(device="d", device_id="i", size_bytes=MIB, slab_bytes=MIB)
    with pytest.raises(RefusedError) as refusal:
        world.lender.map_slab(other, 0)
    assert refusal.value.reason is Refusal.UNAVAILABLE


def many(world: World, leases: int, slabs: int) -> list[Lease]:
    """Leases of a hot and a cold half."""
    return [world.lease(slabs, device=f"d{number}") for number in range(leases)]


async def test_hot_slabs_stay(world: World) -> None:
    """In at least 95 % of batches: half of all slabs are hot, and each batch takes two."""
    clean = batches = 0
    leases = many(world, 4, 8)
    hot = dict.fromkeys(range(0, 8, 2), 100.0)
    for lease in leases:
        world.connect(lease, tells(hot))
    for _ in range(400):
        world.may_lend(30)
        await world.evictor.step()
        gone = [(lease, slab) for lease in leases for slab in lease.leaving]
        batches += 1
        clean += not any(slab in hot for _, slab in gone)
        for lease, slab in gone:
            await world.lender.unmap_slab(lease, slab)
            world.may_lend(64)
            world.lender.map_slab(lease, slab)
    assert world.lender.counts.ask_timeouts == 0
    assert batches == 400
    assert clean >= 0.95 * batches
