"""Whatever devices, the host and the evictor do in whatever order: the accounts add up, and a shortage ends in time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.refused import RefusedError
from infiniswap.shared.stream_messages import Noticed
from tests.support.daemon_api import MIB
from tests.support.evictor_world import ARENA_MIB, GIVE_UP_S, FakeSocket, make_world, tells


class Donor(RuleBasedStateMachine):
    """A daemon whose devices map, give up, confirm late or never, connect twice and vanish, on a host that breathes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = make_world()
        self.sockets: dict[Lease, FakeSocket] = {}

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        async def settled() -> None:
            await work
            await self.world.settle()

        self.loop.run_until_complete(settled())

    @property
    def leases(self) -> list[Lease]:
        return self.world.lender.leases.leases()

    @precondition(lambda self: len(self.leases) < 4)
    @rule(slab_mib=st.sampled_from([1, 2, 8]))
    def lease(self, slab_mib: int) -> None:
        self.world.lender.grant(device="d", device_id="i", size_bytes=8 * slab_mib * MIB, slab_bytes=slab_mib * MIB)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), index=st.integers(0, 7))
    def map(self, data: st.DataObject, index: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        try:
            self.world.lender.map_slab(lease, index)
        except RefusedError:
            return
        assert index in lease.slabs

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), index=st.integers(0, 7))
    def confirm(self, data: st.DataObject, index: int) -> None:
        """Of its own accord or after a notice, once or twice."""
        lease = data.draw(st.sampled_from(self.leases))
        self.run(self.world.lender.unmap_slab(lease, index))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), rates=st.dictionaries(st.integers(0, 7), st.floats(0, 1e4), max_size=8))
    def connect(self, data: st.DataObject, rates: dict[int, float]) -> None:
        lease = data.draw(st.sampled_from(self.leases))

        async def connect() -> None:
            self.sockets[lease] = self.world.connect(lease, tells(rates))

        self.run(connect())

    @precondition(lambda self: self.sockets)
    @rule(data=st.data(), notice=st.integers(0, 9), slabs=st.lists(st.integers(0, 1 << 31), max_size=4))
    def say_anything(self, data: st.DataObject, notice: int, slabs: list[int]) -> None:
        stream = data.draw(st.sampled_from(list(self.sockets.values()))).stream
        assert stream is not None
        stream.hear(Noticed(notice, tuple(slabs), tuple(slabs)))

    @precondition(lambda self: self.sockets)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        stream = self.sockets.pop(data.draw(st.sampled_from(list(self.sockets)))).stream
        assert stream is not None
        self.world.streams.finish(stream)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.run(self.world.lender.release(data.draw(st.sampled_from(self.leases))))

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.now_s += seconds
        self.run(self.world.lender.expire())

    @rule(mib=st.integers(0, ARENA_MIB))
    def host_breathes(self, mib: int) -> None:
        self.world.may_lend(mib)

    @rule()
    def step(self) -> None:
        self.run(self.world.evictor.step())

    @rule(mib=st.integers(0, 20))
    def force(self, mib: int) -> None:
        used = self.world.lender.used_bytes
        taken = 0

        async def force() -> None:
            nonlocal taken
            taken = self.world.evictor.force_now(mib * MIB)

        self.run(force())
        assert self.world.lender.used_bytes == used - taken
        assert taken >= min(mib * MIB, used)

    @rule()
    def a_shortage_ends_in_time(self) -> None:
        """Two steps, with all the time between them that a device has: nothing is missing any more."""
        self.run(self.world.evictor.step())
        self.world.clock.now_s += GIVE_UP_S + 0.01
        self.run(self.world.evictor.step())
        assert self.world.lender.shortage_bytes() == 0

    @invariant()
    def accounts_add_up(self) -> None:
        lender = self.world.lender
        promised = sum(len(lease.slabs) * lease.slab_bytes for lease in self.leases)
        allocator = lender.arena.allocator
        assert promised + lender.clearing.in_hand_bytes == lender.used_bytes
        assert lender.used_bytes + allocator.free_blocks(MIB) * MIB == ARENA_MIB * MIB
        for lease in self.leases:
            assert set(lease.leaving) <= set(lease.slabs)
            assert set(lease.activity) <= set(lease.slabs)
            assert set(self.world.engine.exports[lease.export].mapped) == set(lease.slabs)

    @invariant()
    def only_live_leases_have_notices(self) -> None:
        counts = self.world.lender.counts
        assert counts.slabs_released >= counts.evicted + counts.evicted_by_force

    def teardown(self) -> None:
        self.loop.run_until_complete(self.world.close())
        self.loop.close()


def test_accounts() -> None:
    """Promised, in hand and free add up after every step, and no shortage outlives a device's time."""
    run_state_machine_as_test(Donor, settings=settings(deadline=None, max_examples=60, stateful_step_count=30))
