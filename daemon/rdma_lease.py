"""What one lease has of RDMA: a protection domain, the queue pairs of its path, its registered memory and the pool.

Registered memory is known by the offset of its block in the arena. A block stays in regions until it is deregistered
for certain: one that the verbs refuse to let go is kept, tried again, and must not be lent to anybody else meanwhile.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections import deque
from dataclasses import dataclass

from infiniswap.daemon.rdma import Opened
from infiniswap.daemon.verbs import (
    ProtectionDomain,
    QueuePairHandle,
    RegisteredMemory,
    VerbsError,
    plan_connections,
)
from infiniswap.rdma.devices import Gid, Port
from infiniswap.rdma.path import READS_MAX
from infiniswap.shared.path_messages import PathEnd, QueuePair, Region

log = logging.getLogger(__name__)

PROBE_BYTES = 4096


@dataclass(slots=True)
class RdmaCounts:
    """Events since the start, ever growing."""

    paths_opened: int = 0
    regions_registered: int = 0
    regions_deregistered: int = 0
    pool_hits: int = 0
    pool_misses: int = 0
    devices_lost: int = 0


class Probe:
    """A little memory with random content that a device reads and writes to see whether its path works."""

    def __init__(self, domain: ProtectionDomain) -> None:
        self._map = mmap.mmap(-1, PROBE_BYTES)
        self._base = ctypes.c_char.from_buffer(self._map)
        self._memory = domain.register(ctypes.addressof(self._base), PROBE_BYTES)
        self.renew()

    def renew(self) -> None:
        """New content."""
        self._map[:] = os.urandom(PROBE_BYTES)

    @property
    def region(self) -> Region:
        """What the device is told."""
        return Region(self._memory.address, self._memory.rkey)

    def close(self) -> None:
        """Deregister; VerbsError. The memory goes with the object."""
        self._memory.close()


class LeaseRdma:
    """One lease's protection domain and all in it. Nothing here is asynchronous."""

    def __init__(self, opened: Opened, slab_bytes: int, counts: RdmaCounts) -> None:
        """VerbsError: the device gives no protection domain, or no probe."""
        self.regions: dict[int, RegisteredMemory] = {}  # by the block's offset; pooled ones too
        self.pool: deque[int] = deque()  # registered blocks that read as zeroes and wait to be mapped
        self._opened = opened
        self.slab_bytes = slab_bytes
        self._counts = counts
        self._pairs: list[QueuePairHandle] = []
        self._domain = opened.device.protection_domain()
        try:
            self.probe = Probe(self._domain)
        except BaseException:
            self._domain.close()
            raise

    @property
    def queue_pairs(self) -> int:
        """Queue pairs that exist: through each of them, writes may still arrive."""
        return len(self._pairs)

    def connect(self, remote: PathEnd, port: Port, gid: Gid) -> PathEnd:
        """New queue pairs, connected to those of remote; the earlier ones are gone before.

        VerbsError or RdmaUnavailableError, and there is no queue pair then.
        """
        self.disconnect()
        device = self._opened.device
        mtu_bytes = device.mtu_bytes(port.number)
        reads_max = min(READS_MAX, device.reads_max)
        plan = plan_connections(
            link_layer=port.link_layer, port=port, gid=gid, mtu_bytes=mtu_bytes, reads_max=reads_max, remote=remote
        )
        self.probe.renew()
        own = []
        try:
            for connection in plan:
                pair = self._domain.queue_pair()
                self._pairs.append(pair)
                pair.connect(connection)
                own.append(QueuePair(pair.number, connection.psn))
        except BaseException:
            self.disconnect()
            raise
        self._counts.paths_opened += 1
        return PathEnd(port.link_layer, gid.address, port.lid, mtu_bytes, reads_max, tuple(own))

    def disconnect(self) -> None:
        """Destroy the queue pairs. VerbsError: some are still there, and are tried again next time."""
        left, failure = [], None
        for pair in self._pairs:
            try:
                pair.close()
            except VerbsError as error:
                left.append(pair)
                failure = error
        self._pairs = left
        if failure is not None:
            raise failure

    def healthy(self) -> bool:
        """Whether there is a path, and none of its queue pairs has failed."""
        return bool(self._pairs) and not any(pair.broken() for pair in self._pairs)

    def register(self, offset: int, address: int) -> None:
        """Register the block at offset; VerbsError."""
        self.regions[offset] = self._domain.register(address, self.slab_bytes)
        self._counts.regions_registered += 1

    def deregister(self, offset: int) -> bool:
        """Whether nobody can reach the block by a key any more."""
        region = self.regions.get(offset)
        if region is None:
            return True
        try:
            region.close()
        except VerbsError as error:
            log.warning("a slab keeps its memory: %s", error)
            return False
        del self.regions[offset]
        self._counts.regions_deregistered += 1
        return True

    def close(self) -> dict[int, RegisteredMemory]:
        """Queue pairs, memory and protection domain, in this order; what memory is still registered afterwards."""
        try:
            self.disconnect()
        except VerbsError as error:
            log.warning("%s", error)  # without keys, what it still lets in opens nothing
        for offset in list(self.regions):
            self.deregister(offset)
        self.pool.clear()
        try:
            self.probe.close()
            self._domain.close()
        except VerbsError as error:
            log.warning("%s", error)
        return self.regions
