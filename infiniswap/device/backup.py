"""The backup as the device service sees it: found or created, checked, locked, marked while in use.

The one kind so far is a plain raw image of the device, a file or a block device, which the engine writes through its
descriptor. What the rest of the service needs of it is the Backup protocol, so that another kind can take its place.
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

from infiniswap.device.foreign import foreign_content
from infiniswap.device.owner import Mark, MarkPlaces, sync_directory
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)

PAGE_BYTES = 4096


class Backup(Protocol):
    """What a backup must offer; offsets and lengths in bytes."""

    path: Path
    size_bytes: int
    sparse: bool
    created: bool
    direct: bool
    is_block_device: bool

    def fileno(self) -> int:
        """The descriptor that the engine reads and writes."""

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what was ever written, ascending; everything else was never written and reads as zero."""

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
        self.direct = _try_direct(fd, path)

    def fileno(self) -> int:
        """The descriptor that the engine reads and writes."""
        return self._fd

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """(start, end) of data as SEEK_DATA and SEEK_HOLE see it; all of it where they are not supported."""
        position = 0
        while position < self.size_bytes:
            try:
                start = os.lseek(self._fd, position, os.SEEK_DATA)
                position = min(os.lseek(self._fd, start, os.SEEK_HOLE), self.size_bytes)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                    yield position, self.size_bytes
                    return
                raise
            if start >= self.size_bytes:
                return
            yield start, position

    def mark(self) -> Mark | None:
        """The owner's mark, None without one; UserError when it cannot be told."""
        return self._places.read()

    def set_mark(self, mark: Mark | None) -> None:
        """Give the image this mark, durably, or take it away; UserError when that cannot be done."""
        if mark is not None:
            self._places.write(mark)
            return
        try:
            self._places.remove()
        except OSError as error:
            raise UserError(
                f"cannot take the mark off backup {self.path}: {error.strerror}", ExitCode.RESOURCES
            ) from None

    def foreign_content(self) -> str | None:
        """What it holds, in words, None when it is empty."""
        extents = None if self.is_block_device else self.data_extents()
        return foreign_content(self._fd, self.path, self.size_bytes, extents)

    def discard(self) -> None:
        """Remove the image if this process created it: the start failed."""
        if self.created:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the descriptor and with it of the lock (the engine's duplicate keeps it until it is closed)."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_image(path: Path, size_bytes: int, *, sparse: bool) -> RawImage | None:
    """An existing image, checked and locked, nothing about it changed; None when there is none and one can be made."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        _check_can_create(path, size_bytes, sparse=sparse)
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
            raise UserError(f"backup {path} cannot be used: {error.strerror}", ExitCode.REFUSED) from None
        raise


def create_image(path: Path, size_bytes: int, *, sparse: bool) -> RawImage:
    """A new image of size_bytes: preallocated (reads as zero, still counts as never written) or sparse."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UserError(f"backup {path} has just been created by someone else", ExitCode.IN_USE) from None
    except OSError as error:
        raise UserError(f"cannot create backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        _lock(fd, path)
        if sparse:
            os.ftruncate(fd, size_bytes)
        else:
            os.posix_fallocate(fd, 0, size_bytes)
        os.fsync(fd)
        sync_directory(path.parent)
        return RawImage(path, fd, size_bytes, sparse=sparse, created=True)
    except BaseException as error:
        path.unlink(missing_ok=True)
        os.close(fd)
        if isinstance(error, OSError):
            hint = "" if sparse else " (--sparse allocates as it is written)"
            raise UserError(
                f"cannot create backup {path} of {format_size(size_bytes)}: {error.strerror}{hint}", ExitCode.RESOURCES
            ) from None
        raise


def _check_can_create(path: Path, size_bytes: int, *, sparse: bool) -> None:
    parent = path.parent
    if path.is_symlink():
        raise UserError(f"backup {path} is a link to a file that does not exist", ExitCode.NOT_FOUND)
    if not parent.is_dir():
        raise UserError(f"backup {path}: directory {parent} does not exist; create it first", ExitCode.NOT_FOUND)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"backup {path}: no permission to create a file in {parent}", ExitCode.RESOURCES)
    if not sparse:
        space = os.statvfs(parent)
        free = (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
        if free < size_bytes:
            raise UserError(
                f"backup {path} needs {format_size(size_bytes)}, its file system has {format_size(free)} free; "
                "free some, choose another place, or give --sparse",
                ExitCode.RESOURCES,
            )


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


def _try_direct(fd: int, path: Path) -> bool:
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
