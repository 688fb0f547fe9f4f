"""Keeps registered slabs ready for the leases that use RDMA, so that mapping one does not wait for registration.

One task looks after all pools, a block at a time: a thread brings the block's pages in, then it is registered. A pool
takes a small share of what is free, and gives it back when that becomes less.
"""

from __future__ import annotations

import asyncio
import logging

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.refused import RefusedError

log = logging.getLogger(__name__)

POOL_SLABS = 4  # of a lease
POOL_SHARE = 8  # a pool has at most one in so many of the blocks that are free
POOL_FREE_MIN = 4  # with so many blocks free, a pool has one
TEND_INTERVAL_S = 0.5  # when nobody calls


def pool_target(supply: int) -> int:
    """How many blocks a pool should have, of the supply that is free or in this pool.

    What is in the pool counts as supply, so that filling it does not change its own target.
    """
    return min(POOL_SLABS, max(supply // POOL_SHARE, 1 if supply >= POOL_FREE_MIN else 0))


class PoolKeeper:
    """The task. start() once, then close() once."""

    def __init__(self, paths: RdmaPaths) -> None:
        self._paths = paths
        self._keys = paths.keys
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look after the pools."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; the pools stay as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TEND_INTERVAL_S):
                    await self._keys.wanted.wait()
            except TimeoutError:
                pass
            self._keys.wanted.clear()
            try:
                await self.tend()
            except Exception:
                log.exception("the pools could not be looked after; they will be again")
                await asyncio.sleep(TEND_INTERVAL_S)

    async def tend(self) -> None:
        """Bring every pool to its size."""
        growing = True
        while growing:
            growing = False
            for lease in self._paths.leases.leases():
                growing |= await self._step(lease)

    async def _step(self, lease: Lease) -> bool:
        """Give back what is too much in the lease's pool, or add one block; whether one was added."""
        if self._keys.find(lease) is None:
            return False
        idle = self._keys.paused or self._keys.queue_pairs(lease) == 0
        target = 0 if idle else pool_target(self._paths.supply(lease))
        surplus = self._keys.pooled(lease) - target
        if surplus > 0:
            await self._paths.clearing.recover(self._keys.drain(lease, surplus), lease.slab_bytes)
        return surplus < 0 and await self._add(lease)

    async def _add(self, lease: Lease) -> bool:
        try:
            return await self._paths.register_ahead(lease)
        except RefusedError as error:
            log.debug("lease %s: no slab for the pool: %s", lease.lease_id, error)
            self._keys.pause()  # it will not go better at once, and what is there is needed elsewhere
            return False
