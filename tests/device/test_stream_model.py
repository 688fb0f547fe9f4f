"""Both ends of a lease's stream in one process, over a wire that delays, loses, breaks and doubles: accounts add up.

The daemon's end is its lender, evictor and streams, the device's its LeaseStream and Evictions; between them messages
lie on a wire until a rule delivers them, each end learns of a break when it likes, and a poll tells what was lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from infiniswap.daemon.refused import RefusedError
from infiniswap.daemon.streams import Stream
from infiniswap.device.eviction import Evictions
from infiniswap.device.lease_stream import LeaseStream
from infiniswap.device.peer import Peer
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import SlabState
from infiniswap.policy.mapping import Reason
from infiniswap.policy.placement import CoolDown
from infiniswap.shared.address import HostPort
from infiniswap.shared.stream_messages import encode, from_daemon, from_device
from tests.support.daemon_api import MIB
from tests.support.evictor_world import ARENA_MIB, GIVE_UP_S, make_world
from tests.support.lease import make_lease

SLABS = 8
SLOT = 0


class Wire:
    """One connection: what is under way each way. It takes what is sent, also when it is broken already."""

    def __init__(self) -> None:
        self.down: list[str] = []  # to the device
        self.up: list[str] = []
        self.broken = False
        self.stream: Stream | None = None

    async def send_str(self, data: str) -> None:
        """The daemon says something."""
        if not self.broken:
            self.down.append(data)


class SlabTable:
    """The data path, as far as giving up needs it: what is unmapped drains until a rule lets it be released."""

    def __init__(self) -> None:
        self.slabs = np.zeros(SLABS, dtype=[("state", np.uint32)])
        self.unmapped: list[int] = []

    def unmap_slab(self, slab: int) -> None:
        """As the engine does it."""
        if self.slabs["state"][slab] != SlabState.MAPPED:
            raise OSError("it is not mapped")
        self.slabs["state"][slab] = SlabState.DRAINING
        self.unmapped.append(slab)


class Client:
    """The device's way to ask by HTTP; the machine does that itself."""


