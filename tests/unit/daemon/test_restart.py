"""Whatever devices do and whenever the daemon is restarted, leases and pages are what they were, and it all adds up."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from infiniswap.daemon.keeper import Kept
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.refused import RefusedError
from infiniswap.daemon.restart import KeptMemory, take_up
from infiniswap.daemon.slab_keys import SlabKeys
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine
from tests.support.fake_verbs import FakeVerbs, remote_end

TOTAL_BYTES = 8 * MIB
TTL_S, GRACE_S = 10.0, 20.0
LEASES_MAX = 3


class Shelf:
    """A keeper in the test's own hands."""

    keeps = True

    def __init__(self) -> None:
        self.kept: Kept | None = None

    def take(self) -> Kept | None:
        return None if self.kept is None else Kept(*map(os.dup, self.kept))

    def keep(self, kept: Kept) -> None:
        self.forget()
        self.kept = Kept(*map(os.dup, kept))

    def lasts(self) -> bool:
        return True

    def leave(self) -> None:
        pass

    def forget(self) -> None:
        if self.kept is not None:
            self.kept.close()
            self.kept = None


class Life:
    """One daemon's life over what the shelf has."""

    def __init__(
        self, shelf: Shelf, clock: FakeClock, total_bytes: int = TOTAL_BYTES, verbs: FakeVerbs | None = None
    ) -> None:
        self.clock = clock
        self.memory = KeptMemory(shelf, huge_pages=False, leases_max=LEASES_MAX)
        self.restored = self.memory.find(total_bytes)
        self.arena = self.memory.open_arena(total_bytes)
        self.engine = FakeEngine()
        self.table = LeaseTable(clock, ttl_s=TTL_S, grace_s=GRACE_S, leases_max=LEASES_MAX)
        keys = None if verbs is None else SlabKeys(self.arena, verbs.host(clock), clock=clock)
        if keys is not None:
            keys.host.start()
        self.lender = Lender(
            arena=self.arena,
            leases=self.table,
            engine=self.engine,
            monitor=None,
            keys=keys,
            record=self.memory.record,
            incarnation=self.memory.incarnation,
        )

    async def begin(self) -> None:
        if self.restored is not None:
            await take_up(self.lender, self.restored.leases)
        self.memory.keep(self.arena, http_port=1, data_port=2)

    def tick(self) -> None:
        assert self.memory.record is not None
        self.memory.record.tick(self.clock(), self.table.leases())

    async def end(self) -> None:
        await self.lender.close()
        self.engine.close()
        self.arena.close()
        self.memory.close()


