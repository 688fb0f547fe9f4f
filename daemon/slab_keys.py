"""Which slab memory is registered for whom: the lender asks here, and knows nothing else of RDMA.

Invariant: a block that is registered, or may still be, is never freed: deregister() says so, and what the verbs refuse
to let go stays in a list of its own for as long as the daemon runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import Lease
from infiniswap.daemon.rdma import RdmaHost, RdmaMode, RdmaOptions
from infiniswap.daemon.rdma_lease import LeaseRdma, RdmaCounts
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.verbs import RegisteredMemory, VerbsError, registration_failure
from infiniswap.rdma.path import Address, RdmaUnavailableError
from infiniswap.shared.clock import Clock
from infiniswap.shared.messages import OpenedPath
from infiniswap.shared.path_messages import PathEnd, Region

log = logging.getLogger(__name__)

POOL_PAUSE_S = 5.0  # without pools, after somebody found no memory because of them, or a block could not be registered


def no_rdma() -> RdmaHost:
    """A host whose RDMA is switched off."""
    return RdmaHost(RdmaOptions(RdmaMode.NEVER))


class SlabKeys:
    """The registered memory of all leases over one RDMA device that comes and goes."""

    def __init__(self, arena: Arena, host: RdmaHost, *, clock: Clock = time.monotonic) -> None:
        """clock: monotonic seconds."""
        self.host = host
        self.counts = RdmaCounts()
        self.wanted = asyncio.Event()  # somebody should look after the pools
        self._arena = arena
        self._clock = clock
        self._leases: dict[str, LeaseRdma] = {}
        self._stuck: dict[int, RegisteredMemory] = {}  # outlived their protection domain
        self._paused_until_s = 0.0

    # ---- paths ----

    def open(self, lease: Lease) -> LeaseRdma:
        """The lease's protection domain, a new one where there is none, and without any queue pair.

        RefusedError: the daemon has no RDMA, or the device does not do it.
        """
        opened = self.host.require()
        found = self._leases.get(lease.lease_id)
        try:
            if found is None:
                found = LeaseRdma(opened, lease.slab_bytes, self.counts)
                self._leases[lease.lease_id] = found
            found.disconnect()
        except VerbsError as error:
            raise self._unavailable(error) from error
        return found

    def connect(self, lease: Lease, remote: PathEnd, local: Address | None) -> OpenedPath:
        """New queue pairs of the lease, connected to those of remote. RefusedError, and there are none then."""
        found = self.open(lease)
        try:
            port, gid = self.host.end(remote.gid, local)
            end = found.connect(remote, port, gid)
        except RdmaUnavailableError as error:
            raise RefusedError(Refusal.CONFLICT, str(error)) from error
        except VerbsError as error:
            raise self._unavailable(error) from error
        self.wanted.set()
        regions = {slab: self.region(lease, lease.slabs[slab]) for slab in sorted(lease.slabs)}
        return OpenedPath(
            end, str(port), found.probe.region, {slab: region for slab, region in regions.items() if region is not None}
        )

    def disconnect(self, lease: Lease) -> None:
        """Destroy the lease's queue pairs; its keys stay. RefusedError: some are still there."""
        found = self._leases.get(lease.lease_id)
        if found is not None:
            try:
                found.disconnect()
            except VerbsError as error:
                raise self._unavailable(error) from error

    def queue_pairs(self, lease: Lease) -> int:
        """Queue pairs of the lease: while there is one, its writes may still arrive."""
        found = self._leases.get(lease.lease_id)
        return 0 if found is None else found.queue_pairs

    def healthy(self, lease: Lease) -> bool:
        """Whether the lease has an RDMA path, and it is still good at this end."""
        found = self._leases.get(lease.lease_id)
        return found is not None and found.healthy()

    # ---- memory ----

    def find(self, lease: Lease) -> LeaseRdma | None:
        """What the lease has of RDMA: its slabs are to be registered while it has something."""
        return self._leases.get(lease.lease_id)

    def region(self, lease: Lease, offset: int) -> Region | None:
        """How the device reaches the block at offset by RDMA."""
        found = self._leases.get(lease.lease_id)
        memory = None if found is None else found.regions.get(offset)
        return None if memory is None else Region(memory.address, memory.rkey)

    def register(self, lease: Lease, offset: int) -> None:
        """Register a block of the lease, unless it is already. RefusedError says what is wrong with it."""
        found = self._leases.get(lease.lease_id)
        if found is None or offset in found.regions:
            return
        try:
            found.register(offset, self._arena.address + offset)
        except VerbsError as error:
            sentence = registration_failure(error, lease.slab_bytes)
            log.warning("lease %s: %s", lease.lease_id, sentence)
            raise RefusedError(Refusal.UNAVAILABLE, sentence) from error

    def deregister(self, lease: Lease, offset: int) -> bool:
        """Whether nobody can reach the block by a key any more: only then may it be freed."""
        found = self._leases.get(lease.lease_id)
        gone = found is None or found.deregister(offset)
        stuck = self._stuck.get(offset)
        if stuck is not None:
            try:
                stuck.close()
            except VerbsError as error:
                log.warning("a slab keeps its memory: %s", error)
                return False
            del self._stuck[offset]
            self.counts.regions_deregistered += 1
        return gone

    def end(self, lease: Lease) -> list[int]:
        """Take back everything of a lease whose queue pairs and export are gone; its pool, to be cleared and freed."""
        found = self._leases.pop(lease.lease_id, None)
        if found is None:
            return []
        pooled = list(found.pool)
        self._stuck.update(found.close())
        return [offset for offset in pooled if offset not in self._stuck]

    # ---- pools ----

    def pooled(self, lease: Lease) -> int:
        """Blocks in the lease's pool."""
        found = self._leases.get(lease.lease_id)
        return 0 if found is None else len(found.pool)

    def take(self, lease: Lease) -> int | None:
        """A block out of the lease's pool, registered and zero. None when there is none."""
        found = self._leases.get(lease.lease_id)
        if found is None:
            return None
        self.wanted.set()
        if not found.pool:
            self.counts.pool_misses += 1
            return None
        self.counts.pool_hits += 1
        return found.pool.popleft()

    def put(self, lease: Lease, offset: int) -> None:
        """A zeroed block for the lease's pool; RefusedError: it cannot be registered."""
        self.register(lease, offset)
        found = self._leases.get(lease.lease_id)
        if found is not None:
            found.pool.append(offset)

    def drain(self, lease: Lease, count: int) -> list[int]:
        """Take count blocks out of the lease's pool; those that may be cleared and freed now."""
        found = self._leases.get(lease.lease_id)
        blocks = [] if found is None else [found.pool.pop() for _ in range(min(count, len(found.pool)))]
        return [offset for offset in blocks if self.deregister(lease, offset)]

    def pause(self) -> None:
        """Give all pools back, and have none for POOL_PAUSE_S."""
        if self._leases:
            self._paused_until_s = self._clock() + POOL_PAUSE_S
            self.wanted.set()

    @property
    def paused(self) -> bool:
        """Whether there must be no pools now."""
        return self._clock() < self._paused_until_s

    # ---- the device ----

    def watch(self) -> list[tuple[int, list[int]]]:
        """Let go of a device that is gone, look for one where there is none; to be called often.

        What pools there were is to be cleared and freed: size and offsets of the blocks.
        """
        if self.host.vanished():
            opened = self.host.require()
            self.counts.devices_lost += 1
            required = self.host.options.mode is RdmaMode.REQUIRED
            log.warning(
                "RDMA device %s has gone; slabs are served over TCP%s",
                opened.port.device,
                ", though --rdma required" if required else "",
            )
            return self.close("its RDMA device has gone")
        self.host.try_open()
        return []

    def disconnect_all(self) -> None:
        """Destroy every queue pair: from now on no byte arrives."""
        for found in self._leases.values():
            try:
                found.disconnect()
            except VerbsError as error:
                log.warning("%s", error)

    def close(self, reason: str = "the daemon ends") -> list[tuple[int, list[int]]]:
        """Close all that was made of the device, and the device; what pools there were, as watch() does."""
        self.disconnect_all()
        pools = []
        for found in self._leases.values():
            pooled = list(found.pool)
            self._stuck.update(found.close())
            pools.append((found.slab_bytes, [offset for offset in pooled if offset not in self._stuck]))
        self._leases.clear()
        self.host.close(reason)
        return pools

    def _unavailable(self, error: VerbsError) -> RefusedError:
        log.warning("no RDMA path: %s", error)
        return RefusedError(Refusal.UNAVAILABLE, str(error))

    def snapshot(self) -> dict[str, Any]:
        """For /v1/stats."""
        opened = self.host.opened
        return {
            "state": str(self.host.state),
            "reason": self.host.reason or None,
            "device": None if opened is None else str(opened.port),
            "gid": None if opened is None else str(opened.gid.address),
            "mtu_bytes": None if opened is None else opened.mtu_bytes,
            "queue_pairs": sum(found.queue_pairs for found in self._leases.values()),
            "regions": sum(len(found.regions) for found in self._leases.values()) + len(self._stuck),
            "pooled": sum(len(found.pool) for found in self._leases.values()),
        }
