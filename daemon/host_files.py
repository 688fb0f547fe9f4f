"""The kernel's files about memory, kept open: to open one takes memory of the kernel's, and so does its first reading.

Whoever wants memory when there is none waits until there is some; who is to free some must not.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from infiniswap.shared.descriptors import EXHAUSTED

FILE_BYTES_MAX = 1 << 16  # read of one; memory.stat has about 2 KiB
FILES_MAX = 128  # kept open; groups may be nested deep, and each has three or four
MISSING_READS = 600  # for so many readings a file that was not there is not looked for again


class HostFiles:
    """Text of files by path; a file that is not there is None."""

    def __init__(self, *, keep_open: bool) -> None:
        """keep_open: for one who reads them often, and calls close()."""
        self._keep_open = keep_open
        self._fds: dict[Path, int] = {}
        self._missing: dict[Path, int] = {}  # readings until it is looked for again
        self._buffer = bytearray(FILE_BYTES_MAX)

    def text(self, path: Path, *, pieces: int = 1) -> str | None:
        """What is in it now; OSError when no descriptor is free: what could not be looked at is not absent.

        pieces: how often it is read on at most until its end, for those of which the kernel gives a part at a time.
        """
        if not self._keep_open:
            return _unless_exhausted(path)
        left = self._missing.pop(path, 0)
        if left > 1:
            self._missing[path] = left - 1
            return None
        fd = self._fds.get(path)
        try:
            if fd is None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._fds) >= FILES_MAX:
                    os.close(fd)
                    return _unless_exhausted(path)
                self._fds[path] = fd
            content = self._read(fd, pieces)
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise
            if fd is not None:  # the group is gone, or we are in another one
                os.close(self._fds.pop(path))
            if len(self._missing) < FILES_MAX:
                self._missing[path] = MISSING_READS
            return None
        return content.decode(errors="replace")

    def _read(self, fd: int, pieces: int) -> bytearray:
        content = self._buffer[: os.preadv(fd, [self._buffer], 0)]
        for _ in range(pieces - 1):
            length = os.preadv(fd, [self._buffer], len(content))
            if length == 0:
                break
            content += self._buffer[:length]
        return content

    def close(self) -> None:
        """Let go of all of them."""
        for fd in self._fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()


def _unless_exhausted(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        return None
