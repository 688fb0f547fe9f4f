"""Harm that a test does to a disk or to a daemon's memory."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from tests.faults.cluster import MIB
from tests.support.places import place_of
from tests.support.services import Daemon, Device

LIMIT_BYTES = 4 * MIB


class BrokenDisk:
    """Makes every write of the device beyond LIMIT_BYTES of a file fail with EFBIG, as if the disk were bad there.

    By RLIMIT_FSIZE, which the kernel checks for io_uring and for threads alike.
    """

    def __init__(self, device: Device) -> None:
        self._pid = device.pid
        self._before = resource.prlimit(self._pid, resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (LIMIT_BYTES, self._before[1]))

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._pid, resource.RLIMIT_FSIZE, self._before)


ROT = b"rotten" * 8  # what stands at the beginning of a copy of a page then
MEMFD = "/memfd:infiniswap-slabs"


def memory_of(daemon: Daemon) -> Path:
    """The daemon's slab memory as a file."""
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        if str(entry.readlink()).startswith(MEMFD):
            return entry
    raise AssertionError("the daemon has no slab memory")


def rot_at_peer(daemon: Daemon, content: bytes) -> None:
    """Change a page with that content, which is there once, in the daemon's memory."""
    with memory_of(daemon).open("r+b") as file:
        file.seek(file.read().index(content))
        file.write(ROT)


def rot_on_backup(backup: Path, size_bytes: int, page: int, content: bytes, rot: bytes = ROT) -> None:
    """Change a page of a device where its backup has it, with that content, in whichever layout."""
    where = place_of(backup, size_bytes, page)
    with backup.open("r+b") as file:
        file.seek(where)
        assert file.read(len(content)) == content, f"page {page} is not at {where}"
        file.seek(where)
        file.write(rot)
