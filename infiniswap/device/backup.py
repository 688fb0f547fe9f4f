"""The backup as the device service sees it: found or created, checked, locked, marked while in use.

What the rest of the service needs of it is the Backup protocol. There are two kinds, each in a file or on a block
device that the engine writes through its descriptor: a plain raw image of the device, which is here, and a log
(backup_log.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from infiniswap.device.extents import file_extents
from infiniswap.device.foreign import foreign_content
from infiniswap.device.owner import Mark, MarkPlaces, sync_directory
from infiniswap.engine.log_binding import Log
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
# What facts() tells of a log beside layout and size; None of a raw image.
LOG_FACTS = (
    "log_live_pages",
    "log_segments",
    "log_free_segments",
    "log_cleaned_segments",
    "log_borrowed_pages",
    "log_checkpoints",
    "log_torn_pages",
    "log_bad_pages",
)


# What the kernel's block layer makes of a failed request (its blk_errors): of a bad sector, read by O_DIRECT, ENODATA.
_DISK_FAILS = (
    errno.EIO,
    errno.ENODATA,
    errno.EREMOTEIO,
    errno.ENOLINK,
    errno.ETIMEDOUT,
    errno.EBADE,
    errno.EILSEQ,
    errno.ENODEV,
    errno.ESTALE,  # of a network file system
)
_TOO_LITTLE = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def unusable(path: Path, error: OSError) -> UserError:
    """The refusal where reading a backup ended with error: a disk that fails may work again, a folder never will."""
    if error.errno in _DISK_FAILS:
        return UserError(
            f"backup {path} cannot be read: {error.strerror}; the kernel's log tells more of its disk: start again "
            "once that works",
            ExitCode.RESOURCES,
        )
    if error.errno in _TOO_LITTLE:
        return UserError(f"backup {path} cannot be taken up now: {error.strerror}", ExitCode.RESOURCES)
    return UserError(f"backup {path} cannot be used: {error.strerror}", ExitCode.REFUSED)


class Backup(Protocol):
    """What a backup must offer; offsets and lengths in bytes."""

    path: Path
    layout: str  # one of limits.BACKUP_LAYOUTS
    size_bytes: int  # of the device
    sparse: bool
    created: bool
    direct: bool
    is_block_device: bool

    @property
    def log(self) -> Log | None:
        """What the engine needs of a log, once it is taken up; None: it is a raw image."""

    def fileno(self) -> int:
        """The descriptor that the engine reads and writes."""

    def take_up(self, *, same_boot: bool, accept: bool = False) -> None:
        """Make it ready for the engine, once all checks are done. same_boot: no power cut since it was written.

        accept: also where a log is damaged. UserError when it cannot be used.
        """

    def facts(self) -> dict[str, int | str | None]:
        """For GET /v1/status and metrics: its layout, what it takes, and of a log how it stands."""

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what was ever written, ascending; everything else was never written and reads as zero.

        Of a log once it is taken up.
        """

    def mark(self) -> Mark | None:
        """The owner's mark, None without one; UserError when it cannot be told."""

    def set_mark(self, mark: Mark | None) -> None:
        """Give the backup this mark, durably, or take it away; UserError when that cannot be done."""

    def foreign_content(self) -> str | None:
        """What it holds, in words, None when it is empty."""

    def discard(self) -> None:
        """Remove the backup if this process created it: the start failed."""

    def close(self) -> None:
        """Let go of the descriptor and with it of the lock."""


