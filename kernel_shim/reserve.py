"""The kernel's reserve of memory, vm.min_free_kbytes: what paging out over a socket takes when there is none else."""

from __future__ import annotations

from pathlib import Path

from infiniswap.kernel_shim.sysfs import parse_kib_table
from infiniswap.shared.sizes import format_size

MIN_FREE_BYTES_MIN = 32 << 20
MIN_FREE_BYTES_MAX = 256 << 20


def min_free_advice_bytes(memory_total_bytes: int) -> int:
    """What vm.min_free_kbytes should at least be: 1 % of memory, within limits."""
    return min(max(memory_total_bytes // 100, MIN_FREE_BYTES_MIN), MIN_FREE_BYTES_MAX)


def complaint(root: Path = Path("/")) -> str | None:
    """A sentence for whoever makes a device swap where the reserve is smaller than advised, with what mends it.

    It is not raised for him: memory in the reserve is lost to all programs of the host. None where it is well,
    and where it cannot be read.
    """
    try:
        total = parse_kib_table((root / "proc/meminfo").read_text())["MemTotal"]
        reserve = int((root / "proc/sys/vm/min_free_kbytes").read_text()) << 10
    except (OSError, ValueError, KeyError):
        return None
    advice = min_free_advice_bytes(total)
    if reserve >= advice:
        return None
    return (
        f"the kernel keeps {format_size(reserve)} free for page-outs when there is no memory, advised is "
        f"{format_size(advice)}: sysctl -w vm.min_free_kbytes={advice >> 10}"
    )
