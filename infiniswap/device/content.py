"""What a backup holds, page by page, however it is kept: for what is done to it while no device has it."""

from __future__ import annotations

import contextlib
import heapq
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.backup import Backup
from infiniswap.device.backup_log import LogBackup, open_checked
from infiniswap.device.extents import file_extents
from infiniswap.engine.log_binding import Log, LogFlag
from infiniswap.shared.errors import ExitCode, UserError

PAGE_BYTES = 4096
CHUNK_BYTES = 1 << 20  # read and written at once

_DAMAGED = "; with --damaged such pages are lost, and all others taken"

Progress = Callable[[int], None]  # bytes that have been done since it was called last
Extents = Iterator[tuple[int, int]]


class Source(Protocol):
    """What can be read."""

    size_bytes: int

    def extents(self) -> Extents:
        """(start, end) of what is not known to be zeroes, bytes, ascending."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill buffer, whose memory is aligned to pages; OSError."""


class Content(Source, Protocol):
    """What can be written as well."""

    def write(self, buffer: memoryview, offset: int) -> None:
        """All of buffer; OSError."""

    def sync(self) -> None:
        """What was written is on the disk when this returns; OSError."""

    def close(self) -> None:
        """Let go of it; the backup stays open."""


class RawContent:
    """Of a raw image."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Read and write fd, which stays the caller's."""
        self._fd = fd
        self.size_bytes = size_bytes

    def extents(self) -> Extents:
        """Where its file system says that data is; all of a block device."""
        return file_extents(self._fd, self.size_bytes)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Source."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], offset + done)
            if count <= 0:
                raise OSError(f"it ends at {offset + done}")
            done += count

    def write(self, buffer: memoryview, offset: int) -> None:
        """See Content."""
        done = 0
        while done < len(buffer):
            done += os.pwritev(self._fd, [buffer[done:]], offset + done)

    def sync(self) -> None:
        """See Content. What is read then comes from the disk."""
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Nothing to let go of."""


class LogContent:
    """Of a log."""

    def __init__(self, log: Log) -> None:
        """Take over log."""
        self._log = log
        self.size_bytes = log.info().size_bytes

    def extents(self) -> Extents:
        """Pages that have a place in it."""
        return self._log.extents()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Source."""
        self._log.read_into(buffer, offset)

    def write(self, buffer: memoryview, offset: int) -> None:
        """See Content."""
        self._log.write(offset, buffer)

    def sync(self) -> None:
        """See Content."""
        self._log.sync()

    def close(self) -> None:
        """Close the log."""
        self._log.close()