class RawImage:
    """A plain raw image with the device's layout: byte n of the device is byte n of the image."""

    layout = "raw"
    log = None

    def __init__(self, path: Path, fd: int, size_bytes: int, *, sparse: bool, created: bool) -> None:
        """Use open_image() or create_image(); fd is owned from here on."""
        self.path = path
        self.size_bytes = size_bytes
        self.sparse = sparse
        self.created = created
        status = os.fstat(fd)
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        self._fd = fd
        self._places = MarkPlaces(path, fd, status.st_rdev if self.is_block_device else None)
        self.direct = try_direct(fd, path)

    def fileno(self) -> int:
        """The descriptor that the engine reads and writes."""
        return self._fd

    def take_up(self, *, same_boot: bool, accept: bool = False) -> None:
        """Nothing to do: it holds nothing but the device's bytes."""

    def facts(self) -> dict[str, int | str | None]:
        """For GET /v1/status and metrics."""
        return {"backup_layout": self.layout, "backup_bytes": self.size_bytes, **dict.fromkeys(LOG_FACTS)}

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """As file_extents() tells."""
        return file_extents(self._fd, self.size_bytes)

    def mark(self) -> Mark | None:
        """The owner's mark, None without one; UserError when it cannot be told."""
        return self._places.read()

    def set_mark(self, mark: Mark | None) -> None:
        """Give the image this mark, durably, or take it away; UserError when that cannot be done."""
        set_mark(self._places, self.path, mark)

    def foreign_content(self) -> str | None:
        """What it holds, in words, None when it is empty."""
        return foreign_content(self._fd, self.path, self.size_bytes)

    def discard(self) -> None:
        """Remove the image if this process created it: the start failed."""
        if self.created:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the descriptor and with it of the lock (the engine's duplicate keeps it until it is closed)."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def set_mark(places: MarkPlaces, path: Path, mark: Mark | None) -> None:
    """Give the backup at path this mark, durably, or take it away; UserError when that cannot be done."""
    if mark is not None:
        places.write(mark)
        return
    try:
        places.remove()
    except OSError as error:
        raise UserError(f"cannot take the mark off backup {path}: {error.strerror}", ExitCode.RESOURCES) from None


def open_image(path: Path, size_bytes: int, *, sparse: bool) -> RawImage | None:
    """An existing image, checked and locked, nothing about it changed; None when there is none and one can be made."""
    fd = open_locked(path)
    if fd is None:
        check_can_create(path, size_bytes, sparse=sparse)
        return None
    return take_image(path, fd, size_bytes, sparse=sparse)


def open_locked(path: Path) -> int | None:
    """A backup that exists, whatever it holds, locked for this process; None: there is none. UserError."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
    if stat.S_ISDIR(mode):
        raise UserError(f"backup {path} is a directory; name a file or a block device", ExitCode.REFUSED)
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise UserError(f"backup {path} is neither a file nor a block device", ExitCode.REFUSED)
    fd = _open_existing(path, block_device=stat.S_ISBLK(mode))
    try:
        _lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def take_image(path: Path, fd: int, size_bytes: int, *, sparse: bool) -> RawImage:
    """The image that was opened as fd, which is owned from here on. UserError when it is not of that size."""
    try:
        found = os.lseek(fd, 0, os.SEEK_END)
        if found != size_bytes:
            raise UserError(
                f"backup {path} has {format_size(found)} ({found} bytes), the device {format_size(size_bytes)} "
                f"({size_bytes} bytes); give --size {found} or another --backup",
                ExitCode.REFUSED,
            )
        return RawImage(path, fd, size_bytes, sparse=sparse, created=False)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):  # /proc/version, for one: a regular file to stat(2) alone
            raise unusable(path, error) from None
        raise


def create_image(path: Path, size_bytes: int, *, sparse: bool, called: str = "") -> RawImage:
    """A new image of size_bytes: preallocated (reads as zero, still counts as never written) or sparse.

    called: in errors, where it is no backup.
    """
    fd = create_file(path, size_bytes, sparse=sparse, called=called)
    try:
        return RawImage(path, fd, size_bytes, sparse=sparse, created=True)
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(fd)
        raise


def create_file(path: Path, size_bytes: int, *, sparse: bool, called: str = "") -> int:
    """A new file of size_bytes, locked, its name on the disk: preallocated or sparse. UserError leaves none behind."""
    called = called or f"backup {path}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UserError(f"{called} has just been created by someone else", ExitCode.IN_USE) from None
    except OSError as error:
        raise UserError(f"cannot create {called}: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        _lock(fd, path)
        if sparse:
            os.ftruncate(fd, size_bytes)
        else:
            os.posix_fallocate(fd, 0, size_bytes)
        os.fsync(fd)
        sync_directory(path.parent)
    except BaseException as error:
        path.unlink(missing_ok=True)
        os.close(fd)
        if isinstance(error, OSError):
            hint = "" if sparse else " (--sparse allocates as it is written)"
            raise UserError(
                f"cannot create {called} of {format_size(size_bytes)}: {error.strerror}{hint}", ExitCode.RESOURCES
            ) from None
        raise
    return fd


def check_can_create(path: Path, size_bytes: int, *, sparse: bool) -> None:
    """UserError when a file of size_bytes cannot be made at path."""
    parent = path.parent
    if path.is_symlink():
        raise UserError(f"backup {path} is a link to a file that does not exist", ExitCode.NOT_FOUND)
    if not parent.is_dir():
        raise UserError(f"backup {path}: directory {parent} does not exist; create it first", ExitCode.NOT_FOUND)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"backup {path}: no permission to create a file in {parent}", ExitCode.RESOURCES)
    if not sparse:
        free = free_bytes(parent)
        if free < size_bytes:
            raise UserError(
                f"backup {path} needs {format_size(size_bytes)}, its file system has {format_size(free)} free; "
                "free some, choose another place, or give --sparse",
                ExitCode.RESOURCES,
            )


def free_bytes(folder: Path) -> int:
    """What this user may still take of the file system that folder lies on; OSError."""
    space = os.statvfs(folder)
    return (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize


def _open_existing(path: Path, *, block_device: bool) -> int:
    # O_EXCL without O_CREAT on a block device fails while it is mounted, swapped to or part of LVM, RAID or a loop.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_EXCL if block_device else 0)
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            where = _mounted_at(path.stat().st_rdev)
            how = f"is mounted at {where}; unmount it first" if where else "is in use by the kernel (swap, LVM, RAID …)"
            raise UserError(f"backup {path} {how}", ExitCode.IN_USE) from None
        raise UserError(f"cannot open backup {path} for writing: {error.strerror}", ExitCode.RESOURCES) from None


def _mounted_at(device_number: int) -> str | None:
    wanted = f"{os.major(device_number)}:{os.minor(device_number)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if len(fields) > 4 and fields[2] == wanted:
                return fields[4]
    return None


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise UserError(f"cannot lock backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
        raise UserError(f"backup {path} is in use by another process", ExitCode.IN_USE) from None
    loop = _loop_device_of(fd)
    if loop is not None:
        raise UserError(f"backup {path} is in use as loop device {loop}; detach it first", ExitCode.IN_USE)


def _loop_device_of(fd: int) -> str | None:
    """A loop device takes no flock on its file, so look where the kernel lists them."""
    status = os.fstat(fd)
    for listed in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = Path(listed.read_text().rstrip("\n")).stat()
            if stat.S_ISREG(status.st_mode) and os.path.samestat(backing, status):
                return f"/dev/{listed.parts[3]}"
    return None


def try_direct(fd: int, path: Path) -> bool:
    """Switch to O_DIRECT and prove it with a read; back to buffered I/O where the file system cannot."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        with mmap.mmap(-1, PAGE_BYTES) as buffer:
            os.preadv(fd, [buffer], 0)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise UserError(f"cannot read backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        log.info("backup %s: its file system has no O_DIRECT, going through the page cache", path)
        return False
    return True
