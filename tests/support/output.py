"""What a program prints, a line at a time and never waited for without a deadline."""

from __future__ import annotations

import os
import select
import time

_BYTES_MAX = 4096


class Output:
    """Lines of a program's standard output."""

    def __init__(self, fd: int) -> None:
        """fd: the reading end of its pipe; whoever made it closes it."""
        self._fd = fd
        self._read = b""
        self.ended = False

    def line(self, timeout_s: float) -> str | None:
        """The next line without its end; None when none is whole within timeout_s, or none comes any more."""
        end_s = time.monotonic() + timeout_s
        while b"\n" not in self._read:
            readable, _, _ = select.select([self._fd], [], [], max(0.0, end_s - time.monotonic()))
            piece = os.read(self._fd, _BYTES_MAX) if readable else b""
            self.ended = bool(readable and not piece)
            if not piece:
                return None
            self._read += piece
            assert len(self._read) <= _BYTES_MAX, "a program says more than a test asks for"
        line, _, self._read = self._read.partition(b"\n")
        return line.decode(errors="replace")

    def ready(self, timeout_s: float) -> str | None:
        """What follows 'ready' on its next line, which must begin so; None as line()."""
        line = self.line(timeout_s)
        if line is None:
            return None
        word, _, rest = line.partition(" ")
        assert word == "ready", f"it printed {line!r}"
        return rest
