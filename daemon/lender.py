"""What the daemon decides: leases on the one side, memory and the engine on the other.

Runs on one event loop. Everything that changes who owns what happens between two awaits, so no lock is needed; only
clearing memory, which takes milliseconds per slab, is done by threads, and until it is done the memory is nobody's.

A slab's memory: free (zero) -> mapped for one lease -> cut off from the engine -> being cleared -> free. Memory that
cannot be cleared is never free again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.refused import RefusedError

log = logging.getLogger(__name__)

CLEARING_THREADS = 2
CLEARING_BATCH = 64  # blocks that become free together; bounds the tasks that a large lease leaves behind


class SlabEngine(Protocol):
    """What the lender needs of the data path (binding.MemoryEngine)."""

    def open_export(self, slab_bytes: int, slabs: int) -> int:
        """See MemoryEngine.open_export."""

    def close_export(self, export: int) -> None:
        """See MemoryEngine.close_export."""

    def map_slab(self, export: int, slab: int, address: int, fd: int = -1, fd_offset: int = 0) -> None:
        """See MemoryEngine.map_slab."""

    def unmap_slab(self, export: int, slab: int) -> None:
        """See MemoryEngine.unmap_slab."""

    def export_connections(self, export: int) -> int:
        """See MemoryEngine.export_connections."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Memory in bytes: what is lent and could be lent in all, what could be mapped now, what is taken."""

    total_bytes: int
    free_bytes: int
    used_bytes: int


@dataclass(slots=True)
class LenderCounts:
    """Events since the start, ever growing."""

    leases_granted: int = 0
    leases_refused: int = 0
    leases_released: int = 0
    leases_expired: int = 0
    slabs_mapped: int = 0
    slabs_released: int = 0
    maps_refused: int = 0
    cleared_bytes: int = 0