class Lives(RuleBasedStateMachine):
    """Devices that lease, beat, map, scribble, unmap, release and fall silent, on a daemon that is restarted."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.shelf = Shelf()
        self.life = Life(self.shelf, self.clock)
        self.run(self.life.begin())
        self.incarnation = self.life.lender.incarnation
        self.tokens: dict[str, str] = {}
        self.deadlines: dict[str, float] = {}
        self.pages: dict[tuple[str, int], bytes] = {}
        self.next_byte = 0

    def run(self, step: object) -> object:
        return self.loop.run_until_complete(step)  # type: ignore[arg-type]

    @property
    def lender(self) -> Lender:
        return self.life.lender

    def forget(self, lease_id: str) -> None:
        del self.tokens[lease_id], self.deadlines[lease_id]
        for key in [key for key in self.pages if key[0] == lease_id]:
            del self.pages[key]

    def prune(self) -> None:
        """Forget leases that have rightly ended: that had lapsed."""
        alive = {lease.lease_id for lease in self.life.table.leases()}
        for lease_id in set(self.tokens) - alive:
            assert self.clock.now_s >= self.deadlines[lease_id], "a lease ended before its time"
            self.forget(lease_id)

    def lease(self, data: st.DataObject) -> Lease:
        """Any lease, as its device proves it: by the token of its grant, in whatever life that was."""
        lease_id = data.draw(st.sampled_from(list(self.tokens)))  # in the order of their grants: ids are random
        lease = self.life.table.authenticate(lease_id, self.tokens[lease_id])
        assert lease is not None
        return lease

    @rule(slab=st.sampled_from([MIB, 2 * MIB, 4 * MIB]), slabs=st.integers(1, 5))
    def grant(self, slab: int, slabs: int) -> None:
        try:
            lease, token = self.lender.grant(device="d", device_id="i", size_bytes=slab * slabs, slab_bytes=slab)
        except RefusedError:
            assert len(self.tokens) == LEASES_MAX
            return
        self.tokens[lease.lease_id] = token
        self.deadlines[lease.lease_id] = self.clock.now_s + TTL_S

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), index=st.integers(0, 4))
    def map(self, data: st.DataObject, index: int) -> None:
        lease = self.lease(data)
        if index >= lease.slab_count or index in lease.slabs:
            return
        promised = self.lender.free_bytes(lease) >= lease.slab_bytes
        self.run(self.lender.make_room(lease))
        self.prune()
        try:
            self.lender.map_slab(lease, index)
        except RefusedError:
            assert not promised
            return
        address = self.life.engine.exports[lease.export].mapped[index]
        assert not any(ctypes.string_at(address, lease.slab_bytes)), "a new slab is not zero"
        self.next_byte = self.next_byte % 255 + 1
        ctypes.memset(address, self.next_byte, lease.slab_bytes)
        self.pages[lease.lease_id, index] = bytes([self.next_byte])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), index=st.integers(0, 4))
    def unmap(self, data: st.DataObject, index: int) -> None:
        lease = self.lease(data)
        if index < lease.slab_count:
            self.run(self.lender.unmap_slab(lease, index))
            self.pages.pop((lease.lease_id, index), None)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), times=st.integers(1, 3), expiring=st.booleans())
    def release(self, data: st.DataObject, times: int, expiring: bool) -> None:
        lease = self.lease(data)

        async def at_once() -> None:
            steps = [self.lender.release(lease) for _ in range(times)]
            await asyncio.gather(*([self.lender.expire()] if expiring else []), *steps)

        self.run(at_once())
        self.forget(lease.lease_id)
        self.prune()

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease = self.lease(data)
        assert self.lender.renew(lease)
        self.deadlines[lease.lease_id] = self.clock.now_s + TTL_S

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.0, 11.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.run(self.lender.expire())
        for lease_id, deadline_s in self.deadlines.items():
            kept = any(lease.lease_id == lease_id for lease in self.life.table.leases())
            assert kept == (self.clock.now_s < deadline_s + GRACE_S)
        self.prune()

    @rule(seconds=st.sampled_from([1.0, 100.0]))
    def forgive(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.life.table.forgive(seconds)
        self.deadlines = {lease_id: deadline_s + seconds for lease_id, deadline_s in self.deadlines.items()}

    @rule(away_s=st.sampled_from([0.0, 1.0, 1000.0]), another_clock=st.booleans(), lost=st.booleans())
    def restart(self, away_s: float, another_clock: bool, lost: bool) -> None:
        """However long that takes, and whatever the clock shows afterwards, it costs no lease any of its life."""
        self.life.tick()
        before = self.life.table.leases()
        left = {lease.lease_id: lease.deadline_s - self.clock.now_s for lease in before}
        counted = (self.lender.offer(MIB), {lease.lease_id: dict(lease.slabs) for lease in before})
        self.run(self.life.end())
        self.clock.now_s += away_s
        if another_clock:
            self.clock.now_s = 5000.0 - self.clock.now_s % 1000
        if lost:
            self.shelf.forget()
        self.life = Life(self.shelf, self.clock)
        self.run(self.life.begin())
        if lost:
            assert self.lender.incarnation != self.incarnation
            self.incarnation = self.lender.incarnation
            self.tokens, self.deadlines, self.pages = {}, {}, {}
            return
        assert self.lender.incarnation == self.incarnation
        after = self.life.table.leases()
        assert {lease.lease_id: dict(lease.slabs) for lease in after} == counted[1]
        assert self.lender.offer(MIB) == counted[0]
        for lease in after:
            now_left = lease.deadline_s - self.clock.now_s
            least = left[lease.lease_id]
            assert now_left == pytest.approx(least if least <= 0 else TTL_S)
            self.deadlines[lease.lease_id] = lease.deadline_s

    @invariant()
    def pages_are_what_was_written(self) -> None:
        for lease in self.life.table.leases():
            mapped = self.life.engine.exports[lease.export].mapped
            assert set(mapped) == set(lease.slabs)
            for index, address in mapped.items():
                assert address == self.life.arena.address + lease.slabs[index]
                for at in (0, lease.slab_bytes // 2, lease.slab_bytes - 1):
                    assert ctypes.string_at(address + at, 1) == self.pages[lease.lease_id, index]

    @invariant()
    def everything_adds_up(self) -> None:
        leases = self.life.table.leases()
        assert {lease.lease_id for lease in leases} == set(self.tokens)
        ranges = sorted((offset, lease.slab_bytes) for lease in leases for offset in lease.slabs.values())
        for (offset, size), (following, _) in itertools.pairwise(ranges):
            assert offset + size <= following
        offer = self.lender.offer(MIB)
        assert sum(size for _, size in ranges) == self.lender.used_bytes == offer.used_bytes + offer.lapsed_bytes
        assert offer.used_bytes + offer.free_bytes == TOTAL_BYTES
        assert self.life.arena.occupied_bytes() <= self.lender.used_bytes
        counts = self.lender.counts
        taken_up = 0 if self.life.restored is None else len(self.life.restored.leases)
        assert taken_up + counts.leases_granted == counts.leases_expired + counts.leases_released + len(leases)

    def teardown(self) -> None:
        for lease in self.life.table.leases():
            self.run(self.lender.release(lease))
        assert self.life.arena.occupied_bytes() == self.lender.used_bytes == 0
        self.run(self.life.end())
        self.shelf.forget()
        self.loop.close()


def test_lives_of_a_daemon() -> None:
    """Grant, renew, expire, release, map, unmap, forgive, restart in any order: the invariants hold throughout."""
    run_state_machine_as_test(Lives, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


async def started(shelf: Shelf, clock: FakeClock) -> Life:
    """A daemon's life that has begun."""
    life = Life(shelf, clock)
    await life.begin()
    return life


