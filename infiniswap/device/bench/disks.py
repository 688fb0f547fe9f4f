"""Reads past the page cache: of a file or block device that is there, or of a file made for it, which has no name."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from infiniswap.device.bench.reading import StoppedError, both, shuffled
from infiniswap.engine.binding import PAGE_BYTES
from infiniswap.engine.measure import StopFlag, measure_file
from infiniswap.policy.worth import Kind, Place
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.file_systems import MEMORY_FILE_SYSTEMS, file_system
from infiniswap.shared.sizes import format_size

EXTENTS_MAX = 65_536  # of a file's data that are looked at
DATA_BYTES_MIN = 16 << 20  # of which a file must have some, or reads would come from holes
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """A descriptor to read from, the offsets of pages that hold data, and whether reads pass the page cache by."""

    fd: int
    offsets: list[int]
    direct: bool
    why_not: str = ""


def measure_disk(folder: Path, kind: Kind, size_bytes: int, seconds: float, stop: StopFlag, rng: Random) -> Place:
    """Reads of a file of size_bytes that is made in folder, and gone however this ends. UserError, StoppedError."""
    with _made(folder, size_bytes, stop) as fd, _direct(fd) as (reading, why_not):
        offsets = shuffled(size_bytes // PAGE_BYTES, rng)
        return _measure(Opened(reading, offsets, not why_not, why_not), folder, kind, seconds, stop)


def measure_backup(path: Path, size_bytes: int, seconds: float, stop: StopFlag, rng: Random) -> Place:
    """Reads of the backup at path, which is not changed; in a directory a file is made. UserError, StoppedError."""
    if path.is_dir():
        return measure_disk(path, Kind.BACKUP, size_bytes, seconds, stop, rng)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not be waited for
    except OSError as error:
        code = ExitCode.NOT_FOUND if error.errno == errno.ENOENT else ExitCode.RESOURCES
        raise UserError(f"backup {path} cannot be read: {error.strerror}", code) from None
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UserError(f"backup {path} is neither a file, a block device nor a directory")
        offsets = (
            _data_offsets(fd, rng) if stat.S_ISREG(mode) else shuffled(os.lseek(fd, 0, os.SEEK_END) // PAGE_BYTES, rng)
        )
        if len(offsets) * PAGE_BYTES < DATA_BYTES_MIN:
            raise UserError(
                f"backup {path} holds less than {format_size(DATA_BYTES_MIN)} of data: reads of holes tell nothing; "
                f"give its directory {path.parent} instead, and a file is made there",
                ExitCode.REFUSED,
            )
        with _direct(fd) as (reading, why_not):
            return _measure(Opened(reading, offsets, not why_not, why_not), path, Kind.BACKUP, seconds, stop)
    finally:
        os.close(fd)


def _measure(opened: Opened, path: Path, kind: Kind, seconds: float, stop: StopFlag) -> Place:
    try:
        one, many = both(measure_file, opened.fd, opened.offsets, seconds, stop)
    except OSError as error:
        raise UserError(f"reading {path} failed: {error.strerror}", ExitCode.FAILED) from None
    way = "O_DIRECT" if opened.direct else opened.why_not
    return Place(kind, str(path), way, one, many, cached=not opened.direct)


def _data_offsets(fd: int, rng: Random) -> list[int]:
    """Offsets of pages that hold data, in random order; all of the file where the file system knows no holes."""
    size = os.fstat(fd).st_size
    pages: list[int] = []
    position = 0
    for _ in range(EXTENTS_MAX):
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO and not pages:
                return shuffled(size // PAGE_BYTES, rng)
            break
        pages += range(-(-start // PAGE_BYTES), position // PAGE_BYTES, max(1, size // PAGE_BYTES >> 18))
    return [pages[at // PAGE_BYTES] * PAGE_BYTES for at in shuffled(len(pages), rng)]


@contextmanager
def _made(folder: Path, size_bytes: int, stop: StopFlag) -> Iterator[int]:
    """A file full of data, on the disk, without a name."""
    try:
        free = os.statvfs(folder)
        if free.f_bavail * free.f_frsize < 2 * size_bytes:
            raise UserError(f"{folder} has less than {format_size(2 * size_bytes)} free", ExitCode.RESOURCES)
        fd, name = tempfile.mkstemp(prefix=".infiniswap-bench-", dir=folder)
        Path(name).unlink()
    except FileNotFoundError:
        raise UserError(f"there is no directory {folder}", ExitCode.NOT_FOUND) from None
    except OSError as error:
        raise UserError(f"no file can be made in {folder}: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        for at in range(0, size_bytes, BLOCK_BYTES):
            if stop.is_set():
                raise StoppedError
            os.pwrite(fd, os.urandom(min(BLOCK_BYTES, size_bytes - at)), at)  # no device can make less of it
        os.fsync(fd)
        yield fd
    except OSError as error:
        raise UserError(f"writing a file in {folder} failed: {error.strerror}", ExitCode.RESOURCES) from None
    finally:
        os.close(fd)


@contextmanager
def _direct(fd: int) -> Iterator[tuple[int, str]]:
    """The same file opened past the page cache; else as it is, and why."""
    kind = file_system(os.fstat(fd).st_dev, Path("/proc/self/mountinfo").read_text())
    if kind in MEMORY_FILE_SYSTEMS:
        yield fd, f"{kind}: that is memory"
        return
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        yield fd, "page cache: O_DIRECT is refused"
        return
    try:
        yield direct, ""
    finally:
        os.close(direct)
