"""What a file rests on: the block devices below it, and whether the disk at the bottom gets it in the clear."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

_DEPTH_MAX = 8  # block devices stacked on each other
_DISK = re.compile(r"(sd|vd|xvd|hd)[a-z]+|nvme\d+n\d+|mmcblk\d+|pmem\d+", re.ASCII)
# Beginnings of dm/uuid as cryptsetup, veritysetup and integritysetup write it; what the latter two make hides nothing.
_CRYPT, _ONLY_CHECKED = "CRYPT-", ("CRYPT-VERITY-", "CRYPT-INTEGRITY-")
_FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h, where long has 64 bits
_FS_ENCRYPT_FL = 0x800  # fscrypt


class _Bottom(Enum):
    """What a way down ends at."""

    SEALED = auto()  # dm-crypt, whatever is below it
    PLAIN = auto()  # a disk
    UNKNOWN = auto()  # memory, a network, or what this module does not know


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> str | None:
    """MAJOR:MINOR of a file's block device, or of the one that it is."""
    try:
        status = path.stat()
    except OSError:
        return None
    number = status.st_rdev or status.st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def _below(entry: Path) -> Iterator[str | None]:
    """Numbers of the block devices directly below that one, in /sys; None for what cannot be told."""
    if (entry / "partition").exists():
        yield _text(entry.parent / "dev")
    slaves = entry / "slaves"
    for slave in sorted(slaves.iterdir()) if slaves.is_dir() else ():
        yield _text(slave / "dev")
    if backing := _text(entry / "loop/backing_file"):
        yield _number(Path(backing))


def devices_under(path: Path, root: Path = Path("/")) -> tuple[str, ...]:
    """Names of the block devices that a file, or a device node, rests on: its own, those below, those behind loops."""
    found: list[str] = []
    _collect(_number(path), root, found, _DEPTH_MAX)
    return tuple(found)


def _collect(number: str | None, root: Path, found: list[str], depth: int) -> None:
    if number is None or depth == 0 or not (root / "sys/dev/block" / number).exists():
        return
    entry = (root / "sys/dev/block" / number).resolve()
    if entry.name in found:
        return
    found.append(entry.name)
    for below in _below(entry):
        _collect(below, root, found, depth - 1)


def is_plain(path: Path, root: Path = Path("/")) -> bool | None:
    """Whether a disk gets in the clear what is written to a file or a device node.

    False: dm-crypt or the file system (fscrypt) lies between in any case. None: that cannot be told. What a disk does
    by itself (Opal) and what is below a virtual machine is not seen from here: those count as disks.
    """
    if _is_sealed_file(path):
        return False
    bottoms = set(_bottoms(_number(path), root, _DEPTH_MAX))
    if _Bottom.PLAIN in bottoms:
        return True
    return False if bottoms == {_Bottom.SEALED} else None


def _bottoms(number: str | None, root: Path, depth: int) -> Iterator[_Bottom]:
    if number is None or depth == 0 or not (root / "sys/dev/block" / number).exists():
        yield _Bottom.UNKNOWN
        return
    entry = (root / "sys/dev/block" / number).resolve()
    uuid = _text(entry / "dm/uuid")
    if uuid.startswith(_CRYPT) and not uuid.startswith(_ONLY_CHECKED):
        yield _Bottom.SEALED
        return
    if (backing := _text(entry / "loop/backing_file")) and _is_sealed_file(Path(backing)):
        yield _Bottom.SEALED
        return
    below = list(_below(entry))
    if not below:
        yield _Bottom.PLAIN if _DISK.fullmatch(entry.name) else _Bottom.UNKNOWN
    for each in below:
        yield from _bottoms(each, root, depth - 1)


def _is_sealed_file(path: Path) -> bool:
    """Whether the file system itself encrypts the file; False where it does not say."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        flags = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
        return bool(int.from_bytes(flags, "little") & _FS_ENCRYPT_FL)
    except OSError:
        return False
    finally:
        os.close(fd)
