"""Threads that page-outs wait for run before others, and get memory where others do not: real-time scheduling.

A host without memory has each thread that asks for some look for it by itself, and a device service that looks for
seconds answers nobody meanwhile. The kernel lets real-time threads have half of its reserve (vm.min_free_kbytes) at
once (gfp_to_alloc_flags() of its page allocator). They get the lowest such priorities, sched(7), and the kernel keeps a
twentieth of each processor from all such threads together (kernel.sched_rt_runtime_us). Programs and threads that they
start are ordinary ones (SCHED_RESET_ON_FORK), so each thread is raised by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

PYTHON_PRIORITY = 1
ENGINE_PRIORITY = 2  # moves pages while Python, which has more to compute, is at work on the same processor
REAL_TIME_POLICIES = frozenset({os.SCHED_FIFO, os.SCHED_RR})
POLICY = os.SCHED_RR | os.SCHED_RESET_ON_FORK
_TASKS = Path("/proc/self/task")

SetScheduler = Callable[[int, int, os.sched_param], None]


def raise_threads(
    tasks: Path = _TASKS,
    python: Collection[int] | None = None,
    set_scheduler: SetScheduler = os.sched_setscheduler,
) -> str | None:
    """Raise all threads that this process has now; None, or why that may not be, in the system's words.

    python: ids of those that run Python; the others are the engine's. Call it once the engine runs: what starts later
    raises itself (raise_like_main).
    """
    if python is None:
        python = {thread.native_id for thread in threading.enumerate() if thread.native_id is not None}
    try:
        for number in sorted(int(task.name) for task in tasks.iterdir()):
            priority = PYTHON_PRIORITY if number in python else ENGINE_PRIORITY
            try:
                set_scheduler(number, POLICY, os.sched_param(priority))
            except ProcessLookupError:
                continue  # it has ended
    except OSError as error:
        return error.strerror
    return None


def raise_like_main() -> bool:
    """Raise the calling thread as one that runs Python where the main thread was raised; whether it is now."""
    try:
        if os.sched_getscheduler(os.getpid()) & ~os.SCHED_RESET_ON_FORK != os.SCHED_RR:
            return False
        os.sched_setscheduler(0, POLICY, os.sched_param(PYTHON_PRIORITY))
    except OSError:
        return False
    return True
