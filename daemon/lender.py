"""What the daemon decides: leases on the one side, memory and the engine on the other.

Runs on one event loop. Everything that changes who owns what happens between two awaits, so no lock is needed; only
clearing memory, which takes milliseconds per slab, is done by threads (clearing.py).

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
from typing import Protocol

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.clearing import Clearing
from infiniswap.daemon.lapsed import due, held_by_lapsed, held_bytes
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.quotas import Quotas
from infiniswap.daemon.record import NoRecord, Record
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.slab_keys import SlabKeys, no_rdma
from infiniswap.daemon.supply import LenderCounts, Supply
from infiniswap.shared.path_messages import Region

log = logging.getLogger(__name__)

RESTART_LIFE_S = 10.0  # of a lease that was alive when the daemon ended, however little it had left


class SlabEngine(Protocol):
    """What the lender needs of the data path (memory_binding.MemoryEngine)."""

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

    def export_requests(self, export: int) -> int:
        """See MemoryEngine.export_requests."""


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
        lease_bytes_max: int | None = None,
        record: Record | None = None,
        incarnation: str | None = None,
    ) -> None:
        """monitor: None when the arena's memory is taken already (huge pages). keys: None without RDMA.

        lease_bytes_max: that one lease may hold; None: as much as there is. record: hears what becomes true, in that
        moment; incarnation: of the daemon before, whose memory this is.
        """
        self.arena = arena
        self.leases = leases
        self.keys = keys or SlabKeys(arena, no_rdma())
        self.monitor = monitor
        self.clearing = Clearing(arena)
        self.counts = LenderCounts()
        self.lease_bytes_max = lease_bytes_max
        self.quotas = Quotas()  # of hosts; its rules may change while it runs
        self.limit_bytes = arena.total_bytes  # the most to lend; may become less than the arena while it runs
        self.changed = asyncio.Event()  # memory came back: who waits for some should look
        self.incarnation = incarnation or secrets.token_hex(16)
        self._record = record or NoRecord()
        self._lending = True
        self._engine = engine
        if monitor is not None:
            monitor.promised_bytes = self.promised_bytes

    @property
    def lending(self) -> bool:
        """False: nothing more is lent, and what is lent stays until it is given back. On record, for the next start."""
        return self._lending

    @lending.setter
    def lending(self, lending: bool) -> None:
        self._lending = lending
        self._record.cordoned(not lending)

    @property
    def used_bytes(self) -> int:
        """Memory promised to leases, or on its way back from them."""
        return self.arena.allocator.allocated_bytes

    def offer(self, slab_bytes: int | None = None) -> Supply:
        """What could be mapped now in slabs of slab_bytes (default: the smallest). RefusedError: no such slab size."""
        size = self._check_slab_bytes(self.arena.allocator.minimum_bytes if slab_bytes is None else slab_bytes)
        lendable = self._lendable_bytes()
        total = max(lendable, self.used_bytes)
        blocks, lapsed = held_by_lapsed(self.leases, size)
        used = self.used_bytes - lapsed
        fitting = min(self.arena.allocator.free_blocks(size) + blocks, max(0, lendable - used) // size)
        fitting *= self.lending
        return Supply(total_bytes=total, free_bytes=fitting * size, used_bytes=used, lapsed_bytes=lapsed)

    def supply(self, lease: Lease) -> int:
        """Slabs that the lease could map now, its own pool included."""
        return self._supply(lease, 0, 0)

    def _supply(self, lease: Lease, more_blocks: int, more_bytes: int) -> int:
        if not self.lending:
            return 0
        size = lease.slab_bytes
        pooled = self.keys.pooled(lease)
        spare_bytes = max(0, self._lendable_bytes() - self.used_bytes + pooled * size + more_bytes)
        found = min(self.arena.allocator.free_blocks(size) + pooled + more_blocks, spare_bytes // size)
        if self.lease_bytes_max is not None:
            found = min(found, max(0, self.lease_bytes_max // size - len(lease.slabs)))
        room_bytes = self.quotas.room_bytes(lease.owner, self.leases.leases())
        return found if room_bytes is None else min(found, max(0, room_bytes // size))

    def promised_bytes(self) -> int:
        """Memory promised to leases, without what is on its way back already."""
        return self.used_bytes - self.clearing.in_hand_bytes

    def shortage_bytes(self) -> int:
        """Memory that is promised beyond what may be lent."""
        most = self.limit_bytes if self.monitor is None else min(self.limit_bytes, self.monitor.lendable_bytes())
        return max(0, self.promised_bytes() - most)

    def free_bytes(self, lease: Lease) -> int:
        """Memory that the lease could map now, if need be at the cost of lapsed leases."""
        more = held_by_lapsed(self.leases, lease.slab_bytes, but=lease)
        return self._supply(lease, *more) * lease.slab_bytes

    def connections(self, lease: Lease) -> int:
        """Connections and queue pairs of the lease: while there is one, its writes may still arrive."""
        return self._engine.export_connections(lease.export) + self.keys.queue_pairs(lease)

    def grant(
        self, *, device: str, device_id: str, size_bytes: int, slab_bytes: int, host: str = "", owner: str = ""
    ) -> tuple[Lease, str]:
        """A new lease with its export open and nothing mapped, and its token. RefusedError when it cannot be.

        host: the address from which it is asked for; owner: see Lease.
        """
        try:
            self._check_slab_bytes(slab_bytes)
            self._check_quota(host, owner)
            lease, token = self.leases.create(
                device=device,
                device_id=device_id,
                size_bytes=size_bytes,
                slab_bytes=slab_bytes,
                host=host,
                owner=owner,
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
        self._record.granted(lease)
        self.counts.leases_granted += 1
        by = f" by {owner}" if owner else ""
        message = "lease %s: device %s, %d slabs of %d bytes, asked for from %s%s"
        log.info(message, lease.lease_id, device, lease.slab_count, slab_bytes, host or "this host", by)
        return lease, token

    def renew(self, lease: Lease) -> bool:
        """A heartbeat of the lease; False: it has ended."""
        revived = self.leases.has_lapsed(lease)
        renewed = self.leases.renew(lease)
        if renewed and revived:
            self.counts.leases_revived += 1
            log.info("lease %s of device %s is taken up again", lease.lease_id, lease.device)
        return renewed

    def hear_pages(self) -> None:
        """Renew the leases whose pages have moved over TCP since the last call: their heartbeats may be shut out."""
        for lease in self.leases.leases():
            requests = self._engine.export_requests(lease.export)
            if requests != lease.requests:
                lease.requests = requests
                self.counts.leases_renewed_by_pages += self.leases.renew_by_pages(lease)

    async def make_room(self, lease: Lease) -> None:
        """Give up other leases that have lapsed until the lease can map a slab; what they held is clear on return."""
        for late in self.leases.lapsed():
            if self.supply(lease) > 0 or self.free_bytes(lease) == 0:
                return
            # The one before may have taken its time to clear, and this one have been taken up again meanwhile.
            if late is not lease and late.slabs and self.leases.has_lapsed(late):
                await self._recovered(self._expire([late]))

    def map_slab(self, lease: Lease, index: int) -> None:
        """Put zeroed memory behind slab index; nothing happens when there is some already.

        RefusedError: no such index, or no memory can be spared.
        """
        self.leases.check_index(lease, index)
        if index in lease.slabs:
            return
        self._check_may_map(lease)
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
        self._record.mapped(lease, index)
        self.counts.slabs_mapped += 1

    def region(self, lease: Lease, index: int) -> Region | None:
        """How the device reaches slab index by RDMA; None when it cannot."""
        offset = lease.slabs.get(index)
        return None if offset is None else self.keys.region(lease, offset)

    async def unmap_slab(self, lease: Lease, index: int) -> None:
        """Take the memory behind slab index away and clear it; nothing happens when there is none."""
        self.leases.check_index(lease, index)
        if index not in lease.slabs:
            return
        self.counts.evicted += index in lease.leaving
        await self._recovered(self._take_back(lease, index))
        self.changed.set()

    def take_by_force(self, lease: Lease, index: int) -> None:
        """Take the memory behind slab index away from a device that does not give it back.

        Nobody reaches it any more when this returns; it is cleared and freed soon. Nothing happens when there is none.
        """
        if index in lease.slabs:
            self.counts.evicted_by_force += 1
            lease.taken += 1
            self._tell_when_done(self._take_back(lease, index))

    async def release(self, lease: Lease) -> None:
        """End the lease: export closed, connections ended, memory cleared. Nothing to do when it has ended already."""
        ended = self._end(lease)
        if ended is not None:
            self.counts.leases_released += 1
            log.info("lease %s of device %s was given back", lease.lease_id, lease.device)
            await self._recovered(self.clearing.begin(ended, lease.slab_bytes))

    async def expire(self) -> int:
        """End every lease whose grace is over, and lapsed ones while the host needs its memory back; their number."""
        late = due(self.leases, self.shortage_bytes())
        await self._recovered(self._expire(late))
        return len(late)

    def give_way(self, wanted_bytes: int) -> int:
        """End lapsed leases that hold so much together, or all of them, at once; how many bytes are on their way."""
        late = due(self.leases, wanted_bytes)
        given_bytes = sum(map(held_bytes, late))
        self._tell_when_done(self._expire(late))
        return given_bytes

    def _expire(self, late: list[Lease]) -> list[asyncio.Task[None]]:
        """End them here and now: while something is waited for, a heartbeat may come, and be answered."""
        tasks = []
        for lease in late:
            slabs = len(lease.slabs)
            ended = self._end(lease)
            if ended is not None:
                self.counts.leases_expired += 1
                log.info("lease %s of device %s expired with %d slabs", lease.lease_id, lease.device, slabs)
                tasks += self.clearing.begin(ended, lease.slab_bytes)
        return tasks

    def _tell_when_done(self, tasks: list[asyncio.Task[None]]) -> None:
        """As _recovered(), for one who does not wait."""
        for task in tasks:
            task.add_done_callback(lambda _: self.changed.set())

    async def _recovered(self, tasks: list[asyncio.Task[None]]) -> None:
        """Until what is being cleared is free; it goes on when the caller is cancelled."""
        if tasks:
            await asyncio.shield(asyncio.gather(*tasks))
            self.changed.set()

    def take_up(self, lease: Lease, remaining_s: float) -> None:
        """A lease of the daemon before this one, over the memory that it left: claim its slabs, and serve them.

        It has the seconds that it had left, and some time at least to be heard of. OSError: it cannot be served, and
        has ended.
        """
        for offset in lease.slabs.values():
            self.arena.allocator.claim(offset, lease.slab_bytes)
        self.leases.adopt(lease, remaining_s=max(remaining_s, RESTART_LIFE_S) if remaining_s > 0 else remaining_s)
        try:
            lease.export = self._engine.open_export(lease.slab_bytes, lease.slab_count)
            for index, offset in lease.slabs.items():
                # What was registered is registered again when the device asks for a path, and never punched out.
                self._engine_map(lease, index, offset, punchable=index in lease.punchable)
        except OSError:
            self.clearing.begin(self._end(lease) or [], lease.slab_bytes)
            raise

    async def close(self) -> None:
        """Wait until no thread touches the arena any more. The engine is closed by then or closes afterwards."""
        await self.clearing.close()

    def _check_slab_bytes(self, slab_bytes: int) -> int:
        low, high = self.arena.allocator.minimum_bytes, self.arena.allocator.maximum_bytes
        if not low <= slab_bytes <= high or slab_bytes & (slab_bytes - 1):
            raise RefusedError(
                Refusal.INVALID,
                f"slab_bytes must be a power of two between {low >> 20} MiB and {high >> 20} MiB",
            )
        return slab_bytes

    def _check_quota(self, host: str, owner: str) -> None:
        """RefusedError: who asks has as many leases as it may."""
        refused = self.quotas.lease_refusal(owner, host, self.leases.leases(), self.leases.leases_max)
        if refused:
            self.counts.over_quota += 1
            raise RefusedError(Refusal.UNAVAILABLE, refused)

    def _check_may_map(self, lease: Lease) -> None:
        """RefusedError: nothing is lent now, or nothing more to this lease."""
        if not self.lending:
            raise RefusedError(Refusal.UNAVAILABLE, "this daemon lends nothing more now")
        most = self.lease_bytes_max
        if most is not None and (len(lease.slabs) + 1) * lease.slab_bytes > most:
            self.counts.maps_refused += 1
            raise RefusedError(Refusal.NO_MEMORY, f"one lease may hold {most >> 20} MiB here, and this one does")
        room_bytes = self.quotas.room_bytes(lease.owner, self.leases.leases())
        if room_bytes is not None and room_bytes < lease.slab_bytes:
            self.counts.maps_refused += 1
            self.counts.over_quota += 1
            raise RefusedError(Refusal.NO_MEMORY, self.quotas.memory_refusal(lease.owner))

    def _lendable_bytes(self) -> int:
        """Memory that may be lent in all when another slab is, lent memory included."""
        if self.monitor is None:
            return self.limit_bytes
        return min(self.limit_bytes, self.monitor.growable_bytes())

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
            self.clearing.populate_now(offset, lease.slab_bytes)
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
            self.clearing.begin([offset], lease.slab_bytes)
        else:
            self.arena.allocator.free(offset)

    def _engine_map(self, lease: Lease, index: int, offset: int, *, punchable: bool) -> None:
        fd = self.arena.fd if punchable else -1
        self._engine.map_slab(lease.export, index, self.arena.address + offset, fd, offset)
        if punchable:
            lease.punchable.add(index)
        else:
            lease.punchable.discard(index)

    def _take_back(self, lease: Lease, index: int) -> list[asyncio.Task[None]]:
        """Cut slab index off; who clears it."""
        self._engine.unmap_slab(lease.export, index)
        offset = lease.slabs.pop(index)
        for known in (lease.leaving, lease.activity):
            known.pop(index, None)
        lease.punchable.discard(index)
        self._record.unmapped(offset)
        self.counts.slabs_released += 1
        return self.clearing.begin([offset], lease.slab_bytes) if self.keys.deregister(lease, offset) else []

    def _end(self, lease: Lease) -> list[int] | None:
        """End the lease here and now; the blocks to clear and to free. None when somebody else has ended it."""
        if not self.leases.remove(lease):
            return None
        self._record.ended(lease)
        try:
            self.keys.disconnect(lease)
        except RefusedError as error:
            # Its keys are taken back below, and without them what still comes in opens nothing.
            log.warning("lease %s: %s", lease.lease_id, error)
        if lease.export >= 0:
            self._engine.close_export(lease.export)
        pooled = self.keys.end(lease)
        self.counts.slabs_released += len(lease.slabs)
        offsets = [offset for offset in lease.slabs.values() if self.keys.deregister(lease, offset)]
        lease.slabs.clear()
        for known in (lease.punchable, lease.leaving, lease.activity):
            known.clear()
        return offsets + pooled
