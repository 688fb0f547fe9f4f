"""What the daemon decides: leases on the one side, memory and the engine on the other.

Runs on one event loop. Everything that changes who owns what happens between two awaits, so no lock is needed; only
clearing memory, which takes milliseconds per slab, is done by threads, and until it is done the memory is nobody's.

A slab's memory: free (zero) -> mapped for one lease -> cut off from the engine -> being cleared -> free. Memory that
cannot be cleared is never free again. With RDMA it is registered before it is mapped, and deregistered once it is cut
off from the engine; what cannot be deregistered is neither cleared nor ever free again.

Registered memory is mapped without the descriptor behind it: punching a hole under a registration would leave the
engine and the RDMA device with different pages.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.keys import OpenedPath, SlabKeys, no_rdma
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.rdma_lease import LeaseRdma
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.rdma.path import Address, PathEnd, Region

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

    def __init__(
        self,
        *,
        arena: Arena,
        leases: LeaseTable,
        engine: SlabEngine,
        monitor: MemoryMonitor | None,
        keys: SlabKeys | None = None,
    ) -> None:
        """monitor: None when the arena's memory is taken already (huge pages). keys: None without RDMA."""
        self.arena = arena
        self.leases = leases
        self.keys = keys or SlabKeys(arena, no_rdma())
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
        lendable = self._lendable_bytes()
        fitting = min(self.arena.allocator.free_blocks(size), max(0, lendable - used) // size)
        return Offer(total_bytes=max(lendable, used), free_bytes=fitting * size, used_bytes=used)

    def supply(self, lease: Lease) -> int:
        """Slabs that the lease could map now, its own pool included."""
        size = lease.slab_bytes
        pooled = self.keys.pooled(lease)
        spare_bytes = max(0, self._lendable_bytes() - self.used_bytes + pooled * size)
        return min(self.arena.allocator.free_blocks(size) + pooled, spare_bytes // size)

    def free_bytes(self, lease: Lease) -> int:
        """Memory that the lease could map now."""
        return self.supply(lease) * lease.slab_bytes

    def connections(self, lease: Lease) -> int:
        """Connections and queue pairs of the lease: while there is one, its writes may still arrive."""
        return self._engine.export_connections(lease.export) + self.keys.queue_pairs(lease)

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
            raise RefusedError(Refusal.UNAVAILABLE, "no export is free for another lease") from error
        self.counts.leases_granted += 1
        log.info("lease %s: device %s, %d slabs of %d bytes", lease.lease_id, device, lease.slab_count, slab_bytes)
        return lease, token

    def map_slab(self, lease: Lease, index: int) -> None:
        """Put zeroed memory behind slab index; nothing happens when there is some already.

        RefusedError: no such index, or no memory can be spared.
        """
        self.leases.check_index(lease, index)
        if index in lease.slabs:
            return
        offset = self._take_block(lease)
        # Without a descriptor TRIM zeroes by hand: a hole in huge pages would lose their reservation.
        punchable = not self.arena.huge_pages and self.keys.find(lease) is None
        try:
            self._engine_map(lease, index, offset, punchable=punchable)
        except OSError as error:
            self._give_up(lease, offset)
            log.warning("lease %s: slab %d cannot be mapped: %s", lease.lease_id, index, error)
            raise RefusedError(Refusal.UNAVAILABLE, "the data path refused the slab") from error
        lease.slabs[index] = offset
        self.counts.slabs_mapped += 1

    def region(self, lease: Lease, index: int) -> Region | None:
        """How the device reaches slab index by RDMA; None when it cannot."""
        offset = lease.slabs.get(index)
        return None if offset is None else self.keys.region(lease, offset)

    async def open_path(self, lease: Lease, remote: PathEnd, local: Address | None = None) -> OpenedPath:
        """An RDMA path of the lease that ends in remote, with all its slabs registered; an earlier path is gone before.

        local: the address at which the device reached this host. RefusedError: the lease is as if there were no RDMA.
        """
        self.keys.host.require()
        if lease.punchable:
            # They would have to be cut off for a moment, and a device takes a slab that is missing once for lost.
            sentence = "slabs of this lease were mapped for TCP alone: take a new lease for RDMA"
            raise RefusedError(Refusal.CONFLICT, sentence)
        rdma = self.keys.open(lease)
        try:
            await self._register_mapped(lease, rdma)
            if not rdma.regions:
                # Where nothing can be registered, no path is better than one through which no slab can be mapped.
                await self.register_ahead(lease)
            self._still(lease, rdma)
            return self.keys.connect(lease, remote, local)
        except RefusedError:
            if self.keys.find(lease) is rdma and rdma.queue_pairs == 0:
                await self.recover(self.keys.end(lease), lease.slab_bytes)
            raise

    async def _register_mapped(self, lease: Lease, rdma: LeaseRdma) -> None:
        for index, offset in list(lease.slabs.items()):
            if lease.slabs.get(index) != offset or offset in rdma.regions:
                continue
            await self.populate(offset, lease.slab_bytes)
            self._still(lease, rdma)
            if lease.slabs.get(index) == offset:
                self.keys.register(lease, offset)

    def _still(self, lease: Lease, rdma: LeaseRdma) -> None:
        """Refuse to go on when the lease or its device went while something was waited for."""
        if not self.leases.is_live(lease):
            raise RefusedError(Refusal.UNKNOWN, "the lease has ended")
        if self.keys.find(lease) is not rdma:
            raise RefusedError(Refusal.UNAVAILABLE, "the RDMA device has gone")

    async def register_ahead(self, lease: Lease) -> bool:
        """Add a block to the lease's pool; False: there is none, or nobody to have it. RefusedError: it cannot be."""
        spare = self.supply(lease) > self.keys.pooled(lease)
        offset = self.arena.allocator.allocate(lease.slab_bytes) if spare else None
        if offset is None:
            return False
        added = False
        try:
            await self.populate(offset, lease.slab_bytes)
            # The lease may have ended or lost its device meanwhile, or somebody may need the memory.
            if self.keys.find(lease) is not None and not self.keys.paused:
                self.keys.put(lease, offset)
                added = True
        finally:
            if not added:
                await self.recover([offset], lease.slab_bytes)
        return added

    async def close_path(self, lease: Lease) -> None:
        """End the lease's RDMA path, if there is one; its slabs stay registered. RefusedError: it is still there."""
        self.keys.disconnect(lease)
        if not lease.slabs:  # then nothing speaks for RDMA any more: slabs to come are for TCP, and can be punched out
            await self.recover(self.keys.end(lease), lease.slab_bytes)

    async def watch_rdma(self) -> None:
        """Notice an RDMA device that has gone or come; to be called often."""
        for size_bytes, offsets in self.keys.watch():
            await self.recover(offsets, size_bytes)

    async def unmap_slab(self, lease: Lease, index: int) -> None:
        """Take the memory behind slab index away and clear it; nothing happens when there is none."""
        self.leases.check_index(lease, index)
        if index not in lease.slabs:
            return
        self._engine.unmap_slab(lease.export, index)
        offset = lease.slabs.pop(index)
        lease.punchable.discard(index)
        self.counts.slabs_released += 1
        if self.keys.deregister(lease, offset):
            await self.recover([offset], lease.slab_bytes)

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
                Refusal.INVALID,
                f"slab_bytes must be a power of two between {low >> 20} MiB and {high >> 20} MiB",
            )
        return slab_bytes

    def _lendable_bytes(self) -> int:
        """Memory that may be lent in all, lent memory included."""
        if self.monitor is None:
            return self.arena.total_bytes
        return min(self.arena.total_bytes, self.monitor.lendable_bytes())

    def _take_block(self, lease: Lease) -> int:
        """A zeroed block for a slab of the lease, registered if the lease has RDMA; RefusedError."""
        # A pooled block has its memory already: the host need not be looked at anew, which takes longer than all else.
        offset = self.keys.take(lease) if self.supply(lease) > 0 else None
        if offset is not None:
            return offset
        if self.monitor is not None:
            try:
                self.monitor.refresh()
            except OSError as error:  # no descriptor is free: nothing is promised on an old look at the host
                sentence = "the host's memory cannot be looked at now"
                raise RefusedError(Refusal.UNAVAILABLE, sentence) from error
        if self.supply(lease) > self.keys.pooled(lease):
            offset = self.arena.allocator.allocate(lease.slab_bytes)
        if offset is None:
            self.counts.maps_refused += 1
            self.keys.pause()  # what others have in their pools is free for the next one who asks
            raise RefusedError(Refusal.NO_MEMORY, "no memory is free for another slab of this size")
        if self.keys.find(lease) is not None:
            self._register(lease, offset)
        return offset

    def _register(self, lease: Lease, offset: int) -> None:
        """Register a fresh block here and now, or free it again: RefusedError."""
        try:
            self._populate(offset, lease.slab_bytes)
            self.keys.register(lease, offset)
        except RefusedError:
            self._give_up(lease, offset)
            raise

    def _give_up(self, lease: Lease, offset: int) -> None:
        """Free a block that was taken and not mapped; a registered one has pages that the host should have back."""
        registered = self.keys.find(lease) is not None
        if not self.keys.deregister(lease, offset):
            return
        if registered:
            self._start_recovery([offset], lease.slab_bytes)
        else:
            self.arena.allocator.free(offset)

    def _engine_map(self, lease: Lease, index: int, offset: int, *, punchable: bool) -> None:
        fd = self.arena.fd if punchable else -1
        self._engine.map_slab(lease.export, index, self.arena.address + offset, fd, offset)
        if punchable:
            lease.punchable.add(index)
        else:
            lease.punchable.discard(index)

    async def _end(self, lease: Lease) -> None:
        self.leases.remove(lease)
        try:
            self.keys.disconnect(lease)
        except RefusedError as error:
            # Its keys are taken back below, and without them what still comes in opens nothing.
            log.warning("lease %s: %s", lease.lease_id, error)
        self._engine.close_export(lease.export)
        pooled = self.keys.end(lease)
        self.counts.slabs_released += len(lease.slabs)
        offsets = [offset for offset in lease.slabs.values() if self.keys.deregister(lease, offset)]
        lease.slabs.clear()
        lease.punchable.clear()
        await self.recover(offsets + pooled, lease.slab_bytes)

    async def populate(self, offset: int, size_bytes: int) -> None:
        """Have a block's pages there, by a thread; RefusedError."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._populate, offset, size_bytes)

    def _populate(self, offset: int, size_bytes: int) -> None:
        try:
            self.arena.populate(offset, size_bytes)
        except OSError as error:
            log.warning("%s", error)
            sentence = "this host has no memory for another slab that must be there at once"
            raise RefusedError(Refusal.NO_MEMORY, sentence) from error

    async def recover(self, offsets: list[int], size_bytes: int) -> None:
        """Clear blocks that nobody can reach any more, and free them. Goes on when the caller is cancelled."""
        tasks = self._start_recovery(offsets, size_bytes)
        if tasks:
            await asyncio.shield(asyncio.gather(*tasks))

    def _start_recovery(self, offsets: list[int], size_bytes: int) -> list[asyncio.Task[None]]:
        batches = [offsets[start : start + CLEARING_BATCH] for start in range(0, len(offsets), CLEARING_BATCH)]
        tasks = [asyncio.create_task(self._clear(batch, size_bytes)) for batch in batches]
        for task in tasks:
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)
        return tasks

    async def _clear(self, offsets: list[int], size_bytes: int) -> None:
        # Should this ever fail, the blocks stay allocated: memory that was not cleared is never lent again.
        await asyncio.get_running_loop().run_in_executor(self._threads, self._clear_in_thread, offsets, size_bytes)
        for offset in offsets:
            self.arena.allocator.free(offset)
        self.counts.cleared_bytes += size_bytes * len(offsets)

    def _clear_in_thread(self, offsets: list[int], size_bytes: int) -> None:
        for offset in offsets:
            self.arena.clear(offset, size_bytes)
