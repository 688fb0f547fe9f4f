"""How fast this processor's time-stamp counter runs, which an emulated machine's counts too.

The guest's kernel measures it while it boots. On a busy host that went wrong by a factor of ten and more, and all its
clocks ran as fast: commands timed out, peers were lost.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import statistics
import time
from collections.abc import Callable

MEASURE_S = 0.02
MEASUREMENTS = 7  # of which the middle one counts: some of them meet other work
_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret


def _counter() -> Callable[[], int] | None:
    """Reads the counter; None where there is none, or memory may not be executed."""
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    code.write(_RDTSC)
    # The function keeps the buffer, and with it the mapping, alive.
    held = ctypes.c_char.from_buffer(code)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(held))

    def counter(_held: object = held) -> int:
        return int(read())

    return counter


def _measure_khz(counter: Callable[[], int]) -> float:
    began, began_ns = counter(), time.monotonic_ns()
    time.sleep(MEASURE_S)
    return (counter() - began) * 1e6 / (time.monotonic_ns() - began_ns)


def tsc_khz() -> int | None:
    """In kHz, or None where it cannot be told; then the guest's kernel measures it."""
    counter = _counter()
    if counter is None:
        return None
    return round(statistics.median(_measure_khz(counter) for _ in range(MEASUREMENTS)))
