"""A program in a terminal of its own: what its screen shows, and whether it left the terminal as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyte

from tests.support.pace import paced
from tests.support.waiting import wait_for

END_TIMEOUT_S = 20.0
_READ_BYTES = 1 << 16
_BEYOND = 60  # columns and lines that the program is not told of
_ALTERNATE_ON, _ALTERNATE_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
_CURSOR_ON, _CURSOR_OFF = b"\x1b[?25h", b"\x1b[?25l"
COLOUR = re.compile(rb"\x1b\[[0-9;]*?(3[0-7]|4[0-7]|9[0-7]|38|48)[0-9;]*m")


class ScreenOf:
    """Runs a command with a terminal of columns × lines; a thread reads what it draws. Use it as a context manager."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, columns: int = 80, lines: int = 24
    ) -> None:
        """The command runs from now on. The screen is larger than it is told, so that overflow shows."""
        self.columns, self.lines = columns, lines
        self._screen = pyte.Screen(columns + _BEYOND, lines + _BEYOND)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._lock = threading.Lock()
        self._fd, slave = pty.openpty()
        self.resize(columns, lines)
        self.modes_before = self.modes()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],  # its controlling terminal, for SIGWINCH and SIGHUP
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": environment.get("TERM", "xterm-256color")},
        )
        self._slave = slave  # kept open, so that the terminal's modes can be read after the end
        self._over = False
        self._thread = threading.Thread(target=self._read, name="screen")
        self._thread.start()

    def _read(self) -> None:
        while not self._over:
            ready, _, _ = select.select([self._fd], [], [], 0.05)
            if ready:
                data = os.read(self._fd, _READ_BYTES)
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)

    @property
    def display(self) -> list[str]:
        """Its lines as they are now, without spaces at their ends; those below the terminal's own lines, too."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The whole screen."""
        return "\n".join(self.display)

    def until(self, pattern: str, what: str = "") -> list[str]:
        """The screen, once pattern is found in it."""
        try:
            wait_for(lambda: re.search(pattern, self.text, re.MULTILINE), what=what or f"'{pattern}' on the screen")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None
        return self.display

    def drawn_again(self) -> None:
        """Wait until as much was written once more as was written so far."""
        drawn = len(self.raw)
        wait_for(lambda: len(self.raw) > 2 * drawn, what="more pictures")

    def press(self, keys: str) -> None:
        """As if typed."""
        os.write(self._fd, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """The window has another size now; who runs in it gets SIGWINCH."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.columns, self.lines = columns, lines

    def modes(self) -> list[Any]:
        """Of the terminal, as termios tells."""
        return termios.tcgetattr(self._fd)

    def overflow(self) -> list[str]:
        """Lines that are wider than the terminal, and those below its last one."""
        shown = self.display
        return [line for line in shown if len(line) > self.columns] + [line for line in shown[self.lines :] if line]

    def end(self, number: int | None = None) -> int:
        """Wait for the end, after a signal when one is given; the exit code. The terminal must be as it was."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(paced(END_TIMEOUT_S))
        wait_for(lambda: self.raw.count(_ALTERNATE_ON) == self.raw.count(_ALTERNATE_OFF), what="the screen given back")
        assert self.raw.rfind(_CURSOR_ON) > self.raw.rfind(_CURSOR_OFF), "the cursor stays hidden"
        assert self.modes() == self.modes_before, "the terminal's modes are not as they were"
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(paced(END_TIMEOUT_S))
        self._over = True
        self._thread.join(paced(END_TIMEOUT_S))
        os.close(self._slave)
        os.close(self._fd)
