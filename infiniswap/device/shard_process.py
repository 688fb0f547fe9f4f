"""One shard's process, as its parent sees it: started or found running, ready, told to stop, ended.

A shard lives in a session of its own and is never killed with its parent: the kernel may hold swap on it, so it serves
on, and the next parent finds it by its control socket. It tells its parent one line, `ready URI` or `failed CODE WHY`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infiniswap.shared.device_client import DeviceClient
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.output import announce

SHARD_VARIABLE = "INFINISWAP_SHARD"  # its name, by which a service knows that a parent started it
ANSWER_TIMEOUT_S = 3.0
_LINE_BYTES_MAX = 4096


def is_own_shard(name: str) -> bool:
    """Whether this process is that shard, started by its parent."""
    return os.environ.get(SHARD_VARIABLE) == name


def tell_failure(error: UserError) -> int:
    """Tell the parent why a start fails; the exit code."""
    announce(f"failed {int(error.code)} {error}")
    return error.code


def program() -> list[str]:
    """How to start our command: the script that runs now, or the one beside this Python, or its module."""
    script = Path(sys.executable).with_name("infiniswap")
    if script.exists():
        return [sys.executable, str(script)]
    return [sys.executable, "-P", "-c", "from infiniswap.cli.main import main; main()"]


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


class ShardProcess:
    """A process that serves a shard. Either ours, or one that an earlier parent left."""

    def __init__(self, name: str, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        """child: None for one that was found."""
        self.name = name
        self.pid = pid
        self.code: int | None = None  # once it has ended; None of one that was found: nobody knows it
        self._pidfd = pidfd
        self._child = child

    @classmethod
    def start(cls, name: str, arguments: Sequence[str]) -> ShardProcess:
        """Start it; ready() tells what became of it. UserError."""
        environment = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
        try:
            child = subprocess.Popen(
                [*program(), "device", "serve", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={**environment, SHARD_VARIABLE: name},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops all of them in order
            )
        except OSError as error:
            raise UserError(f"cannot start '{name}': {error.strerror}", ExitCode.RESOURCES) from None
        return cls(name, child.pid, os.pidfd_open(child.pid), child)

    @property
    def found(self) -> bool:
        """Whether an earlier parent started it."""
        return self._child is None

    async def ready(self) -> str:
        """The URI, once it serves; UserError with its own words when it will not. Only of one that was started."""
        assert self._child is not None
        assert self._child.stdout is not None
        fd, line = self._child.stdout.fileno(), b""
        try:
            while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
                await _readable(fd)
                piece = os.read(fd, _LINE_BYTES_MAX)
                if not piece:
                    break
                line += piece
        finally:
            self._child.stdout.close()
        word, _, rest = line.decode(errors="replace").strip().partition(" ")
        if word == "ready":
            return rest
        await self.ended()
        code, _, why = rest.partition(" ")
        if word == "failed" and code.isdigit() and int(code) in list(ExitCode):
            raise UserError(why, ExitCode(int(code)))
        raise UserError(f"'{self.name}' ended before it served ({self.how_ended()})", ExitCode.FAILED)

    async def ended(self) -> int | None:
        """Wait for its end; its exit code, negative for a signal, None of one that was found."""
        await _readable(self._pidfd)
        if self._child is not None:
            self.code = self._child.wait()
        return self.code

    def how_ended(self) -> str:
        """For people."""
        if self.code is None:
            return "nobody saw how: an earlier parent had started it"
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"

    def send(self, number: int) -> None:
        """A signal, to this process and no other of its number."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Let go of it; it goes on."""
        os.close(self._pidfd)


def find(name: str, runtime_dir: Path) -> tuple[ShardProcess, dict[str, Any]] | None:
    """The process that serves shard name already, and its status; None where none answers. UserError: it is stuck."""
    try:
        with DeviceClient(name, runtime_dir, ANSWER_TIMEOUT_S) as control:
            pid = int(control.get("/v1/status")["pid"])
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return None
            try:
                status: dict[str, Any] = control.get("/v1/status")  # it still is that process
            except BaseException:
                os.close(pidfd)
                raise
    except UserError as error:
        if error.code == ExitCode.NOT_FOUND:
            return None
        raise
    return ShardProcess(name, pid, pidfd, None), status
