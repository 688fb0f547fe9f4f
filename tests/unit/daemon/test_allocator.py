"""Blocks never overlap, are aligned, are all found again, and the number promised is the number that can be had."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infiniswap.daemon.allocator import BLOCK_BYTES_MAX, BuddyAllocator, is_block_size

MIB = 1 << 20
sizes = st.integers(0, 10).map(lambda bit: MIB << bit)


class Allocations(RuleBasedStateMachine):
    """Random allocating and freeing, checked against a plain list of ranges."""

    @initialize(mebibytes=st.integers(1, 3000), minimum=st.sampled_from([MIB, 2 * MIB]))
    def start(self, mebibytes: int, minimum: int) -> None:
        self.total = mebibytes * minimum
        self.allocator = BuddyAllocator(self.total, minimum_bytes=minimum)
        self.held: dict[int, int] = {}
        self.fresh = self.allocator.blocks()[1]

    @rule(size=sizes)
    def allocate(self, size: int) -> None:
        if size < self.allocator.minimum_bytes:
            with pytest.raises(ValueError, match="no block size"):
                self.allocator.allocate(size)
            return
        promised = self.allocator.free_blocks(size)
        offset = self.allocator.allocate(size)
        assert (offset is not None) == (promised > 0)
        if offset is not None:
            self.held[offset] = size
            assert self.allocator.free_blocks(size) == promised - 1

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.held:
            offset = data.draw(st.sampled_from(sorted(self.held)))
            self.allocator.free(offset)
            del self.held[offset]

    @rule(offset=st.integers(-1, 3000).map(lambda number: number * MIB))
    def free_what_is_not_held(self, offset: int) -> None:
        if offset not in self.held:
            with pytest.raises(ValueError, match="no block is allocated"):
                self.allocator.free(offset)

    @invariant()
    def blocks_cover_everything_once(self) -> None:
        allocated, free = self.allocator.blocks()
        assert allocated == self.held
        end = 0
        for offset, size in sorted([*allocated.items(), *free.items()]):
            assert offset == end
            assert offset % size == 0
            end = offset + size
        assert end == self.total
        assert self.allocator.allocated_bytes == sum(allocated.values())
        assert self.allocator.free_bytes == sum(free.values())

    @invariant()
    def no_free_buddies_stay_apart(self) -> None:
        _, free = self.allocator.blocks()
        for offset, size in free.items():
            if size < BLOCK_BYTES_MAX:
                assert free.get(offset ^ size) != size

    def teardown(self) -> None:
        for offset in list(self.held):
            self.allocator.free(offset)
        if self.held:
            assert self.allocator.blocks() == ({}, self.fresh)


TestAllocations = Allocations.TestCase
TestAllocations.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_lowest_of_the_tightest_blocks_is_taken() -> None:
    """A small slab does not break a large block while a small hole fits it."""
    allocator = BuddyAllocator(8 * MIB)
    assert [allocator.allocate(MIB) for _ in range(4)] == [0, MIB, 2 * MIB, 3 * MIB]
    allocator.free(2 * MIB)
    assert allocator.allocate(MIB) == 2 * MIB
    assert allocator.allocate(4 * MIB) == 4 * MIB
    assert allocator.allocate(MIB) is None


def test_stale_entries_do_not_pile_up() -> None:
    """Splitting and joining for ever keeps the bookkeeping small."""
    allocator = BuddyAllocator(1024 * MIB)
    for _ in range(2000):
        first, second = allocator.allocate(MIB), allocator.allocate(2 * MIB)
        assert first is not None
        assert second is not None
        allocator.free(first)
        allocator.free(second)
    assert sum(len(heap) for heap in allocator._heaps.values()) < 400


@pytest.mark.parametrize("size", [0, -MIB, 1, MIB - 1, 3 * MIB, 2 << 30, 1 << 19])
def test_what_is_no_block_size(size: int) -> None:
    """Only powers of two between 1 MiB and 1 GiB are slab sizes."""
    assert not is_block_size(size)


@pytest.mark.parametrize(("total", "minimum"), [(0, MIB), (MIB + 1, MIB), (3 * MIB, 2 * MIB), (MIB, 4096), (-MIB, MIB)])
def test_sizes_that_cannot_be_cut(total: int, minimum: int) -> None:
    """An arena that is no multiple of its smallest block is a mistake of the caller."""
    with pytest.raises(ValueError, match=r"multiple|power of two"):
        BuddyAllocator(total, minimum_bytes=minimum)
