"""A lease lives, lapses and ends, each of it once, whoever comes at the same moment; all memory is accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.refused import Refusal, RefusedError
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine

TTL_S, GRACE_S = 10.0, 20.0


@pytest.fixture
def clock() -> FakeClock:
    """Of the leases."""
    return FakeClock()


@pytest.fixture
def lender(clock: FakeClock) -> Iterator[Lender]:
    """4 MiB to lend."""
    arena = Arena(4 * MIB)
    leases = LeaseTable(clock, ttl_s=TTL_S, grace_s=GRACE_S)
    yield Lender(arena=arena, leases=leases, engine=FakeEngine(), monitor=None)
    arena.close()


def grant(lender: Lender, slabs: int, mapped: int | None = None) -> Lease:
    """A lease of so many slabs of 1 MiB, mapped."""
    lease = lender.grant(device="d", device_id="i", size_bytes=slabs * MIB, slab_bytes=MIB)[0]
    for index in range(slabs if mapped is None else mapped):
        lender.map_slab(lease, index)
    return lease


async def test_a_lapsed_lease_is_taken_up_again(lender: Lender, clock: FakeClock) -> None:
    """Within its grace a lease keeps every slab, and a heartbeat gives it its whole life back."""
    lease = grant(lender, 2)
    held = dict(lease.slabs)
    clock.now_s += TTL_S + GRACE_S - 0.5
    assert await lender.expire() == 0
    assert lender.leases.has_lapsed(lease)
    assert lender.renew(lease)
    assert (lease.slabs, lender.counts.leases_revived) == (held, 1)
    assert lender.leases.remaining_s(lease) == TTL_S
    clock.now_s += TTL_S + GRACE_S
    assert await lender.expire() == 1
    assert lender.used_bytes == 0
    await lender.close()


async def test_pages_renew_a_lease(lender: Lender, clock: FakeClock) -> None:
    """Without a heartbeat it lives as long as its pages move, and no longer; each of the times is counted."""
    lease, engine = grant(lender, 2), lender._engine
    assert isinstance(engine, FakeEngine)
    for beat in range(1, 4):
        clock.now_s += TTL_S - 0.5
        engine.exports[lease.export].requests += 1
        lender.hear_pages()
        assert (lender.leases.remaining_s(lease), lender.counts.leases_renewed_by_pages) == (TTL_S, beat)
    clock.now_s += 1.0
    engine.exports[lease.export].requests += 1
    lender.hear_pages()
    assert lender.counts.leases_renewed_by_pages == 3, "heartbeats were not missed yet"
    for _ in range(4):
        clock.now_s += (TTL_S + GRACE_S) / 4
        lender.hear_pages()
    assert await lender.expire() == 1
    await lender.close()


async def test_a_lapsed_lease_gives_way(lender: Lender, clock: FakeClock) -> None:
    """Who needs memory gets that of lapsed leases, the longest silent first and no more of them than it takes."""
    first, second = grant(lender, 2), grant(lender, 1)
    clock.now_s += 1
    lender.renew(second)
    clock.now_s += TTL_S
    asking = grant(lender, 3, mapped=1)
    offer = lender.offer(MIB)
    assert (offer.free_bytes, offer.used_bytes, offer.lapsed_bytes) == (3 * MIB, MIB, 3 * MIB)
    assert lender.free_bytes(asking) == 3 * MIB
    await lender.make_room(asking)
    lender.map_slab(asking, 1)
    assert [lender.leases.is_live(lease) for lease in (first, second)] == [False, True]
    await lender.make_room(asking)
    lender.map_slab(asking, 2)
    assert lender.leases.is_live(second)
    assert lender.counts.leases_expired == 1
    await lender.close()


async def test_nobody_gives_way_to_itself(lender: Lender, clock: FakeClock) -> None:
    """A device whose own lease has lapsed is not offered its own slabs, and does not lose them by asking."""
    lease = grant(lender, 5, mapped=4)
    clock.now_s += TTL_S
    assert lender.free_bytes(lease) == 0
    await lender.make_room(lease)
    with pytest.raises(RefusedError) as refusal:
        lender.map_slab(lease, 4)
    assert refusal.value.reason is Refusal.NO_MEMORY
    assert len(lease.slabs) == 4
    await lender.unmap_slab(lease, 0)
    other = grant(lender, 1)
    clock.now_s += TTL_S
    await lender.make_room(lease)
    assert [lender.leases.is_live(it) for it in (lease, other)] == [True, False]
    await lender.close()


async def test_a_heartbeat_in_the_instant_of_expiry(lender: Lender, clock: FakeClock) -> None:
    """Whatever the order, a lease whose heartbeat was taken lives, and one that has ended takes none."""
    for beat_first in (True, False):
        lease = grant(lender, 1)
        clock.now_s += TTL_S + GRACE_S
        expiring = asyncio.create_task(lender.expire())
        if not beat_first:
            await asyncio.sleep(0)  # the task has begun, and waits for the memory to be cleared
        renewed = lender.renew(lease)
        await expiring
        assert renewed == beat_first == lender.leases.is_live(lease)
        await lender.release(lease)
    assert (lender.counts.leases_expired, lender.counts.leases_released) == (1, 1)
    assert lender.used_bytes == 0
    await lender.close()


async def test_release_and_expiry_at_once(lender: Lender, clock: FakeClock) -> None:
    """A lease that is released by several at once, while it expires, ends once and is counted once."""
    lease = grant(lender, 3)
    clock.now_s += TTL_S + GRACE_S
    await asyncio.gather(lender.expire(), lender.release(lease), lender.expire(), lender.release(lease))
    assert (lender.counts.leases_expired, lender.counts.leases_released, lender.counts.slabs_released) == (1, 0, 3)
    other = grant(lender, 3)
    clock.now_s += TTL_S + GRACE_S
    await asyncio.gather(lender.release(other), lender.expire(), lender.release(other))
    assert (lender.counts.leases_expired, lender.counts.leases_released, lender.counts.slabs_released) == (1, 1, 6)
    assert (lender.used_bytes, len(lender.leases)) == (0, 0)
    await lender.close()


async def test_the_host_gets_lapsed_memory_first(lender: Lender, clock: FakeClock) -> None:
    """Lapsed leases end at once when the host needs what they hold, and no more of them than that takes."""
    grant(lender, 1)
    clock.now_s += 1
    second = grant(lender, 2)
    alive = grant(lender, 1)
    assert lender.give_way(4 * MIB) == 0
    clock.now_s += TTL_S
    lender.renew(alive)
    assert lender.give_way(MIB) == MIB
    assert lender.leases.leases() == [second, alive]
    assert lender.give_way(4 * MIB) == 2 * MIB
    assert lender.leases.leases() == [alive]
    assert lender.clearing.in_hand_bytes == 3 * MIB
    await lender.close()
    assert lender.used_bytes == MIB
    assert lender.counts.leases_expired == 2


async def test_nobody_gives_way_for_nothing(lender: Lender, clock: FakeClock) -> None:
    """A daemon that lends nothing now, or no more to this lease, ends no lapsed lease for it."""
    lapsed = grant(lender, 4)
    clock.now_s += TTL_S
    asking = grant(lender, 2, mapped=0)
    lender.lending = False
    await lender.make_room(asking)
    lender.lending, lender.lease_bytes_max = True, 0
    await lender.make_room(asking)
    assert lender.free_bytes(asking) == 0
    assert lender.leases.is_live(lapsed)
    await lender.close()
