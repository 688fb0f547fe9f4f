"""Starts the programs that are compared and ends them by their process ids."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from infiniswap.identity.files import FOLDER_VARIABLE, NO_FOLDER
from infiniswap.shared.errors import ExitCode, UserError

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
_LINE_BYTES_MAX = 4096
_LOG_LINES_SHOWN = 10


@dataclass(slots=True)
class Program:
    """A running program; stderr goes to log."""

    label: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def line(self, timeout_s: float) -> str:
        """The next line that it prints, stripped. UserError when it prints none in timeout_s."""
        assert self.process.stdout is not None
        line, end_s = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, end_s - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), _LINE_BYTES_MAX) if readable else b""
            if not piece:
                raise self.failed(f"has said nothing for {timeout_s:.0f} s, or has ended; the end of its log:")
            line += piece
        return line.decode(errors="replace").strip()

    def failed(self, what: str) -> UserError:
        """An error that names the program and shows the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return UserError("\n  ".join([f"{self.label} {what}", *lines]), ExitCode.FAILED)


@contextmanager
def held() -> Iterator[None]:
    """SIGINT and SIGTERM count once what is within is done: a program that was started is then known to who ends it.

    In the main thread; what is within may not wait.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored stays so, in the programs too; they get nothing of a function, which ends with exec.
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for ours, handler in before.items():
            signal.signal(ours, handler)
        for late in came:
            signal.raise_signal(late)


class Programs:
    """All programs of a run, in one folder. Leaving the context ends them, the last started first."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """folder: for logs; environment: set over that of this process."""
        self.folder = folder
        self._environment = {**os.environ, FOLDER_VARIABLE: NO_FOLDER, **environment}  # no certificates: all is here
        self._running: list[Program] = []
        self._at_end: list[Callable[[], None]] = []

    def at_end(self, do: Callable[[], None]) -> None:
        """Call this once all programs have ended."""
        self._at_end.append(do)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of them running
        try:
            while self._running:
                end(self._running.pop().process, STOP_TIMEOUT_S)
            for do in self._at_end:
                do()
        finally:
            signal.signal(signal.SIGINT, before)

    def start(self, label: str, command: Sequence[str], stdin: int = subprocess.DEVNULL) -> Program:
        """Start a program in a session of its own. UserError when there is no such program."""
        log = self.folder / f"{label}.log"
        with log.open("wb") as stderr, held():
            try:
                process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise UserError(f"{command[0]} cannot be started: {error.strerror}", ExitCode.NOT_FOUND) from None
            program = Program(label, process, log)
            self._running.append(program)
        return program

    def ready_line(self, program: Program) -> str:
        """What follows 'ready' on the program's first line of output; UserError without one in READY_TIMEOUT_S."""
        line = program.line(READY_TIMEOUT_S)
        word, _, rest = line.partition(" ")
        if word != "ready":
            raise program.failed(f"said '{word}' where 'ready' was expected")
        return rest

    def wait_for_socket(self, program: Program, address: Path | tuple[str, int]) -> None:
        """Wait until something accepts connections at address; UserError when program ends or takes too long."""

        def accepts() -> bool:
            family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                return probe.connect_ex(str(address) if isinstance(address, Path) else address) == 0

        self.wait_until(accepts, program, f"does not serve {address}", READY_TIMEOUT_S)

    def wait_until(self, condition: Callable[[], bool], program: Program, complaint: str, timeout_s: float) -> None:
        """Poll condition until it holds; UserError with complaint when program ends or timeout_s is over."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            if program.process.poll() is not None:
                raise program.failed(f"ended with exit code {program.process.returncode}; the end of its log:")
            if time.monotonic() > end_s:
                raise program.failed(f"{complaint} ({timeout_s:.0f} s)")
            time.sleep(POLL_S)


def end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """SIGTERM, and SIGKILL after timeout_s."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago, for programs that cannot choose one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def need(command: str, package: str) -> str:
    """The full path of command; UserError that names its Debian package when it is missing."""
    found = shutil.which(command)
    if found is None:
        raise UserError(f"{command} is missing: apt-get install {package}", ExitCode.NOT_FOUND)
    return found