async def test_what_was_free_is_cleared_first() -> None:
    """Bytes that a kill left in memory that is nobody's are gone before anybody gets it."""
    shelf, clock = Shelf(), FakeClock()
    life = await started(shelf, clock)
    lease, _ = life.lender.grant(device="d", device_id="i", size_bytes=4 * MIB, slab_bytes=MIB)
    life.lender.map_slab(lease, 0)
    ctypes.memset(life.arena.address, 0xEE, TOTAL_BYTES)  # in slab 0 by its device, elsewhere by whoever was killed
    await life.end()
    life = await started(shelf, clock)
    assert life.arena.occupied_bytes() == MIB
    assert ctypes.string_at(life.arena.address, TOTAL_BYTES) == b"\xee" * MIB + bytes(7 * MIB)
    await life.end()
    shelf.forget()


async def test_registered_slabs_stay_unpunched() -> None:
    """A slab that was registered for RDMA is mapped without the descriptor again, so that it can be registered anew."""
    shelf, clock = Shelf(), FakeClock()
    life = await started(shelf, clock)
    lease, _ = life.lender.grant(device="d", device_id="i", size_bytes=2 * MIB, slab_bytes=MIB)
    life.lender.map_slab(lease, 0)
    life.lender.map_slab(lease, 1)
    lease.punchable.discard(1)
    assert life.memory.record is not None
    life.memory.record.mapped(lease, 1)
    await life.end()
    life = await started(shelf, clock)
    (again,) = life.table.leases()
    assert again.punchable == {0}
    assert life.engine.exports[again.export].descriptors == {0: life.arena.fd, 1: -1}
    await life.end()
    shelf.forget()