class Lender:
    """Grants leases and moves slabs between the arena and the engine."""

    def __init__(self, *, arena: Arena, leases: LeaseTable, engine: SlabEngine, monitor: MemoryMonitor | None) -> None:
        """monitor: None when the arena's memory is already taken from the host (huge pages)."""
        self.arena = arena
        self.leases = leases
        self.monitor = monitor
        self.counts = LenderCounts()
        self.incarnation = secrets.token_hex(16)
        self._engine = engine
        self._threads = ThreadPoolExecutor(CLEARING_THREADS, thread_name_prefix="clear")
        self._clearing: set[asyncio.Task[None]] = set()

    @property
    def used_bytes(self) -> int:
        """Memory promised to leases, or on its way back from them."""
        return self.arena.allocator.allocated_bytes

    def offer(self, slab_bytes: int | None = None) -> Offer:
        """What could be mapped now in slabs of slab_bytes (default: the smallest). RefusedError: no such slab size."""
        size = self._check_slab_bytes(self.arena.allocator.minimum_bytes if slab_bytes is None else slab_bytes)
        used = self.used_bytes
        lendable = self.arena.total_bytes
        if self.monitor is not None:
            lendable = min(lendable, self.monitor.lendable_bytes())
        fitting = min(self.arena.allocator.free_blocks(size), max(0, lendable - used) // size)
        return Offer(total_bytes=max(lendable, used), free_bytes=fitting * size, used_bytes=used)

    def connections(self, lease: Lease) -> int:
        """Page I/O connections open on the lease: while there is one, its writes may still arrive."""
        return self._engine.export_connections(lease.export)

    def grant(self, *, device: str, device_id: str, size_bytes: int, slab_bytes: int) -> tuple[Lease, str]:
        """A new lease with its export open and nothing mapped, and its token. RefusedError when it cannot be."""
        try:
            self._check_slab_bytes(slab_bytes)
            lease, token = self.leases.create(
                device=device, device_id=device_id, size_bytes=size_bytes, slab_bytes=slab_bytes
            )
        except RefusedError:
            self.counts.leases_refused += 1
            raise
        try:
            lease.export = self._engine.open_export(lease.slab_bytes, lease.slab_count)
        except OSError as error:
            self.leases.remove(lease)
            self.counts.leases_refused += 1
            log.warning("no export for a lease of device %s: %s", device, error)
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "no export is free for another lease") from error
        self.counts.leases_granted += 1
        log.info("lease %s: device %s, %d slabs of %d bytes", lease.lease_id, device, lease.slab_count, slab_bytes)
        return lease, token

    def map_slab(self, lease: Lease, index: int) -> None:
        """Put zeroed memory behind slab index; nothing happens when there is some already.

        RefusedError: no such index, or 507 when no memory can be spared.
        """
        self.leases.check_index(lease, index)
        if index in lease.slabs:
            return
        if self.monitor is not None:
            self.monitor.refresh()
        offset = None
        if self.offer(lease.slab_bytes).free_bytes >= lease.slab_bytes:
            offset = self.arena.allocator.allocate(lease.slab_bytes)
        if offset is None:
            self.counts.maps_refused += 1
            raise RefusedError(HTTPStatus.INSUFFICIENT_STORAGE, "no memory is free for another slab of this size")
        try:
            # Without a descriptor TRIM zeroes by hand: a hole in huge pages would lose their reservation.
            fd = -1 if self.arena.huge_pages else self.arena.fd
            self._engine.map_slab(lease.export, index, self.arena.address + offset, fd, offset)
        except OSError as error:
            self.arena.allocator.free(offset)
            log.warning("lease %s: slab %d cannot be mapped: %s", lease.lease_id, index, error)
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the data path refused the slab") from error
        lease.slabs[index] = offset
        self.counts.slabs_mapped += 1

    async def unmap_slab(self, lease: Lease, index: int) -> None:
        """Take the memory behind slab index away and clear it; nothing happens when there is none."""
        self.leases.check_index(lease, index)
        if index not in lease.slabs:
            return
        self._engine.unmap_slab(lease.export, index)
        offset = lease.slabs.pop(index)
        await self._recover([offset], lease.slab_bytes)

    async def release(self, lease: Lease) -> None:
        """End the lease: export closed, connections ended, memory cleared."""
        self.counts.leases_released += 1
        await self._end(lease)

    async def expire(self) -> int:
        """End every lease past its deadline; returns how many there were."""
        late = self.leases.expired()
        self.counts.leases_expired += len(late)
        for lease in late:
            log.info("lease %s of device %s expired with %d slabs", lease.lease_id, lease.device, len(lease.slabs))
        await asyncio.gather(*(self._end(lease) for lease in late))
        return len(late)

    async def close(self) -> None:
        """Wait until no thread touches the arena any more. The engine is closed by then or closes afterwards."""
        while self._clearing:
            await asyncio.wait(self._clearing)
        self._threads.shutdown()

    def _check_slab_bytes(self, slab_bytes: int) -> int:
        low, high = self.arena.allocator.minimum_bytes, self.arena.allocator.maximum_bytes
        if not low <= slab_bytes <= high or slab_bytes & (slab_bytes - 1):
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"slab_bytes must be a power of two between {low >> 20} MiB and {high >> 20} MiB",
            )
        return slab_bytes

    async def _end(self, lease: Lease) -> None:
        self.leases.remove(lease)
        self._engine.close_export(lease.export)
        offsets = list(lease.slabs.values())
        lease.slabs.clear()
        await self._recover(offsets, lease.slab_bytes)

    async def _recover(self, offsets: list[int], size_bytes: int) -> None:
        """Clear blocks that nobody can reach any more, and free them. Goes on when the caller is cancelled."""
        self.counts.slabs_released += len(offsets)
        batches = [offsets[start : start + CLEARING_BATCH] for start in range(0, len(offsets), CLEARING_BATCH)]
        tasks = [asyncio.create_task(self._clear(batch, size_bytes)) for batch in batches]
        for task in tasks:
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)
        if tasks:
            await asyncio.shield(asyncio.gather(*tasks))

    async def _clear(self, offsets: list[int], size_bytes: int) -> None:
        # Should this ever fail, the blocks stay allocated: memory that was not cleared is never lent again.
        await asyncio.get_running_loop().run_in_executor(self._threads, self._clear_in_thread, offsets, size_bytes)
        for offset in offsets:
            self.arena.allocator.free(offset)
        self.counts.cleared_bytes += size_bytes * len(offsets)

    def _clear_in_thread(self, offsets: list[int], size_bytes: int) -> None:
        for offset in offsets:
            self.arena.clear(offset, size_bytes)
