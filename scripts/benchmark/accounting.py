"""CPU time and memory of processes, from /proc (proc(5)). Linux only."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat counted from the one behind the command, which may hold spaces and parentheses itself.
_UTIME, _STIME = 11, 12


def cpu_seconds_of(stat: str) -> float:
    """User and system time in seconds of all threads, living and ended, from the text of /proc/PID/stat.

    Raises ValueError when that is not what stat holds.
    """
    fields = stat.rpartition(")")[2].split()
    if len(fields) <= _STIME:
        raise ValueError(f"not the text of a /proc/PID/stat: {stat[:80]!r}")
    return (int(fields[_UTIME]) + int(fields[_STIME])) / TICKS_PER_S


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
    """Sum over living processes; OSError when one of them has ended."""
    return sum(cpu_seconds_of(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)


def peak_rss_bytes(pid: int) -> int:
    """Of a living process; OSError when it has ended."""
    return peak_rss_bytes_of(Path(f"/proc/{pid}/status").read_text())
