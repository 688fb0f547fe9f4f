"""Reads at random places, one at a time and many: what of a loop's histogram becomes figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from infiniswap.device.metrics import percentile_ns
from infiniswap.engine.binding import PAGE_BYTES, histogram_floors_ns
from infiniswap.engine.measure import Measured, StopFlag
from infiniswap.policy.worth import Figures

__all__ = ["MANY", "ONE", "StopFlag", "StoppedError", "both", "figures", "shuffled"]

ONE, MANY = 1, 32  # reads at a time
OFFSETS_MAX = 65_536  # different pages that are read, then the same again

Loop = Callable[[int, Sequence[int], int, float, StopFlag], Measured]


class StoppedError(Exception):
    """The user has had enough."""


def shuffled(pages: int, rng: Random) -> list[int]:
    """Offsets of so many pages, or of OFFSETS_MAX of them, in random order."""
    return [page * PAGE_BYTES for page in rng.sample(range(pages), min(pages, OFFSETS_MAX))]


def both(loop: Loop, fd: int, offsets: Sequence[int], seconds: float, stop: StopFlag) -> tuple[Figures, Figures]:
    """Figures of ONE and of MANY reads at a time, each measured for so long. OSError, StoppedError."""
    return figures(loop, fd, offsets, ONE, seconds, stop), figures(loop, fd, offsets, MANY, seconds, stop)


def figures(loop: Loop, fd: int, offsets: Sequence[int], depth: int, seconds: float, stop: StopFlag) -> Figures:
    """Figures of depth reads at a time. OSError, StoppedError."""
    measured = loop(fd, offsets, depth, seconds, stop)
    if stop.is_set():
        raise StoppedError
    floors_ns = histogram_floors_ns()
    p50, p99 = (percentile_ns(measured.histogram, floors_ns, quantile) or 0.0 for quantile in (0.5, 0.99))
    return Figures(round(p50 / 1000, 2), round(p99 / 1000, 2), round(measured.reads / measured.elapsed_s, 1))
