"""A disk made slow for some processes, by a control group of version 1 or 2."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError

_ROOT = Path("/sys/fs/cgroup")
_END_TIMEOUT_S = 10.0


class Throttle:
    """At most so many writes and bytes a second, written or read, on the disk that a folder lies on."""

    def __init__(self, name: str, folder: Path, *, writes_per_s: int, bytes_per_s: int) -> None:
        """UserError where control groups cannot do it: it takes root, and a disk of its own, no overlay."""
        disk = _disk_of(folder)
        unified = (_ROOT / "cgroup.controllers").exists()
        self._group = (_ROOT if unified else _ROOT / "blkio") / name
        try:
            if unified:
                (_ROOT / "cgroup.subtree_control").write_text("+io")
            self._group.mkdir(exist_ok=True)
            if unified:
                self._set("io.max", f"{disk} wiops={writes_per_s} wbps={bytes_per_s} rbps={bytes_per_s}")
            else:
                self._set("blkio.throttle.write_iops_device", f"{disk} {writes_per_s}")
                self._set("blkio.throttle.write_bps_device", f"{disk} {bytes_per_s}")
                self._set("blkio.throttle.read_bps_device", f"{disk} {bytes_per_s}")
        except OSError as error:
            raise UserError(
                f"cannot make the disk slow: {error.strerror} ({self._group}); run as root, or choose by --only",
                ExitCode.RESOURCES,
            ) from None

    def add(self, pid: int) -> None:
        """What this process reads and writes from now on is slow."""
        self._set("cgroup.procs", str(pid))

    def remove(self) -> None:
        """Once its processes have ended."""
        end_s = time.monotonic() + _END_TIMEOUT_S
        while self._group.exists() and time.monotonic() < end_s:
            with contextlib.suppress(OSError):
                self._group.rmdir()
            time.sleep(0.05)

    def _set(self, file: str, text: str) -> None:
        (self._group / file).write_text(text)


def _disk_of(folder: Path) -> str:
    """major:minor of the whole disk: a partition has no limits of its own."""
    number = os.stat(folder).st_dev  # noqa: PTH116 - a Path has no other way
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not node.exists():
        raise UserError(f"{folder} lies on no disk; give --directory on one", ExitCode.REFUSED)
    if (node / "partition").exists():
        return (node.resolve().parent / "dev").read_text().strip()
    return f"{os.major(number)}:{os.minor(number)}"
