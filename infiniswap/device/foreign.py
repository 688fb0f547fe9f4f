"""What an image holds that no device of ours is known to have written: named where it can be, never overlooked."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from infiniswap.device.extents import file_extents
from infiniswap.kernel_shim import commands
from infiniswap.kernel_shim.swap import parse_probe
from infiniswap.shared.errors import ExitCode, UserError

CHUNK_BYTES = 1 << 20
FILE_BYTES_MAX = 64 << 30  # of data read in search of anything but zeroes; what has more counts as content
DEVICE_SAMPLES = 64  # of a block device, which tells of no holes; the first and the last MiB are among them
PROBE_TIMEOUT_S = 10.0
SIGNATURE_BYTES = 72 << 10  # btrfs has the farthest magic looked for, at 64 KiB + 64
# Offset, magic, whose it is. Formats and offsets as in util-linux' libblkid/src/superblocks and partitions.
_SIGNATURES = (
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (65600, b"_BHRfS_M", "a btrfs file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) volume"),
    *((sector * 512, b"LABELONE", "an LVM physical volume") for sector in range(4)),
    (0, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (0, b"hsqs", "a squashfs file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (512, b"EFI PART", "a partition table"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
)


def foreign_content(fd: int, path: Path, size_bytes: int) -> str | None:
    """What is there, in words; None when it is empty.

    A block device is looked at in samples: one that is blank at its beginning, its end and between counts as empty.
    """
    try:
        found = foreign_signature(fd) or _ask_blkid(path)
        if found is not None:
            return found
        extents = None if stat.S_ISBLK(os.fstat(fd).st_mode) else file_extents(fd, size_bytes)
        return "data of unknown origin" if _has_data(fd, size_bytes, extents) else None
    except OSError as error:
        raise UserError(f"backup {path} cannot be read: {error.strerror}", ExitCode.RESOURCES) from None


def foreign_signature(fd: int) -> str | None:
    """What the beginning says it holds (a file system, swap space …), None when nothing known."""
    with mmap.mmap(-1, SIGNATURE_BYTES) as buffer:
        length = os.preadv(fd, [buffer], 0)
        head = buffer[:length]
    for offset, magic, what in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return what
    return None


def _ask_blkid(path: Path) -> str | None:
    """Formats that are not in our table; None also where blkid is missing, for then other data tells."""
    done = commands.run(["blkid", "-p", "-o", "export", str(path)], PROBE_TIMEOUT_S)
    if done.code == 8:
        return "several signatures"
    if done.code != 0:
        return None
    tags = parse_probe(done.output)
    if "TYPE" in tags:
        return f"'{tags['TYPE']}' data"
    return f"a {tags['PTTYPE']} partition table" if "PTTYPE" in tags else None


def _has_data(fd: int, size_bytes: int, extents: Iterable[tuple[int, int]] | None) -> bool:
    if extents is None:
        last = max(size_bytes - CHUNK_BYTES, 0)
        places = {last * number // (DEVICE_SAMPLES - 1) // 4096 * 4096 for number in range(DEVICE_SAMPLES)}
        extents = [(start, min(start + CHUNK_BYTES, size_bytes)) for start in sorted(places)]
    left = FILE_BYTES_MAX
    with mmap.mmap(-1, CHUNK_BYTES) as buffer:
        view = memoryview(buffer)
        try:
            for start, end in extents:
                at = start
                while at < end:
                    count = os.preadv(fd, [view[: min(CHUNK_BYTES, end - at)]], at)
                    if count <= 0:
                        break
                    if np.any(np.frombuffer(buffer, np.uint8, count)):
                        return True
                    at, left = at + count, left - count
                    if left <= 0:
                        return True
        finally:
            view.release()
    return False
