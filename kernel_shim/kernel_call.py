"""One call on the kernel through a worker process (worker.py), with a deadline."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from infiniswap.kernel_shim import commands

CALL_TIMEOUT_S = 120.0  # starting the worker included, which takes a minute where Python is emulated and cold


class KernelError(Exception):
    """The kernel refused a call; number is its errno."""

    def __init__(self, number: int, message: str) -> None:
        """message: strerror."""
        super().__init__(message)
        self.number = number


class NoAnswerError(Exception):
    """The worker gave no answer; timed_out: it may still be in the kernel."""

    def __init__(self, message: str, *, timed_out: bool) -> None:
        """message: the last line it said."""
        super().__init__(message)
        self.timed_out = timed_out


def call(
    request: dict[str, Any],
    timeout_s: float,
    *,
    fds: Sequence[int] = (),
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """One operation of worker.py. KernelError when the kernel refuses, NoAnswerError when nothing comes in time."""
    command = [sys.executable, "-P", "-m", "infiniswap.kernel_shim.worker", json.dumps(request)]
    done = commands.run(command, timeout_s, pass_fds=fds, progress=progress, progress_interval_s=1.0)
    if done.timed_out:
        raise NoAnswerError("no answer in time", timed_out=True)
    try:
        answer: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    except (IndexError, ValueError):
        raise NoAnswerError(done.reason, timed_out=False) from None
    if "errno" in answer:
        raise KernelError(answer["errno"], answer["message"])
    return answer
