"""The terminal of a live view: keys without waiting for Enter, and as it was on every way out."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from types import FrameType

from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.text import Text

KEYS = {
    "q": "quit", "Q": "quit", "\x04": "quit", "k": "up", "\x1b[A": "up", "\x1bOA": "up", "j": "down", "\x1b[B": "down",
    "\x1bOB": "down", "\r": "enter", "\n": "enter", "l": "enter", "\x1b[C": "enter", "\x1bOC": "enter", "\x1b": "back",
    "\x1b[D": "back", "\x1bOD": "back", "\x7f": "back", "s": "sort", "r": "reverse", " ": "pause", "p": "pause",
    "h": "help", "?": "help", "+": "slower", "-": "faster",
}  # fmt: skip
_AT_ONCE = 256  # bytes of keys taken together
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class SignalledError(Exception):
    """A signal ended the view; number: which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[A-Z]|[\x00-\U0010ffff]")  # ECMA-48's, or one character


def keys_in(data: str) -> list[str]:
    """Names of the keys in what a terminal sent; "other" for those that have none."""
    return [KEYS.get(key, "other") for key in _SEQUENCE.findall(data)]


class Terminal:
    """A full screen while the context lasts. Signals end it by SignalledError; Ctrl-Z and back draws anew."""

    def __init__(self, console: Console) -> None:
        """console: a terminal."""
        self._console = console
        self._live = Live(
            console=console, auto_refresh=False, screen=True, redirect_stdout=False, redirect_stderr=False
        )
        self._stdin = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._before: list[int | list[bytes | int]] | None = None
        self._lock = threading.RLock()  # a signal may come inside
        self._open = True
        self._woken_fd, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines now, also where COLUMNS and LINES say what once was."""
        with contextlib.suppress(OSError):
            self._console.size = ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))
        return self._console.size.width, self._console.size.height

    def draw(self, lines: list[Text]) -> None:
        """Replace what is shown."""
        self._live.update(Text("\n").join(lines), refresh=True)

    def wake(self) -> None:
        """Let wait() return; from any thread, and nothing after the end."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._open:
                os.write(self._wake_fd, b"w")

    def wait(self, timeout_s: float) -> list[str]:
        """Keys, as soon as there are some; nothing after timeout_s, wake(), or a change of the window's size."""
        fds = [self._woken_fd] if self._stdin is None else [self._woken_fd, self._stdin]
        ready, _, _ = select.select(fds, [], [], timeout_s)
        if self._woken_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken_fd, 4096)
        if self._stdin is None or self._stdin not in ready:
            return []
        data = os.read(self._stdin, _AT_ONCE)
        return keys_in(data.decode(errors="replace")) if data else ["quit"]  # the terminal is gone

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Take the screen, and give it back as it was, whatever happens."""
        handlers = {number: signal.signal(number, self._end) for number in _ENDING}
        handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self.wake())
        handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        try:
            self._enter()
            yield
        finally:
            self._leave()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            with self._lock:
                self._open = False
                os.close(self._wake_fd)
                os.close(self._woken_fd)

    def _enter(self) -> None:
        if self._stdin is not None:
            self._before = termios.tcgetattr(self._stdin)
            tty.setcbreak(self._stdin)
        self._live.start()

    def _leave(self) -> None:
        try:
            self._live.stop()
        finally:
            if self._stdin is not None and self._before is not None:
                with contextlib.suppress(termios.error):  # it may be gone
                    termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._before)

    def _suspend(self, *_: object) -> None:
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
        self.wake()

    @staticmethod
    def _end(number: int, _frame: FrameType | None) -> None:
        raise SignalledError(number)
