"""Which cores programs run on: where the kernel wakes a process decides how long a request at depth 1 takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path


def pin(pid: int, cores: Iterable[int]) -> None:
    """All threads of a process to these cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def strays(pid: int, cores: Iterable[int]) -> list[str]:
    """Threads of a process that may run elsewhere, by name and id: io_uring's workers come later, on any core."""
    allowed, found = set(cores), []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if not os.sched_getaffinity(int(task.name)) <= allowed:
                found.append(f"{(task / 'comm').read_text().strip()} {task.name}")
    return found


def siblings(core: int) -> str:
    """The hyper-threads of its physical core, by the kernel's word; a virtual machine's may know of none."""
    return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()


def two_cores(allowed: Iterable[int], siblings_of: Callable[[int], str] = siblings) -> tuple[int, int, bool]:
    """Two that we may use, and whether they are of two physical cores; the first such, if there are any."""
    first, *others = sorted(allowed)
    apart = [core for core in others if siblings_of(core) != siblings_of(first)]
    return first, (apart or others)[0], bool(apart)


def on_core(core: int, command: Sequence[str] = ()) -> list[str]:
    """The command, on that core alone; without one what to put before it."""
    return ["taskset", "--cpu-list", str(core), *command]


@contextlib.contextmanager
def on_one_core(pids: Sequence[int]) -> Iterator[list[str]]:
    """All of these on the last core that we may use, for as long; what to put before a command that joins them."""
    before = os.sched_getaffinity(0)
    core = max(before)
    for pid in pids:
        pin(pid, {core})
    try:
        yield on_core(core)
    finally:
        for pid in pids:
            with contextlib.suppress(FileNotFoundError):
                pin(pid, before)
