"""A disk made slow for some processes, by a control group of version 1 or 2."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.machine import block_device

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
            with contextlib.suppress(OSError):
                self._group.rmdir()
            raise UserError(
                f"cannot make the disk slow: {error.strerror} ({self._group}); that takes root and the io controller",
                ExitCode.RESOURCES,
            ) from None

    def add(self, pid: int) -> None:
        """What this process reads and writes from now on is slow."""
        self._set("cgroup.procs", str(pid))

    def command(self, command: list[str]) -> list[str]:
        """What to run so that command is slow from its beginning."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._group / "cgroup.procs"), *command]

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
    disk = block_device(folder)
    if disk is None:
        raise UserError(f"{folder} lies on no disk; give --directory on one", ExitCode.REFUSED)
    return (disk / "dev").read_text().strip()
