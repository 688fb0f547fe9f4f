"""CPU time and memory of processes, from their clocks and /proc (proc(5)). Linux only."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def peak_rss_bytes_of(status: str) -> int:
    """The most memory that was resident at once, from the text of /proc/PID/status; ValueError without it."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) << 10
    raise ValueError("the text of /proc/PID/status holds no VmHWM")


def busy_seconds_of(stat: str) -> tuple[float, float]:
    """(seconds all CPUs were busy, seconds all CPUs existed) since boot, from the text of /proc/stat.

    Time that the hypervisor took away (steal) counts as busy. Raises ValueError when stat holds no such line.
    """
    first = stat.partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu":
        raise ValueError(f"not the text of /proc/stat: {stat[:80]!r}")
    user, nice, system, idle, iowait, irq, softirq, steal = (int(field) / TICKS_PER_S for field in first[1:9])
    busy_s = user + nice + system + irq + softirq + steal
    return busy_s, busy_s + idle + iowait


def busy_seconds() -> tuple[float, float]:
    """As busy_seconds_of, of this machine now."""
    return busy_seconds_of(Path("/proc/stat").read_text())


def children_cpu_seconds() -> float:
    """User and system time of all children of this process that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time in seconds of all threads, living and ended; OSError when one of the processes has ended.

    To the nanosecond (clock_getcpuclockid(3)): /proc/PID/stat counts in hundredths, too coarse for short runs.
    """
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def peak_rss_bytes(pid: int) -> int:
    """Of a living process; OSError when it has ended."""
    return peak_rss_bytes_of(Path(f"/proc/{pid}/status").read_text())
