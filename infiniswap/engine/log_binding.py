"""A backup that is written in sequence, as the engine keeps it: for the service that opens one, and for tools."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from infiniswap.engine import _engine

ffi: Any = _engine.ffi
lib: Any = _engine.lib

PAGE_BYTES: int = lib.ISW_PAGE_BYTES
TRANSFER_BYTES_MAX = 1 << 20  # of one read() or write()
MAGIC = b"ISWLOG01"  # at the beginning of each of the first two blocks


class LogFlag(IntFlag):
    """How a log is opened."""

    NONE = 0
    READ_ONLY = 1
    SAME_BOOT = 2  # no power cut since it was written: what was complete must be there
    DAMAGED = 4  # also where what was written last cannot be found, or the map in part


@dataclass(frozen=True, slots=True)
class LogInfo:
    """How a log stands, counted since it was opened."""

    id: str  # 32 hexadecimal digits
    size_bytes: int  # of the device
    file_bytes: int
    live_pages: int  # that have a place in it
    segments: int
    free_segments: int
    cleaned_segments: int
    borrowed_pages: int  # that cleaning moved: lent by the device, and not read
    checkpoints: int
    replayed_chunks: int  # at the opening
    torn_pages: int  # found there: under way when the writer ended; their version before counts
    ends_early: int  # 1: what was written last could not be found (DAMAGED)
    bad_pages: int  # that did not meet their checksum when they were read: EIO until they are written


class NoLogError(OSError):
    """What was opened holds no log."""


class DamagedLogError(OSError):
    """Pages of the log would be older than they were, or cannot be found; with LogFlag.DAMAGED it may open."""


def log_file_bytes(size_bytes: int) -> int:
    """The least that the log of a device of size_bytes takes. OSError for a size that no device has."""
    out = ffi.new("uint64_t *")
    _check(lib.isw_log_file_bytes(size_bytes, out), "size of a log")
    return int(out[0])


def format_log(fd: int, size_bytes: int) -> None:
    """An empty log in fd, a file or block device of at least log_file_bytes(); on the disk when this returns. OSError.

    It uses all of that file. What stood there is gone. It blocks.
    """
    _check(lib.isw_log_format(fd, size_bytes), "making a log")


def holds_log(fd: int) -> bool:
    """Whether fd begins as a log does; whether it can be used only opening it tells. OSError."""
    return any(os.pread(fd, len(MAGIC), block * PAGE_BYTES) == MAGIC for block in (0, 1))


def file_bytes_told(fd: int) -> int | None:
    """How large the file of the log in fd has to be, by its superblock; None without one. OSError.

    It opens nothing: for a file that was cut short, which cannot be opened.
    """
    out = ffi.new("uint64_t *")
    result = lib.isw_log_told_bytes(fd, out)
    if result in (-errno.EMEDIUMTYPE, -errno.EBADMSG, -errno.EINVAL, -errno.EFBIG):
        return None
    _check(result, "reading a log's superblock")
    return int(out[0])


_KINDS = {errno.EMEDIUMTYPE: NoLogError, errno.EUCLEAN: DamagedLogError, errno.EBADMSG: DamagedLogError}


class Log:
    """A log that is open. Not thread-safe; read(), write() and sync() block, and are for while no device has it."""

    def __init__(self, fd: int, flags: LogFlag = LogFlag.NONE) -> None:
        """Open what fd, which stays the caller's, holds: it is brought in order first, unless READ_ONLY.

        NoLogError: it holds none. DamagedLogError. OSError with a sentence: it cannot be read.
        """
        error = ffi.new("char[256]")
        self._log = lib.isw_log_open(fd, int(flags), error, len(error))
        if self._log == ffi.NULL:
            number = ffi.errno or errno.EIO
            kind = _KINDS.get(number, OSError)
            raise kind(number, ffi.string(error).decode(errors="replace") or os.strerror(number))

    @property
    def pointer(self) -> Any:
        """For DeviceEngine."""
        return self._log

    def info(self) -> LogInfo:
        """How it stands now. May be asked while a device writes to it."""
        out = ffi.new("struct isw_log_info *")
        lib.isw_log_info(self._opened(), out)
        numbers = {name: int(getattr(out, name)) for name in LogInfo.__dataclass_fields__ if name != "id"}
        return LogInfo(id=bytes(ffi.buffer(out.id)).hex(), **numbers)

    def extents(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what has a place in it, bytes, ascending; everything else reads as zeroes."""
        first, end = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        page = 0
        while lib.isw_log_extent(self._opened(), page, first, end) > 0:
            yield int(first[0]) * PAGE_BYTES, int(end[0]) * PAGE_BYTES
            page = int(end[0])

    def read_into(self, buffer: Any, offset: int) -> None:
        """Fill buffer with what stands at offset; both multiples of the page, at most TRANSFER_BYTES_MAX. OSError."""
        with ffi.from_buffer(buffer, require_writable=True) as data:
            place = data if _is_aligned(data) else _aligned(len(data))
            _check(lib.isw_log_read(self._opened(), place, offset, len(data)), f"reading the log at {offset}")
            if place is not data:
                ffi.memmove(data, place, len(data))

    def read(self, offset: int, length: int) -> bytes:
        """See read_into()."""
        data = bytearray(length)
        self.read_into(data, offset)
        return bytes(data)

    def write(self, offset: int, data: Any) -> None:
        """Write data (bytes or a buffer) at offset; limits as in read_into(). OSError."""
        with ffi.from_buffer(data) as source:
            place = source if _is_aligned(source) else _aligned(len(source))
            if place is not source:
                ffi.memmove(place, source, len(source))
            _check(lib.isw_log_write(self._opened(), place, offset, len(source)), f"writing the log at {offset}")

    def sync(self) -> None:
        """What was written is on the disk when this returns. OSError."""
        _check(lib.isw_log_sync(self._opened()), "syncing the log")

    def close(self) -> None:
        """Free it; a device that has it must be closed by then."""
        if self._log != ffi.NULL:
            lib.isw_log_close(self._log)
            self._log = ffi.NULL

    def _opened(self) -> Any:
        if self._log == ffi.NULL:
            raise OSError(errno.EBADF, "the log is closed")
        return self._log


def _is_aligned(data: Any) -> bool:
    return int(ffi.cast("uintptr_t", data)) % PAGE_BYTES == 0


def _aligned(length: int) -> Any:
    """So much memory as O_DIRECT takes it: the log's descriptor may be such a one."""
    return ffi.from_buffer(mmap.mmap(-1, max(length, 1)))


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
