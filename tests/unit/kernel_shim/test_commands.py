"""A command that does not end never holds its caller past the deadline, and what it said is kept."""

from __future__ import annotations

import json
import os
import sys
import time

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


def test_deadline_holds_against_children() -> None:
    """A command that ignores signals, with a child that holds its output open, is left at the deadline."""
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('begun', flush=True)\n"
        "os.fork() or time.sleep(3)\n"
        "time.sleep(3)\n"
    )
    begun = time.monotonic()
    done = commands.run(python(code), 0.7, interrupt_first=True)
    assert time.monotonic() - begun < 2.8
    assert done.timed_out
    assert done.code == -1
    assert done.output == "begun\n"


def test_interrupt_first() -> None:
    """A command that stops in order when interrupted is let do so, and still counts as not done."""
    code = (
        "import time\n"
        "try:\n"
        "  print('begun', flush=True)\n"
        "  time.sleep(20)\n"
        "except KeyboardInterrupt:\n"
        "  print('stopped')\n"
    )
    done = commands.run(python(code), 1.0, interrupt_first=True)
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
