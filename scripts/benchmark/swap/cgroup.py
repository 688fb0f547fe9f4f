"""A memory control group for one program: version 2, or version 1 where that is what the host has mounted."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError

STEP_BYTES = 4 << 20  # so much is taken from a program at once: the kernel kills it when it finds too little to take
HARD_SHARE = 8  # the limit at which the kernel kills lies an eighth above the one at which it pages out
SHRINK_TIMEOUT_S = 120.0
ROOM_BYTES = 2 << 20
ROOM_INTERVAL_S = 0.01
REMOVE_TIMEOUT_S = 10.0
_POLL_S = 0.02


def charges_zswap(root: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether this host's kernel charges what zswap keeps to the group that it is of: with version 2 alone."""
    return (root / "cgroup.controllers").exists()


class Cgroup:
    """A group whose memory can be limited and whose pages then go to swap. Needs root."""

    def __init__(self, name: str, root: Path = Path("/sys/fs/cgroup")) -> None:
        """Make the group. UserError when the host lets nobody do that."""
        self._unified = (root / "cgroup.controllers").exists()
        parent = root if self._unified else root / "memory"
        if self._unified:
            with contextlib.suppress(OSError):
                (root / "cgroup.subtree_control").write_text("+memory")
        self.path = parent / name
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make control group {self.path}: {error.strerror}; run as root, with the memory controller",
                ExitCode.RESOURCES,
            ) from None
        if not (self.path / ("memory.max" if self._unified else "memory.limit_in_bytes")).exists():
            self.path.rmdir()
            raise UserError(f"{parent} has no memory controller", ExitCode.RESOURCES)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._limit_bytes: int | None = None
        self._helper = threading.Thread(target=self._keep_room, daemon=True)
        if not self._unified:
            self._write("memory.oom_control", 1)  # wait at the limit, do not kill
            self._helper.start()

    def command(self, command: list[str]) -> list[str]:
        """What to run so that command runs inside from its first page on."""
        return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.path), *command]

    def used_bytes(self) -> int:
        """Memory that is charged to the group now."""
        return int((self.path / ("memory.current" if self._unified else "memory.usage_in_bytes")).read_text())

    def zswap_bytes(self) -> int:
        """What of that zswap's compressed pages take; 0 where the kernel charges them to nobody (version 1)."""
        try:
            return int((self.path / "memory.zswap.current").read_text())
        except FileNotFoundError:
            return 0

    def limit(self, limit_bytes: int) -> None:
        """Take memory away, step by step, until no more than limit_bytes is in use. UserError at the deadline."""
        deadline_s = time.monotonic() + SHRINK_TIMEOUT_S
        target = self.used_bytes()
        while target > limit_bytes:
            target = max(limit_bytes, target - STEP_BYTES)
            while not self._lower(target):
                if time.monotonic() > deadline_s:
                    raise UserError(
                        f"{self.used_bytes() >> 20} MiB are still in use where {target >> 20} MiB are to be: the swap "
                        "area takes no more, or takes too long",
                        ExitCode.FAILED,
                    )
                time.sleep(_POLL_S)
        if self._unified:
            self._write("memory.max", limit_bytes + limit_bytes // HARD_SHARE)

    def _lower(self, limit_bytes: int) -> bool:
        """Ask for the limit once; whether it holds."""
        if self._unified:
            self._write("memory.high", limit_bytes)  # pages out, and never kills
            return self.used_bytes() <= limit_bytes + STEP_BYTES // 4
        with self._lock:
            if self._write("memory.limit_in_bytes", limit_bytes):
                self._limit_bytes = limit_bytes
            return self._limit_bytes == limit_bytes

    def _keep_room(self) -> None:
        """Version 1: page out ahead of the programs, whose system calls fail at the limit instead of waiting for it."""
        while not self._closing.wait(ROOM_INTERVAL_S):
            with self._lock:
                if self._limit_bytes is not None:
                    self._write("memory.limit_in_bytes", self._limit_bytes - ROOM_BYTES)
                    self._write("memory.limit_in_bytes", self._limit_bytes)  # wakes who waits at the limit, too

    def _write(self, name: str, value: int) -> bool:
        try:
            (self.path / name).write_text(str(value))
        except OSError:  # version 1 refuses what it cannot reach at once
            return False
        return True

    def remove(self) -> None:
        """Remove the group once its processes have ended."""
        self._closing.set()
        if self._helper.is_alive():
            self._helper.join()
        end_s = time.monotonic() + REMOVE_TIMEOUT_S
        while True:
            try:
                os.rmdir(self.path)  # noqa: PTH106  (a cgroup is removed as a folder with files in it)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if time.monotonic() > end_s:
                    message = f"control group {self.path} cannot be removed: {error.strerror}"
                    raise UserError(message, ExitCode.FAILED) from None
            time.sleep(_POLL_S)
