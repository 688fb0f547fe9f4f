"""Whatever devices and RDMA hardware do: registered memory is never free, never punched, and only its own lease's."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from infiniswap.daemon.pool import PoolKeeper
from infiniswap.daemon.rdma import REOPEN_INTERVAL_S
from infiniswap.daemon.rdma_lease import PROBE_BYTES
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.refused import RefusedError
from infiniswap.daemon.slab_keys import POOL_PAUSE_S, SlabKeys
from tests.support.fake_verbs import FakeRegion, FakeVerbs, remote_end
from tests.support.lender_devices import Devices


class RdmaDevices(Devices):
    """The devices of the lender's test, some with RDMA paths, on a host whose RDMA device comes and goes, and jams."""

    def make_keys(self) -> SlabKeys:
        self.verbs = FakeVerbs()
        self.jammed = False
        keys = SlabKeys(self.arena, self.verbs.host(self.clock), clock=self.clock)
        keys.host.start()
        return keys

    @property
    def paths(self) -> RdmaPaths:
        return RdmaPaths(self.lender)

    @property
    def rdma(self) -> SlabKeys:
        assert self.keys is not None
        return self.keys

    def regions(self) -> list[FakeRegion]:
        return [region for region in self.verbs.regions.values() if region.length > PROBE_BYTES]

    def other_bytes(self) -> int:
        mapped = {offset for lease in self.held for offset in lease.slabs.values()}
        registered = {region.address - self.arena.address for region in self.regions()}
        allocated, _ = self.arena.allocator.blocks()
        others = {offset: size for offset, size in allocated.items() if offset not in mapped}
        # What could not be deregistered once is lost for good, also when it could be later.
        assert self.jammed or set(others) <= registered
        return sum(others.values())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def open_path(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.held))
        try:
            self.loop.run_until_complete(self.paths.open(lease, remote_end()))
        except RefusedError:
            assert self.rdma.queue_pairs(lease) == 0
            assert self.rdma.host.opened is None or self.verbs.refuse_registrations or lease.punchable
        else:
            assert self.rdma.healthy(lease)
            assert all(self.lender.region(lease, index) is not None for index in lease.slabs)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close_path(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.held))
        self.loop.run_until_complete(self.paths.close(lease))
        assert self.lender.connections(lease) == 0

    @rule()
    def pools_are_tended(self) -> None:
        self.clock.now_s += POOL_PAUSE_S / 2
        self.loop.run_until_complete(PoolKeeper(self.paths).tend())

    @rule()
    def the_device_goes_or_comes(self) -> None:
        self.verbs.removing = not self.verbs.removing
        self.clock.now_s += REOPEN_INTERVAL_S
        self.loop.run_until_complete(self.paths.watch())

    @rule(keep=st.booleans())
    def the_device_jams(self, keep: bool) -> None:
        self.verbs.keep_regions = keep
        self.jammed |= keep

    @invariant()
    def what_is_registered_cannot_be_punched(self) -> None:
        registered = {region.address for region in self.regions()}
        for lease in self.held:
            export = self.engine.exports[lease.export]
            for index, address in export.mapped.items():
                assert address not in registered or export.descriptors[index] == -1

    @invariant()
    def what_is_registered_is_not_free(self) -> None:
        allocated, _ = self.arena.allocator.blocks()
        for region in self.regions():
            assert allocated[region.address - self.arena.address] == region.length

    @invariant()
    def keys_are_the_lease_s_own(self) -> None:
        for lease in self.held:
            found = self.rdma.find(lease)
            for index, offset in lease.slabs.items():
                region = self.lender.region(lease, index)
                assert (region is not None) == (found is not None)
                if region is not None and found is not None:
                    assert region.address == self.arena.address + offset
                    pairs = [pair for pair in self.verbs.pairs if pair.domain is self.verbs.regions[region.rkey].domain]
                    assert len(pairs) == found.queue_pairs

    @invariant()
    def a_device_that_is_gone_is_let_go_of(self) -> None:
        assert len(self.verbs.open_devices) == (not self.verbs.removing)


TestRdmaDevices = RdmaDevices.TestCase
TestRdmaDevices.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