class BothEnds(RuleBasedStateMachine):
    """A donor with one lease, its device, and what lies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = make_world(ask_s=0.01)  # what lies on a wire comes by another rule: it is waited for in vain
        clock = self.world.clock
        self.lease, _ = self.world.lender.grant(device="d", device_id="i", size_bytes=SLABS * MIB, slab_bytes=MIB)
        self.slabs, self.engine = Slabs(clock), SlabTable()
        client: Any = Client()
        self.peer = Peer(SLOT, HostPort("h", 1), client, self.slabs)
        self.held = replace(make_lease(1), incarnation=self.world.lender.incarnation, renewal=[clock()])
        self.peer.lease = self.held
        cool_down = CoolDown(clock)
        self.evictions = Evictions(self.engine, self.slabs, np.zeros(SLABS), cool_down=cool_down, clock=clock)
        self.end = LeaseStream(self.peer, self.held, self.evictions, clock=clock, rng=Random(1))
        self.wires: list[Wire] = []
        self.maps = 0

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """On the loop, and let messages and clearing come to their ends."""

        async def settled() -> None:
            await work
            await self.world.settle()

        self.loop.run_until_complete(settled())

    # ---- the device ----

    @rule(slabs=st.sets(st.integers(0, SLABS - 1), min_size=1))
    def map(self, slabs: set[int]) -> None:
        """Slabs that are nowhere get memory."""
        for slab in slabs:
            if self.slabs.holder(slab) is not None:
                continue
            try:
                self.world.lender.map_slab(self.lease, slab)
            except RefusedError:
                continue
            self.slabs.take(slab, SLOT)
            self.engine.slabs["state"][slab] = SlabState.MAPPED
            self.maps += 1

    @precondition(lambda self: (self.engine.slabs["state"] == SlabState.DRAINING).any())
    @rule(data=st.data(), told=st.booleans())
    def release(self, data: st.DataObject, told: bool) -> None:
        """A slab has drained: it is given back, and the daemon may never hear of it."""
        draining = np.flatnonzero(self.engine.slabs["state"] == SlabState.DRAINING).tolist()
        slab = data.draw(st.sampled_from(draining))
        self.engine.slabs["state"][slab] = SlabState.UNMAPPED
        self.slabs.let_go(slab)
        if told:
            self.run(self.world.lender.unmap_slab(self.lease, slab))

    @rule()
    def retry(self) -> None:
        """What could not be given up at once."""
        self.evictions.step()

    @rule()
    def poll(self) -> None:
        """A heartbeat: the daemon's word counts, as peers.py takes it."""
        lender = self.world.lender
        lender.renew(self.lease)
        self.evictions.taken(self.peer, sorted(self.peer.slabs - set(self.lease.slabs)))
        leaving = lender.leases.leaving_ms(self.lease)
        if leaving:
            self.evictions.give_up(self.peer, leaving)
        for slab in sorted(set(self.lease.slabs) - self.peer.slabs):  # ours by mistake
            self.run(lender.unmap_slab(self.lease, slab))

    # ---- the wire ----

    @rule()
    def connect(self) -> None:
        """Another stream, though there may be one: the daemon goes by the last."""

        async def connect() -> None:
            wire = Wire()
            wire.stream = Stream(self.world.lender, self.lease, wire, self.world.clock)
            self.world.streams.begin(wire.stream)
            self.world.tasks.append(asyncio.create_task(wire.stream.write()))
            self.wires.append(wire)

        self.run(connect())

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), count=st.integers(1, 6))
    def to_device(self, data: st.DataObject, count: int) -> None:
        """Some of what was sent arrives, on whichever stream."""
        wire = data.draw(st.sampled_from(self.wires))
        for _ in range(min(count, len(wire.down))):
            answer = self.end._handle(_heard(wire.down.pop(0)))
            if answer is not None and not wire.broken:
                wire.up.append(encode(answer))

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), count=st.integers(1, 6))
    def to_daemon(self, data: st.DataObject, count: int) -> None:
        """The same the other way."""
        wire = data.draw(st.sampled_from(self.wires))
        assert wire.stream is not None
        for _ in range(min(count, len(wire.up))):
            wire.stream.hear(from_device(wire.up.pop(0)))

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), noticed=st.booleans())
    def breaks(self, data: st.DataObject, noticed: bool) -> None:
        """What is under way is lost; the daemon may notice now or never."""
        wire = data.draw(st.sampled_from(self.wires))
        wire.broken = True
        wire.down.clear()
        wire.up.clear()
        assert wire.stream is not None
        if noticed:
            self.world.streams.finish(wire.stream)
            self.wires.remove(wire)

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), number=st.integers(0, 50))
    def a_stale_incarnation(self, data: st.DataObject, number: int) -> None:
        """A beat of another life renews nothing, and makes the device ask."""
        before = self.held.renewal[0]
        self.peer.wake.clear()
        beat = {"type": "beat", "number": number, "incarnation": "another", "expires_in_s": 1.0, "free_bytes": 1,
                "rdma": True, "heard": number}  # fmt: skip
        assert self.end._handle(_heard(json.dumps(beat))) is None
        assert self.peer.wake.is_set()
        assert self.held.renewal[0] == before

    # ---- the donor and time ----

    @rule(mib=st.integers(0, SLABS))
    def host_breathes(self, mib: int) -> None:
        """So much may be lent."""
        self.world.may_lend(mib)

    @rule()
    def step(self) -> None:
        """The evictor looks."""
        self.run(self.world.evictor.step())

    @rule(mib=st.integers(0, 8))
    def force(self, mib: int) -> None:
        """The host needs it at once."""

        async def force() -> None:
            self.world.evictor.force_now(mib * MIB)

        self.run(force())

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        """Within the lease's life, which polls renew."""
        self.world.clock.now_s += seconds
        self.world.lender.renew(self.lease)
        self.run(asyncio.sleep(0))

    @rule()
    def it_all_comes_to_an_end(self) -> None:
        """A poll, what has drained, and the evictor's deadlines: both ends hold the same, and no notice is left."""
        self.poll()
        self.world.clock.now_s += GIVE_UP_S + 0.1
        self.run(self.world.evictor.step())
        self.poll()
        for slab in np.flatnonzero(self.engine.slabs["state"] == SlabState.DRAINING).tolist():
            self.engine.slabs["state"][slab] = SlabState.UNMAPPED
            self.slabs.let_go(slab)
            self.run(self.world.lender.unmap_slab(self.lease, slab))
        self.poll()
        self.evictions.step()
        assert self.world.lender.shortage_bytes() == 0
        assert self.peer.slabs == set(self.lease.slabs)
        late = [slab for slab, until_s in self.lease.leaving.items() if until_s <= self.world.clock()]
        assert not late, "a notice ends with its slab, by the device or by force"

    # ---- what always holds ----

    @invariant()
    def accounts_add_up(self) -> None:
        """Promised, on its way back and free; what is told of a lease is what the data path exports."""
        lender = self.world.lender
        promised = len(self.lease.slabs) * MIB
        assert promised + lender.clearing.in_hand_bytes == lender.used_bytes
        assert lender.used_bytes + lender.arena.allocator.free_blocks(MIB) * MIB == ARENA_MIB * MIB
        assert set(self.lease.leaving) <= set(self.lease.slabs)
        assert set(self.world.engine.exports[self.lease.export].mapped) == set(self.lease.slabs)

    @invariant()
    def nothing_is_evicted_twice(self) -> None:
        """Neither end counts, or unmaps, a slab more often than it was mapped."""
        counts = self.world.lender.counts
        assert self.evictions.counts.evicted <= self.maps
        assert len(self.engine.unmapped) <= self.maps
        assert counts.evicted + counts.evicted_by_force <= counts.slabs_mapped
        for slab in range(SLABS):
            draining = self.engine.slabs["state"][slab] == SlabState.DRAINING
            assert draining == (self.slabs.leaving(slab) is Reason.EVICTED)
            assert (self.slabs.holder(slab) is None) == (self.engine.slabs["state"][slab] == SlabState.UNMAPPED)

    def teardown(self) -> None:
        self.loop.run_until_complete(self.world.close())
        self.loop.close()


def _heard(data: str) -> Any:
    heard = from_daemon(data)
    assert heard is not None
    return heard


def test_both_ends() -> None:
    """Whatever is delayed, lost, broken, doubled or stale: the accounts add up, and each notice ends."""
    run_state_machine_as_test(BothEnds, settings=settings(deadline=None, max_examples=60, stateful_step_count=40))
