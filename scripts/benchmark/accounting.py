"""CPU time and memory of processes, from /proc (proc(5)). Linux only."""

from __future__ import annotations

import os
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


def cpu_seconds(pids: Iterable[int]) -> float:
    """Sum over living processes; OSError when one of them has ended."""
    return sum(cpu_seconds_of(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)


def peak_rss_bytes(pid: int) -> int:
    """Of a living process; OSError when it has ended."""
    return peak_rss_bytes_of(Path(f"/proc/{pid}/status").read_text())
