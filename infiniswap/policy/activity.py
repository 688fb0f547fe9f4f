"""How hot a slab is: a moving average of its page I/O, in floats (paper section 4.3: HotSlab = 20 page I/O per s)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WEIGHT_NOW = 0.2  # weight of the last second; the past keeps 0.8


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Page I/O per second: mapped at or above hot, given up below cold (None: never)."""

    hot: float
    cold: float | None = None

    def __post_init__(self) -> None:
        """A hot threshold of zero would map everything at once, and overlapping ones would map and unmap in turn."""
        if not self.hot > 0:
            raise ValueError("the hot threshold must be above zero")
        if self.cold is not None and not 0 <= self.cold < self.hot:
            raise ValueError("the cold threshold must be below the hot one")


class Activity:
    """Per slab A <- 0.2 * now + 0.8 * A each second, from counters that only grow (and may wrap at 2^64)."""

    def __init__(self, page_ios: NDArray[np.uint64]) -> None:
        """page_ios: page-ins + page-outs so far of each slab, shape (slabs,); activity begins at zero."""
        self._seen = page_ios.astype(np.uint64, copy=True)
        self.values: NDArray[np.float64] = np.zeros(len(page_ios), dtype=np.float64)

    def update(self, page_ios: NDArray[np.uint64], elapsed_s: float) -> None:
        """Take the counters of now, elapsed_s after the last time.

        A late tick counts as the seconds it stands for, at their mean rate: so a stall neither doubles a rate nor
        skips the decay.
        """
        if not elapsed_s > 0:
            return
        rate = (page_ios - self._seen).astype(np.float64) / elapsed_s
        self._seen[:] = page_ios
        keep = (1.0 - WEIGHT_NOW) ** elapsed_s
        self.values *= keep
        self.values += (1.0 - keep) * rate

    def hot(self, thresholds: Thresholds) -> NDArray[np.intp]:
        """Slabs at or above the hot threshold, hottest first."""
        found = np.flatnonzero(self.values >= thresholds.hot)
        return found[np.argsort(-self.values[found], kind="stable")]

    def cold(self, thresholds: Thresholds) -> NDArray[np.intp]:
        """Slabs below the cold threshold, coldest first; none where no threshold is set."""
        if thresholds.cold is None:
            return np.empty(0, dtype=np.intp)
        found = np.flatnonzero(self.values < thresholds.cold)
        return found[np.argsort(self.values[found], kind="stable")]
