"""RDMA paths of leases: memory is registered before a path is opened, and given back after it has ended."""

from __future__ import annotations

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.rdma_lease import LeaseRdma
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.rdma.path import Address
from infiniswap.shared.messages import OpenedPath
from infiniswap.shared.path_messages import PathEnd


class RdmaPaths:
    """The paths of a lender's leases."""

    def __init__(self, lender: Lender) -> None:
        self.keys = lender.keys
        self.leases = lender.leases
        self.clearing = lender.clearing
        self._lender = lender

    def supply(self, lease: Lease) -> int:
        """Slabs that the lease could map now, its own pool included."""
        return self._lender.supply(lease)

    async def open(self, lease: Lease, remote: PathEnd, local: Address | None = None) -> OpenedPath:
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
                await self.clearing.recover(self.keys.end(lease), lease.slab_bytes)
            raise

    async def _register_mapped(self, lease: Lease, rdma: LeaseRdma) -> None:
        for index, offset in list(lease.slabs.items()):
            if lease.slabs.get(index) != offset or offset in rdma.regions:
                continue
            await self.clearing.populate(offset, lease.slab_bytes)
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
        allocator = self._lender.arena.allocator
        spare = self.supply(lease) > self.keys.pooled(lease)
        offset = allocator.allocate(lease.slab_bytes) if spare else None
        if offset is None:
            return False
        added = False
        try:
            await self.clearing.populate(offset, lease.slab_bytes)
            # The lease may have ended or lost its device meanwhile, or somebody may need the memory.
            if self.keys.find(lease) is not None and not self.keys.paused:
                self.keys.put(lease, offset)
                added = True
        finally:
            if not added:
                await self.clearing.recover([offset], lease.slab_bytes)
        return added

    async def close(self, lease: Lease) -> None:
        """End the lease's RDMA path, if there is one; its slabs stay registered. RefusedError: it is still there."""
        self.keys.disconnect(lease)
        if not lease.slabs:  # then nothing speaks for RDMA any more: slabs to come are for TCP, and can be punched out
            await self.clearing.recover(self.keys.end(lease), lease.slab_bytes)

    async def watch(self) -> None:
        """Notice an RDMA device that has gone or come; to be called often."""
        for size_bytes, offsets in self.keys.watch():
            await self.clearing.recover(offsets, size_bytes)
