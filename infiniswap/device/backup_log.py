"""A backup that is a log: written in sequence, in a file or on a block device larger than the device by half or more.

What it is like inside is the engine's (ARCHITECTURE.md). Here it is found or made, locked and marked as a raw image is,
and opened for the engine.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from infiniswap.device.backup import (
    LOG_FACTS,
    check_can_create,
    create_file,
    set_mark,
    try_direct,
    unusable,
)
from infiniswap.device.foreign import foreign_content
from infiniswap.device.owner import Mark, MarkPlaces
from infiniswap.engine.log_binding import (
    DamagedLogError,
    Log,
    LogFlag,
    NoLogError,
    file_bytes_told,
    format_log,
    holds_log,
    log_file_bytes,
)
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
LOG_SPACE_PERCENT = 150  # of the device: the least that can be cleaned at a bearable price


class LogBackup:
    """A log that a device writes. Use open_log() or create_log()."""

    layout = "log"

    def __init__(self, path: Path, fd: int, size_bytes: int, *, sparse: bool, created: bool, blank: bool) -> None:
        """Take over fd. blank: it holds no log yet, and nothing else."""
        self.path = path
        self.size_bytes = size_bytes
        self.sparse = sparse
        self.created = created
        status = os.fstat(fd)
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        self.log: Log | None = None
        self._fd = fd
        self._blank = blank
        self._file_bytes = os.lseek(fd, 0, os.SEEK_END)
        self._places = MarkPlaces(path, fd, status.st_rdev if self.is_block_device else None)
        self.direct = try_direct(fd, path)

    def fileno(self) -> int:
        """The descriptor that the engine reads and writes."""
        return self._fd

    def take_up(self, *, same_boot: bool, accept: bool = False) -> None:
        """Make the log where there is none, open it, and tell what the opening found. See Backup.take_up()."""
        self.format()
        flags = (LogFlag.SAME_BOOT if same_boot else LogFlag.NONE) | (LogFlag.DAMAGED if accept else LogFlag.NONE)
        self.log = open_checked(self._fd, self.path, self.size_bytes, flags)
        found = self.log.info()
        log.info("backup %s: a log, of which %d chunks were read again", self.path, found.replayed_chunks)
        if found.torn_pages:
            log.info(
                "backup %s: %d pages were under way to its log when its last writer ended: their versions before count",
                self.path,
                found.torn_pages,
            )

    def format(self) -> None:
        """Make the log where there is none yet. UserError."""
        if not self._blank:
            return
        try:
            format_log(self._fd, self.size_bytes)
        except OSError as error:
            raise UserError(f"cannot make a log in backup {self.path}: {error.strerror}", ExitCode.RESOURCES) from None
        self._blank = False

    def facts(self) -> dict[str, int | str | None]:
        """For GET /v1/status and metrics."""
        kept: dict[str, int | str | None] = {"backup_layout": self.layout, "backup_bytes": self._file_bytes}
        if self.log is None:
            return {**kept, **dict.fromkeys(LOG_FACTS)}
        info = self.log.info()
        return kept | {
            "log_live_pages": info.live_pages,
            "log_segments": info.segments,
            "log_free_segments": info.free_segments,
            "log_cleaned_segments": info.cleaned_segments,
            "log_borrowed_pages": info.borrowed_pages,
            "log_checkpoints": info.checkpoints,
            "log_torn_pages": info.torn_pages,
            "log_bad_pages": info.bad_pages,
        }

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """(start, end) of the pages that have a place in it."""
        assert self.log is not None
        return self.log.extents()

    def mark(self) -> Mark | None:
        """The owner's mark, None without one; UserError when it cannot be told."""
        return self._places.read()

    def set_mark(self, mark: Mark | None) -> None:
        """Give the log this mark, durably, or take it away; UserError when that cannot be done."""
        set_mark(self._places, self.path, mark)

    def foreign_content(self) -> str | None:
        """What it holds, in words, None when it is empty."""
        if self._blank:
            return None
        opened = open_checked(self._fd, self.path, self.size_bytes, LogFlag.READ_ONLY)
        try:
            pages = opened.info().live_pages
        finally:
            opened.close()
        return f"{format_size(pages * PAGE_BYTES)} of a device's data in a log" if pages else None

    def discard(self) -> None:
        """Remove the log if this process created its file: the start failed."""
        if self.created:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the log and the lock; the engine that has it is closed by then."""
        if self.log is not None:
            self.log.close()
            self.log = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def needed_bytes(size_bytes: int, space_percent: int = LOG_SPACE_PERCENT) -> int:
    """What the log of a device of that size takes, for so much of it."""
    more_bytes = size_bytes * (space_percent - LOG_SPACE_PERCENT) // 100
    return log_file_bytes(size_bytes) + more_bytes // PAGE_BYTES * PAGE_BYTES


def take_log(path: Path, fd: int, size_bytes: int, *, sparse: bool, may_be_blank: bool) -> LogBackup:
    """The log that was opened as fd, or the blank file or block device; nothing is changed. UserError.

    fd is owned from here on. may_be_blank: a device's log is not missed there.
    """
    try:
        blank = not holds_log(fd)
        if blank and not may_be_blank:
            raise UserError(
                f"backup {path} was a device's log and does not begin as one any more: put it back, or if what was on "
                f"it is gone for good {_how_to_clear(path, fd)} and give --accept-backup",
                ExitCode.REFUSED,
            )
        if blank:
            _check_blank(path, fd, size_bytes)
        return LogBackup(path, fd, size_bytes, sparse=sparse, created=False, blank=blank)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise unusable(path, error) from None
        raise


def _how_to_clear(path: Path, fd: int) -> str:
    return f"clear it with 'blkdiscard -z {path}'" if stat.S_ISBLK(os.fstat(fd).st_mode) else "remove it"


def _check_blank(path: Path, fd: int, size_bytes: int) -> None:
    """A log is made where nothing is, and has room."""
    found, needed = os.lseek(fd, 0, os.SEEK_END), needed_bytes(size_bytes)
    content = foreign_content(fd, path, found)
    if content is not None:
        raise UserError(
            f"backup {path} holds {content}, and no log; if that is not needed, {_how_to_clear(path, fd)}, or give "
            "another --backup",
            ExitCode.REFUSED,
        )
    if found < needed:
        raise UserError(
            f"backup {path} has {format_size(found)} ({found} bytes), and the log of a device of "
            f"{format_size(size_bytes)} takes {format_size(needed)} ({needed} bytes); give another --backup",
            ExitCode.REFUSED,
        )


def check_length(fd: int, path: Path) -> None:
    """UserError where the file of the log in fd was cut short: no option helps there, and its old length may."""
    told, found = file_bytes_told(fd), os.lseek(fd, 0, os.SEEK_END)
    if told is not None and found < told:
        way_out = (
            ""
            if stat.S_ISBLK(os.fstat(fd).st_mode)
            else f", or give it that with 'truncate -s {told} {path}', which "
            "brings back all that did not stand in the part that was cut off"
        )
        raise UserError(
            f"backup {path} has {found} bytes, and its log {told}: it was cut short by {told - found} bytes; put a "
            f"copy of it with its whole length in place{way_out}",
            ExitCode.REFUSED,
        )


def open_checked(fd: int, path: Path, size_bytes: int, flags: LogFlag, *, way_out: str = "--accept-backup") -> Log:
    """The log in fd, which is of a device of size_bytes. UserError when it cannot be used, with the way out of that."""
    try:
        opened = Log(fd, flags)
    except NoLogError:
        raise UserError(f"backup {path} holds no log that can be used any more", ExitCode.REFUSED) from None
    except DamagedLogError as error:
        check_length(fd, path)
        raise UserError(
            f"the log in backup {path} is damaged: {error.strerror}; put a copy of it in place, or give {way_out} to "
            "take what can be found",
            ExitCode.REFUSED,
        ) from None
    except OSError as error:
        raise unusable(path, error) from None
    info = opened.info()
    found = info.size_bytes
    if found != size_bytes:
        opened.close()
        raise UserError(
            f"backup {path} holds the log of a device of {format_size(found)} ({found} bytes), not of "
            f"{format_size(size_bytes)} ({size_bytes} bytes); give --size {found} or another --backup",
            ExitCode.REFUSED,
        )
    if info.ends_early:
        log.warning("backup %s: what was written to its log last is lost: pages may be as they were before", path)
    return opened


def create_log(path: Path, size_bytes: int, *, sparse: bool, space_percent: int = LOG_SPACE_PERCENT) -> LogBackup:
    """A new, empty log for a device of size_bytes: its file preallocated, or sparse. UserError leaves none behind."""
    fd = create_file(path, needed_bytes(size_bytes, space_percent), sparse=sparse)
    try:
        return LogBackup(path, fd, size_bytes, sparse=sparse, created=True, blank=True)
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(fd)
        raise


def check_can_create_log(path: Path, size_bytes: int, *, sparse: bool, space_percent: int = LOG_SPACE_PERCENT) -> None:
    """UserError when a log cannot be made at path."""
    check_can_create(path, needed_bytes(size_bytes, space_percent), sparse=sparse)
