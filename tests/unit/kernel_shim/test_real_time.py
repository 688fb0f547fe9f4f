"""Every thread of a service that serves swap is raised by itself, and a refusal costs nothing but a sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

from infiniswap.kernel_shim import real_time

IN_A_PROCESS = """
import os, subprocess, sys, threading
from infiniswap.kernel_shim import real_time
ended = threading.Event()
threading.Thread(target=ended.wait).start()
before = real_time.raise_like_main()
refused = real_time.raise_threads()
policies = {os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")}
show = "import os; print(os.sched_getscheduler(0))"
child = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True)
later = []
def work():
    later.append((os.sched_getscheduler(0), real_time.raise_like_main(), os.sched_getscheduler(0)))
thread = threading.Thread(target=work)
thread.start()
thread.join()
ended.set()
print(before, refused is None, policies, child.stdout.strip(), later)
"""


def test_each_by_itself(tmp_path: Path) -> None:
    """Threads of Python get the lower priority, the engine's the higher; one that has ended is passed over."""
    for name in ("7", "8", "9"):
        (tmp_path / name).mkdir()
    seen = {}

    def note(number: int, policy: int, parameters: os.sched_param) -> None:
        if number == 8:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        seen[number] = (policy, parameters.sched_priority)

    assert real_time.raise_threads(tmp_path, {7}, note) is None
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    assert seen == {7: (policy, real_time.PYTHON_PRIORITY), 9: (policy, real_time.ENGINE_PRIORITY)}
    assert real_time.PYTHON_PRIORITY < real_time.ENGINE_PRIORITY


def test_refused(tmp_path: Path) -> None:
    """The system's words for it, which the log then says."""
    (tmp_path / "7").mkdir()

    def refuse(_number: int, _policy: int, _parameters: os.sched_param) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    assert real_time.raise_threads(tmp_path, (), refuse) == "Operation not permitted"


def test_in_a_process() -> None:
    """The kernel shows all threads as real-time, what they start as ordinary; where it may not be, nothing changes."""
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, timeout=60, check=True)
    raised, ordinary = os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.SCHED_OTHER
    assert done.stdout.strip() in (
        f"False True {{{raised}}} {ordinary} [({ordinary}, True, {raised})]",
        f"False False {{{ordinary}}} {ordinary} [({ordinary}, False, {ordinary})]",
    )


def test_the_unit_allows_it() -> None:
    """A limit is enough, no capability is kept for it, and neither rule of the sandbox forbids the call."""
    unit = (Path(real_time.__file__).parent / "systemd/infiniswap-device@.service").read_text()
    assert f"\nLimitRTPRIO={real_time.ENGINE_PRIORITY}\n" in unit
    assert "\nRestrictRealtime=" not in unit
    assert unit.index("\nSystemCallFilter=~@privileged @resources\n") < unit.index(
        "\nSystemCallFilter=sched_setscheduler\n"
    )
    assert "CAP_SYS_NICE" not in unit
