"""Page I/O of all slabs, and how much of what it asks for is in remote memory.

Of a slab is known what share of its pages has ever been written, and what share is current in remote memory: a
page becomes remote when it is written while its slab is mapped, or promoted in the background, and ceases to be when
the slab is drained or lost. Page I/O hits all pages of a slab alike that were ever written. That a slab has hot
and cold pages is left out, so the share served remotely after an eviction is on the low side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infiniswap.policy.activity import Activity
from infiniswap.policy.mapping import Mask
from infiniswap.simulation.cluster import Cluster
from infiniswap.simulation.scenario import PAGE_BYTES

READ_SHARE = 0.5  # of page I/O: under memory pressure each page that comes in puts one out
PROMOTED_PAGES_PER_S = 1000.0  # of a device, over all its slabs that want it


class Pages:
    """Counters as the engine has them, and shares of pages."""

    def __init__(self, cluster: Cluster, rng: np.random.Generator) -> None:
        """rng: for arrivals."""
        self._cluster = cluster
        self._rng = rng
        self.pages_per_slab = cluster.slab_bytes // PAGE_BYTES
        self.ins = np.zeros(cluster.slabs, dtype=np.uint64)
        self.outs = np.zeros(cluster.slabs, dtype=np.uint64)
        self.written = np.zeros(cluster.slabs)
        self.remote = np.zeros(cluster.slabs)

    def begin(self, slab: int) -> None:
        """The slab is mapped anew: nothing of it is remote."""
        self.remote[slab] = 0.0

    def forget(self, slabs: slice) -> None:
        """Their device begins anew: nothing is written."""
        self.written[slabs] = self.remote[slabs] = 0.0

    def keep(self, slab: int, share: float) -> None:
        """Only this share of what is remote is taken along."""
        self.remote[slab] *= share

    def second(
        self, page_ios: NDArray[np.float64], filling: NDArray[np.float64], activity: Activity
    ) -> tuple[int, float]:
        """Let a second's page I/O happen: page_ios in the mean, and filling. All pages, and those that were remote."""
        ins = self._rng.poisson(READ_SHARE * page_ios).astype(np.uint64)
        outs = self._rng.poisson((1.0 - READ_SHARE) * page_ios).astype(np.uint64)
        new = np.minimum(filling / self.pages_per_slab, 1.0 - self.written)
        self.ins += ins
        self.outs += outs + filling.astype(np.uint64)
        activity.update(self.ins + self.outs, 1.0)
        held = ~self._cluster.unmapped
        served = self._served(ins, outs, held) + float((filling * held).sum())
        self.written += new
        # Rewritten is what was written before: a page that comes in leaves its place to one that goes out.
        hits = outs / np.maximum(self.written * self.pages_per_slab, 1.0)
        rewritten = (self.written - self.remote) * -np.expm1(-hits)
        self.remote += np.where(held, new + rewritten, -self.remote)
        np.minimum(self.remote, self.written, out=self.remote)
        self._promote(held)
        return int(ins.sum() + outs.sum() + filling.sum()), served

    def _served(self, ins: NDArray[np.uint64], outs: NDArray[np.uint64], held: Mask) -> float:
        current = np.divide(self.remote, self.written, out=np.ones_like(self.remote), where=self.written > 0)
        return float((ins * np.where(held, np.minimum(current, 1.0), 0.0)).sum() + (outs * held).sum())

    def _promote(self, held: Mask) -> None:
        wanting = held & (self.remote < self.written)
        if not wanting.any():
            return
        owners = self._cluster.owner[wanting]
        devices = np.bincount(owners, minlength=self._cluster.machines)
        step = PROMOTED_PAGES_PER_S / self.pages_per_slab / devices[owners]
        self.remote[wanting] = np.minimum(self.remote[wanting] + step, self.written[wanting])
