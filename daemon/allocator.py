"""Buddy allocator over an arena's offsets: which bytes are free, and nothing about the memory itself.

Knowlton, "A fast storage allocator", CACM 1965: blocks are powers of two, aligned to their own size; two free halves of
one block become that block again. Slabs are powers of two, so nothing is lost inside a block.
"""

from __future__ import annotations

import heapq

BLOCK_BYTES_MIN = 1 << 20  # smallest slab
BLOCK_BYTES_MAX = 1 << 30  # largest slab


def is_block_size(size_bytes: int) -> bool:
    """Whether size_bytes is a power of two between the smallest and the largest block."""
    return BLOCK_BYTES_MIN <= size_bytes <= BLOCK_BYTES_MAX and size_bytes & (size_bytes - 1) == 0


class BuddyAllocator:
    """Hands out aligned power-of-two ranges of [0, total_bytes), always the lowest that fits with the least splitting.

    Invariant: free blocks and allocated blocks together cover [0, total_bytes) and do not overlap.
    Invariant: no two free blocks are buddies of each other (they would have been joined), except at the largest size.
    """

    def __init__(self, total_bytes: int, *, minimum_bytes: int = BLOCK_BYTES_MIN) -> None:
        """total_bytes: a multiple of minimum_bytes, which is itself a block size; ValueError otherwise."""
        if not is_block_size(minimum_bytes):
            raise ValueError(f"smallest block of {minimum_bytes} bytes is not a power of two in range")
        if total_bytes <= 0 or total_bytes % minimum_bytes:
            raise ValueError(f"{total_bytes} bytes are not a positive multiple of {minimum_bytes}")
        self.total_bytes = total_bytes
        self.minimum_bytes = minimum_bytes
        self.maximum_bytes = BLOCK_BYTES_MAX
        self._sizes = [1 << bit for bit in range(minimum_bytes.bit_length() - 1, BLOCK_BYTES_MAX.bit_length())]
        self._free: dict[int, set[int]] = {size: set() for size in self._sizes}
        # Lowest offsets first; entries whose offset has left _free are skipped and swept now and then.
        self._heaps: dict[int, list[int]] = {size: [] for size in self._sizes}
        self._allocated: dict[int, int] = {}
        self.allocated_bytes = 0
        offset = 0
        for size in reversed(self._sizes):
            while total_bytes - offset >= size:
                self._put(size, offset)
                offset += size

    @property
    def free_bytes(self) -> int:
        """Bytes in free blocks of any size."""
        return self.total_bytes - self.allocated_bytes

    def free_blocks(self, size_bytes: int) -> int:
        """How many blocks of size_bytes could be allocated one after the other now."""
        self._check_size(size_bytes)
        return sum(len(self._free[size]) * (size // size_bytes) for size in self._sizes if size >= size_bytes)

    def allocate(self, size_bytes: int) -> int | None:
        """Offset of a free block of size_bytes (a block size, ValueError otherwise), or None when there is none."""
        self._check_size(size_bytes)
        for size in self._sizes:
            if size >= size_bytes and self._free[size]:
                break
        else:
            return None
        offset = self._take_lowest(size)
        while size > size_bytes:
            size //= 2
            self._put(size, offset + size)
        self._allocated[offset] = size_bytes
        self.allocated_bytes += size_bytes
        return offset

    def claim(self, offset: int, size_bytes: int) -> None:
        """Allocate just this block; ValueError when it is none, or not wholly free."""
        self._check_size(size_bytes)
        for size in self._sizes:
            start = offset & ~(size - 1)
            if size >= size_bytes and start in self._free[size] and offset % size_bytes == 0:
                break
        else:
            raise ValueError(f"no block of {size_bytes} bytes is free at offset {offset}")
        self._free[size].discard(start)
        while size > size_bytes:
            size //= 2
            upper = bool(offset & size)
            self._put(size, start if upper else start + size)
            start += size if upper else 0
        self._allocated[offset] = size_bytes
        self.allocated_bytes += size_bytes

    def free(self, offset: int) -> None:
        """Give back the block that starts at offset; ValueError when none was allocated there."""
        size = self._allocated.pop(offset, None)
        if size is None:
            raise ValueError(f"no block is allocated at offset {offset}")
        self.allocated_bytes -= size
        while size < BLOCK_BYTES_MAX:
            buddy = offset ^ size
            if buddy not in self._free[size]:
                break
            self._free[size].discard(buddy)
            offset = min(offset, buddy)
            size *= 2
        self._put(size, offset)

    def blocks(self) -> tuple[dict[int, int], dict[int, int]]:
        """Allocated and free blocks, each offset -> size (copies, for checks and statistics)."""
        free = {offset: size for size, offsets in self._free.items() for offset in offsets}
        return dict(self._allocated), free

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes not in self._free:
            raise ValueError(f"{size_bytes} bytes are no block size")

    def _put(self, size: int, offset: int) -> None:
        offsets, heap = self._free[size], self._heaps[size]
        offsets.add(offset)
        if len(heap) > 2 * len(offsets) + 16:
            heap[:] = sorted(offsets)
        else:
            heapq.heappush(heap, offset)

    def _take_lowest(self, size: int) -> int:
        offsets, heap = self._free[size], self._heaps[size]
        while True:
            offset = heapq.heappop(heap)
            if offset in offsets:
                offsets.discard(offset)
                return offset
