"""What a device's backup holds once the device has ended, whichever way it is kept; and block devices for one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infiniswap.engine.log_binding import TRANSFER_BYTES_MAX, Log, LogFlag, holds_log

PAGE_BYTES = 4096


def read_backup(path: Path, size_bytes: int, *, unreadable: bytes | None = None) -> bytes:
    """All of it. unreadable: what stands for a page that a log cannot read; None: OSError then."""
    with path.open("rb") as file:
        if not holds_log(file.fileno()):
            return file.read(size_bytes)
        log = Log(file.fileno(), LogFlag.READ_ONLY)
        try:
            offsets = range(0, size_bytes, TRANSFER_BYTES_MAX)
            return b"".join(
                _read(log, offset, min(TRANSFER_BYTES_MAX, size_bytes - offset), unreadable) for offset in offsets
            )
        finally:
            log.close()


def read_range(path: Path, offset: int, length: int) -> bytes:
    """A part of it, of any length, also while a device that has nothing pending has it."""
    with path.open("rb") as file:
        if not holds_log(file.fileno()):
            return os.pread(file.fileno(), length, offset)
        log = Log(file.fileno(), LogFlag.READ_ONLY)
        try:
            first, end = offset // PAGE_BYTES * PAGE_BYTES, -(-(offset + length) // PAGE_BYTES) * PAGE_BYTES
            return log.read(first, end - first)[offset - first :][:length]
        finally:
            log.close()


def _read(log: Log, offset: int, length: int, unreadable: bytes | None) -> bytes:
    try:
        return log.read(offset, length)
    except OSError:
        if unreadable is None:
            raise
        if length == PAGE_BYTES:
            return unreadable
        return b"".join(_read(log, at, PAGE_BYTES, unreadable) for at in range(offset, offset + length, PAGE_BYTES))


@contextmanager
def loop_device(file: Path, size_bytes: int) -> Iterator[Path]:
    """A blank block device of size_bytes over file, for root."""
    with file.open("wb") as made:
        made.truncate(size_bytes)
    done = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    try:
        yield path
    finally:
        subprocess.run(["losetup", "-d", path], check=True)
