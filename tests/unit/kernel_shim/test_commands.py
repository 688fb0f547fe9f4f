"""A command that does not end never holds its caller past the deadline, and what it said is kept."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from infiniswap.kernel_shim import commands, kernel_nbd
from infiniswap.shared.errors import UserError


def python(code: str) -> list[str]:
    """A command that runs code."""
    return [sys.executable, "-I", "-c", code]


def test_output_and_code() -> None:
    """Output, messages and exit code come back apart; the reason is the last line of the messages."""
    done = commands.run(python("import sys; print('out'); sys.stderr.write('one\\ntwo\\n'); sys.exit(3)"), 20)
    assert (done.code, done.output, done.errors, done.timed_out) == (3, "out\n", "one\ntwo\n", False)
    assert done.reason == "two"


def test_missing_command() -> None:
    """A command that does not exist ends as in a shell."""
    done = commands.run(["no-such-command-anywhere"], 5)
    assert done.code == 127
    assert "no-such-command-anywhere" in done.reason


class Deadline:
    """Time in place of the runner's: however late the command begins, its deadline comes after that."""

    def __init__(self, begun: Path) -> None:
        """begun: what the command makes; waits: how many of the runner's waits then end without their condition."""
        self.begun = begun
        self.waits = 1
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        if self.waits and self.begun.exists():
            self.waits -= 1
            self.now_s += 3600.0


@pytest.fixture
def deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deadline:
    """The runner's."""
    made = Deadline(tmp_path / "begun")
    monkeypatch.setattr(commands, "time", made)
    return made


def test_deadline_holds_against_children(deadline: Deadline, tmp_path: Path) -> None:
    """A command that ignores signals, with a child that holds its output open, is left at the deadline."""
    deadline.waits = 2  # the one for its end, and the one for what it does when interrupted
    end = tmp_path / "end"
    os.mkfifo(end)
    code = (
        "import os, pathlib, signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('begun', flush=True)\n"
        "if os.fork(): pathlib.Path(@begun).touch()\n"
        "open(@end)\n"  # waits until somebody opens it for writing
    ).replace("@begun", repr(str(deadline.begun)))
    done = commands.run(python(code.replace("@end", repr(str(end)))), 30, interrupt_first=True)
    assert done.timed_out
    assert done.code == -1
    assert done.output == "begun\n"
    with end.open("w"):  # the child has waited until now, or nobody would let us
        pass


def test_interrupt_first(deadline: Deadline) -> None:
    """A command that stops in order when interrupted is let do so, and still counts as not done."""
    code = (
        "import pathlib, time\n"
        "try:\n"
        "  print('begun', flush=True)\n"
        "  pathlib.Path(@begun).touch()\n"
        "  time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "  print('stopped', flush=True)\n"
    ).replace("@begun", repr(str(deadline.begun)))
    done = commands.run(python(code), 30, interrupt_first=True)
    assert done.timed_out
    assert done.output == "begun\nstopped\n"


def test_progress() -> None:
    """Progress is asked for while the command runs."""
    calls: list[float] = []
    commands.run(python("import time; time.sleep(0.5)"), 10, progress=lambda: calls.append(0), progress_interval_s=0.1)
    assert len(calls) >= 2


def test_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel call without an end becomes one line for the user, in time."""
    monkeypatch.setattr(sys, "executable", "/bin/sleep")  # `sleep -P …` fails at once, `sleep 9` would hang
    with pytest.raises(UserError, match="nbd status failed"):
        kernel_nbd.call({"operation": "status"}, 5.0)
    monkeypatch.setattr(commands, "run", lambda *_, **__: commands.Done(-1, "", "", timed_out=True))
    with pytest.raises(UserError, match="has not finished nbd status after 5 s"):
        kernel_nbd.call({"operation": "status"}, 5.0)


def test_worker_without_module_nbd() -> None:
    """Without the netlink family the worker answers with an errno, not with a traceback."""
    done = commands.run([sys.executable, "-P", "-m", "infiniswap.kernel_shim.worker", '{"operation": "status"}'], 30)
    answer = json.loads(done.output)
    assert answer["message"] == os.strerror(answer["errno"]) if "errno" in answer else "devices" in answer
    assert done.code == 0


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.12.117+deb12-amd64", (6, 12)), ("5.4.0-150-generic", (5, 4)), ("7-rc1", (0, 0)), ("", (0, 0))],
)
def test_kernel_version(release: str, version: tuple[int, int]) -> None:
    """Versions are read from what distributions call their kernels."""
    assert kernel_nbd.kernel_version(release) == version
