"""Runs commands that may hang in the kernel: nobody waits for them past a deadline.

A task in uninterruptible sleep takes no signal, not even SIGKILL. So what touches a block device runs in a process of
its own, and when its time is over it is sent SIGKILL and left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OUTPUT_BYTES_MAX = 1 << 20
_POLL_S = 0.02
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. timed_out: it did not, and may still be running; code is then -1."""

    code: int
    output: str
    errors: str
    timed_out: bool = False

    @property
    def reason(self) -> str:
        """The last line it said, or its exit code: for one line to the user."""
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


Runner = Callable[..., Done]


def _environment() -> dict[str, str]:
    # mkswap and blkid stand in sbin, which an ordinary PATH lacks; messages are parsed by nobody but shown as they are.
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:{_SBIN}", "LC_ALL": "C.UTF-8"}


def run(
    command: Sequence[str],
    timeout_s: float,
    *,
    pass_fds: Sequence[int] = (),
    progress: Callable[[], None] | None = None,
    progress_interval_s: float = 0.5,
    interrupt_first: bool = False,
) -> Done:
    """Run command for at most timeout_s; never blocks longer, whatever state the command is in.

    progress is called every progress_interval_s. interrupt_first: at the deadline SIGINT comes before SIGKILL, with a
    second to end in (swapoff(2) then stops in an orderly way). A command that does not exist gives code 127.
    """
    # The output goes to unnamed files, not pipes: reading a pipe would wait for a process that hangs holding it.
    out, err = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("out", "err"))
    try:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=pass_fds, env=_environment()
            )
        except FileNotFoundError:
            return Done(127, "", f"{command[0]}: command not found")
        try:
            ended = _wait(process, timeout_s, progress, progress_interval_s)
        except BaseException:
            process.kill()
            raise
        if not ended and interrupt_first:
            process.send_signal(signal.SIGINT)
            ended = _wait(process, 1.0, None, progress_interval_s)
            timed_out = True
        else:
            timed_out = not ended
        if not ended:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)  # reaped when it can be; a hanging one is left to init
        code = -1 if timed_out or process.returncode is None else process.returncode
        return Done(code, _content(out), _content(err), timed_out)
    finally:
        os.close(out)
        os.close(err)


def _wait(
    process: subprocess.Popen[bytes], timeout_s: float, progress: Callable[[], None] | None, interval_s: float
) -> bool:
    limit = time.monotonic() + timeout_s
    due = time.monotonic() + interval_s
    while process.poll() is None:
        now = time.monotonic()
        if now >= limit:
            return False
        if progress is not None and now >= due:
            progress()
            due = now + interval_s
        time.sleep(_POLL_S)
    return True


def _content(fd: int) -> str:
    return os.pread(fd, OUTPUT_BYTES_MAX, 0).decode(errors="replace")