class WithoutLost:
    """A source in which pages that are lost read as zeroes, instead of as whatever version is left of them."""

    def __init__(self, source: Source, lost: NDArray[np.int64]) -> None:
        """lost: page numbers, ascending."""
        self._source = source
        self._lost = lost
        self.size_bytes = source.size_bytes

    def extents(self) -> Extents:
        """See Source."""
        return self._source.extents()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Source."""
        self._source.read_into(buffer, offset)
        first = offset // PAGE_BYTES
        low, high = np.searchsorted(self._lost, [first, first + len(buffer) // PAGE_BYTES])
        pages = np.frombuffer(buffer, np.uint8).reshape(-1, PAGE_BYTES)
        pages[self._lost[low:high] - first] = 0


class WithoutUnreadable:
    """A source in which pages that cannot be read are zeroes; it tells afterwards which they were."""

    def __init__(self, source: Source) -> None:
        """Read source, page by page where that is needed."""
        self._source = source
        self.size_bytes = source.size_bytes
        self._pages: set[int] = set()

    @property
    def unreadable(self) -> NDArray[np.int64]:
        """Page numbers, ascending."""
        return np.array(sorted(self._pages), np.int64)

    def extents(self) -> Extents:
        """See Source."""
        return self._source.extents()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Source; no OSError."""
        pages = range(offset // PAGE_BYTES, (offset + len(buffer)) // PAGE_BYTES)
        if self._pages.isdisjoint(pages):
            with contextlib.suppress(OSError):
                self._source.read_into(buffer, offset)
                return
        for page in pages:
            part = buffer[page * PAGE_BYTES - offset :][:PAGE_BYTES]
            if page not in self._pages:
                try:
                    self._source.read_into(part, page * PAGE_BYTES)
                    continue
                except OSError:
                    self._pages.add(page)
            part[:] = bytes(PAGE_BYTES)


def content_of(backup: Backup, *, damaged: bool = False) -> Content:
    """To read a backup, which stays as it is. damaged: also a log of which not all is found. UserError."""
    if isinstance(backup, LogBackup):
        flags = LogFlag.READ_ONLY | (LogFlag.DAMAGED if damaged else LogFlag.NONE)
        return LogContent(open_checked(backup.fileno(), backup.path, backup.size_bytes, flags, way_out="--damaged"))
    return RawContent(backup.fileno(), backup.size_bytes)


def content_to_fill(backup: Backup) -> Content:
    """To write a backup that holds nothing. UserError."""
    if isinstance(backup, LogBackup):
        backup.format()
        return LogContent(open_checked(backup.fileno(), backup.path, backup.size_bytes, LogFlag.NONE))
    return RawContent(backup.fileno(), backup.size_bytes)


def data_bytes(source: Source) -> int:
    """How much there is to copy."""
    return sum(end - start for start, end in source.extents())


def copy(source: Source, target: Content, progress: Progress, *, zeroes: bool = False) -> None:
    """All of source into target, which reads as zeroes, and down to the disk. UserError when either fails.

    zeroes: also write what is zeroes, for a target that may hold anything.
    """
    buffer = _buffer()
    for offset, length in _chunks([(0, source.size_bytes)] if zeroes else source.extents()):
        part = buffer[:length]
        _read(source, part, offset, "the backup", _DAMAGED)
        if zeroes or np.any(np.frombuffer(part, np.uint8)):
            try:
                target.write(part, offset)
            except OSError as error:
                raise UserError(f"writing the copy failed: {error.strerror}", ExitCode.RESOURCES) from None
        progress(length)
    try:
        target.sync()
    except OSError as error:
        raise UserError(f"the copy cannot be synced: {error.strerror}", ExitCode.RESOURCES) from None


def compare(source: Source, target: Source, progress: Progress) -> None:
    """Read both; UserError where they differ."""
    ours, theirs = _buffer(), _buffer()
    for offset, length in _chunks(_union(source.extents(), target.extents())):
        _read(source, ours[:length], offset, "the backup", _DAMAGED)
        _read(target, theirs[:length], offset, "the copy")
        if ours[:length] != theirs[:length]:
            raise UserError(
                f"the copy read back is another one within the {length} bytes at {offset}: its disk is not sound",
                ExitCode.FAILED,
            )
        progress(length)


def write_out(source: Source, fd: int, progress: Progress) -> None:
    """All of source, zeroes included, in order into fd. UserError when it cannot be read; OSError when not written."""
    buffer = _buffer()
    for offset, length in _chunks([(0, source.size_bytes)]):
        part = buffer[:length]
        _read(source, part, offset, "the backup", _DAMAGED)
        while part:
            part = part[os.write(fd, part) :]
        progress(length)


def _buffer() -> memoryview:
    """CHUNK_BYTES of memory that O_DIRECT takes; it ends with the last view of it."""
    return memoryview(mmap.mmap(-1, CHUNK_BYTES))


def _read(source: Source, part: memoryview, offset: int, what: str, way_out: str = "") -> None:
    try:
        source.read_into(part, offset)
    except OSError as error:
        where = f"within the {len(part)} bytes at {offset}"
        raise UserError(f"{what} cannot be read {where}: {error.strerror or error}{way_out}", ExitCode.FAILED) from None


def _chunks(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(offset, length) of at most CHUNK_BYTES each, whole pages."""
    for start, end in extents:
        first, last = start // PAGE_BYTES * PAGE_BYTES, -(-end // PAGE_BYTES) * PAGE_BYTES
        for offset in range(first, last, CHUNK_BYTES):
            yield offset, min(CHUNK_BYTES, last - offset)


def _union(*lists: Extents) -> Extents:
    """What any of the lists has, ascending, nothing twice."""
    held: tuple[int, int] | None = None
    for start, end in heapq.merge(*lists):
        if held is None:
            held = (start, end)
        elif start <= held[1]:
            held = (held[0], max(held[1], end))
        else:
            yield held
            held = (start, end)
    if held is not None:
        yield held
