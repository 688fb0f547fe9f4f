"""Typed face of the engine's measuring loops: how long reads of a page take, without Python on their way."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.engine.binding import _check, ffi, lib

DEPTH_MAX: int = lib.ISW_MEASURE_DEPTH_MAX


@dataclass(frozen=True, slots=True)
class Measured:
    """What a loop found."""

    reads: int
    elapsed_s: float
    histogram: NDArray[np.uint64]  # latencies, in the buckets of binding.histogram_floors_ns()


class StopFlag:
    """Ends a measurement from another thread, or a signal's handler, within a tenth of a second."""

    def __init__(self) -> None:
        """Not set."""
        self.cell: Any = ffi.new("int32_t *")
        self._event = threading.Event()

    def set(self) -> None:
        """Stop."""
        self.cell[0] = 1
        self._event.set()

    def is_set(self) -> bool:
        """Whether it was."""
        return self._event.is_set()


def measure_nbd(fd: int, offsets: Sequence[int], depth: int, seconds: float, stop: StopFlag) -> Measured:
    """Read pages at these offsets through a negotiated connection that blocks, depth at a time. OSError.

    The lock of Python is given up meanwhile.
    """
    return _measure(lib.isw_measure_nbd, fd, offsets, depth, seconds, stop)


def measure_file(fd: int, offsets: Sequence[int], depth: int, seconds: float, stop: StopFlag) -> Measured:
    """Read pages at these offsets of a file, depth at a time, each by a thread of its own. OSError."""
    return _measure(lib.isw_measure_file, fd, offsets, depth, seconds, stop)


def _measure(loop: Any, fd: int, offsets: Sequence[int], depth: int, seconds: float, stop: StopFlag) -> Measured:
    wanted = ffi.new("uint64_t[]", list(offsets))
    found = ffi.new("struct isw_measured *")
    _check(loop(fd, wanted, len(offsets), depth, round(seconds * 1000), stop.cell, found), "measure")
    histogram = np.frombuffer(ffi.buffer(found.histogram), dtype=np.uint64).copy()
    return Measured(int(found.reads), found.elapsed_ns / 1e9, histogram)
