"""The real programs as processes, forked from one that has imported them: a start takes milliseconds of processor.

The process that forks has one thread, no event loop and no lock held; in the child each program's own main runs.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.output import Output
from tests.support.pace import paced

READY_TIMEOUT_S = paced(40.0)
STOP_TIMEOUT_S = paced(60.0)
_FIRST_FD, _LAST_FD = 3, 4096
_PR_SET_PDEATHSIG = 1
_MODULES = (
    "infiniswap.cli.device",
    "infiniswap.cli.device_serve",
    "infiniswap.cli.main",
    "infiniswap.daemon.main",
    "infiniswap.daemon.service",
    "infiniswap.device.serve",
)


def preload() -> None:
    """Import what the programs import."""
    for name in _MODULES:
        importlib.import_module(name)
    gc.freeze()  # or each child's first collection would copy all of it


def infiniswap(arguments: Sequence[str]) -> int:
    """The command infiniswap."""
    return int(importlib.import_module("infiniswap.cli.main").run(arguments))


def infiniswapd(arguments: Sequence[str]) -> int:
    """The command infiniswapd."""
    return int(importlib.import_module("infiniswap.daemon.main").run(arguments))


class Program:
    """A program that runs, or has run."""

    def __init__(
        self,
        label: str,
        run: Callable[[Sequence[str]], int],
        arguments: Sequence[str],
        log_path: Path,
        control: Path | None = None,
    ) -> None:
        """Start it. control: the page by which disk_shim.c is told what goes wrong for it."""
        self.label = label
        self.log_path = log_path
        self.code: int | None = None  # exit code, or minus the signal
        self.ready = ""
        self._out, theirs = os.pipe()
        self._output = Output(self._out)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(run, arguments, theirs, log, control)
        os.close(theirs)
        os.close(log)

    @property
    def running(self) -> bool:
        """It has not ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.code is None

    @property
    def log(self) -> str:
        """All of its stderr."""
        return self.log_path.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end; its exit code. AssertionError and SIGKILL when it takes longer."""
        end_s = time.monotonic() + timeout_s
        pause_s = 0.001
        while self.running:
            if time.monotonic() > end_s:
                os.kill(self.pid, signal.SIGKILL)
                self._ended(os.waitpid(self.pid, 0)[1])
                raise AssertionError(f"{self.label} did not end within {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)
        assert self.code is not None
        return self.code

    def is_ready(self, timeout_s: float) -> bool:
        """Whether it says that it is ready within timeout_s; False also when it has ended."""
        if not self.ready:
            self.ready = self._output.ready(timeout_s) or ""
        return bool(self.ready)

    def close(self) -> None:
        """Kill it if it runs."""
        self.kill()
        if self._out >= 0:
            os.close(self._out)
            self._out = -1

    def _ended(self, status: int) -> None:
        self.code = os.waitstatus_to_exitcode(status)


def _become(
    run: Callable[[Sequence[str]], int], arguments: Sequence[str], out: int, log: int, control: Path | None
) -> None:
    """In the child: the program, from its streams to its exit code."""
    code = 70
    try:
        library = ctypes.CDLL(None)
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(log, 2)
        os.closerange(_FIRST_FD, _LAST_FD)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if control is not None and library.lives_attach(os.fsencode(control)):
            raise OSError("the preloaded disk is not there")
        code = run(arguments)
        sys.stdout.flush()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (told as the interpreter would, then the child ends)
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
