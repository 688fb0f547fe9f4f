"""Programs that share a core for as long as they are measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.benchmark.affinity import on_one_core, pin, strays, two_cores


def test_on_one_core_for_as_long() -> None:
    """All threads of what runs, and the command that joins them, are on the same core, and free again behind it."""
    allowed = os.sched_getaffinity(0)
    script = """if True:
        import threading, time
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        print("ready", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            tasks = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
            assert len(tasks) == 2
            with on_one_core([process.pid]) as before:
                told = subprocess.run(
                    [*before, sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                (core,) = map(int, told.stdout.split())
                assert all(os.sched_getaffinity(task) == {core} for task in tasks)
            assert all(os.sched_getaffinity(task) == allowed for task in tasks)
            with on_one_core([process.pid]):
                process.kill()
                process.wait()
        finally:
            process.kill()


def test_strays() -> None:
    """A thread that may run on a core that is not named is told by name; none once all are pinned."""
    allowed = os.sched_getaffinity(0)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            pin(process.pid, {min(allowed)})
            assert strays(process.pid, {min(allowed)}) == []
            assert strays(process.pid, allowed) == []
            (found,) = strays(process.pid, {max(allowed) + 1})
            assert found.endswith(f" {process.pid}")
        finally:
            process.kill()


def test_two_cores() -> None:
    """Of two physical cores where there are two; else the first two, and that is said."""
    threads = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}
    assert two_cores([3, 0, 1, 2], threads.__getitem__) == (0, 2, True)
    assert two_cores([1, 0], threads.__getitem__) == (0, 1, False)