async def test_registrations_are_renewed(caplog: pytest.LogCaptureFixture) -> None:
    """After a restart a device that asks for a path has its slabs registered anew where they are now, bytes and all."""
    shelf, clock = Shelf(), FakeClock()
    life = Life(shelf, clock, verbs=FakeVerbs())
    await life.begin()
    lease, _ = life.lender.grant(device="d", device_id="i", size_bytes=2 * MIB, slab_bytes=MIB)
    await RdmaPaths(life.lender).open(lease, remote_end())
    for index in range(2):
        life.lender.map_slab(lease, index)
        ctypes.memset(life.arena.address + lease.slabs[index], 0x40 + index, MIB)
    assert lease.punchable == set()
    pooled = life.lender.keys.pooled(lease)
    assert life.lender.used_bytes == (2 + pooled) * MIB
    await life.end()
    life = Life(shelf, clock, verbs=FakeVerbs())
    await life.begin()
    (again,) = life.table.leases()
    assert life.lender.used_bytes == 2 * MIB, "what was in a pool is nobody's"
    assert life.lender.keys.find(again) is None
    opened = await RdmaPaths(life.lender).open(again, remote_end())
    assert {slab: region.address for slab, region in opened.regions.items()} == {
        slab: life.arena.address + offset for slab, offset in again.slabs.items()
    }
    for index, region in opened.regions.items():
        assert ctypes.string_at(region.address, MIB) == bytes([0x40 + index]) * MIB
    assert caplog.text == ""
    await life.end()
    shelf.forget()


async def test_an_engine_that_refuses_costs_that_lease_alone(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be served again is cleared and free; the daemon starts."""
    shelf, clock = Shelf(), FakeClock()
    life = await started(shelf, clock)
    for _ in range(2):
        lease, _ = life.lender.grant(device="d", device_id="i", size_bytes=MIB, slab_bytes=MIB)
        life.lender.map_slab(lease, 0)
    await life.end()
    life = Life(shelf, clock)
    life.engine.exports_max = 1
    await life.begin()
    assert "cannot be taken up after the restart" in caplog.text
    await life.lender.clearing.close()
    assert (len(life.table), life.lender.used_bytes) == (1, MIB)
    await life.end()
    shelf.forget()


async def test_memory_that_does_not_fit_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """Of another size, damaged, not sealed: a sentence in the log and a new incarnation."""
    shelf, clock = Shelf(), FakeClock()
    life = await started(shelf, clock)
    incarnations = {life.lender.incarnation}
    await life.end()
    life = Life(shelf, clock, total_bytes=2 * TOTAL_BYTES)
    assert life.restored is None
    assert "the memory kept is 8MiB and --memory asks for 16MiB: starting without it" in caplog.text
    await life.begin()
    incarnations.add(life.lender.incarnation)
    life.lender.grant(device="d", device_id="i", size_bytes=MIB, slab_bytes=MIB)
    assert life.memory.record is not None
    life.memory.record._store(512, 77)
    await life.end()
    life = Life(shelf, clock, total_bytes=2 * TOTAL_BYTES)
    assert "the memory kept is damaged: lease 0 does not hold: starting without it" in caplog.text
    await life.begin()
    incarnations.add(life.lender.incarnation)
    await life.end()
    assert shelf.kept is not None
    unsealed = Kept(os.memfd_create("a", os.MFD_ALLOW_SEALING), os.dup(shelf.kept.leases))
    shelf.keep(unsealed)
    unsealed.close()
    life = Life(shelf, clock, total_bytes=2 * TOTAL_BYTES)
    assert "the memory kept can be cut short by others" in caplog.text
    incarnations.add(life.lender.incarnation)
    await life.end()
    assert len(incarnations) == 4
    shelf.forget()
