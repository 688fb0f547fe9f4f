"""A memory control group with a limit, v1 or v2, for tests under real memory pressure."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support.waiting import wait_for

ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """Made on entry, removed on exit, when all of its processes must have ended."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.v1 = (ROOT / "memory" / "cgroup.procs").exists()
        self.folder = (ROOT / "memory" if self.v1 else ROOT) / f"isw-test-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        self.folder.mkdir()
        if self.v1:
            self._write("memory.limit_in_bytes", self.limit_bytes)
        else:
            self._write("memory.max", self.limit_bytes)
            with contextlib.suppress(OSError):  # not there without swap
                self._write("memory.swap.max", 0)
        return self

    def __exit__(self, *_: object) -> None:
        wait_for(self._remove, what=f"{self.folder} to be empty")

    @property
    def prefix(self) -> Sequence[str]:
        """A command that executes its arguments within the group."""
        return ("sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh")

    @property
    def free_bytes(self) -> int:
        """What the limit leaves above all that is in use; idle file pages count as free."""
        used = int(self._read("memory.usage_in_bytes" if self.v1 else "memory.current"))
        name = "total_inactive_file" if self.v1 else "inactive_file"
        return self.limit_bytes - used + self._count("memory.stat", name)

    @property
    def killed(self) -> int:
        """Processes of the group that the OOM killer took."""
        return self._count("memory.oom_control" if self.v1 else "memory.events", "oom_kill")

    def _count(self, file: str, name: str) -> int:
        return int(dict(line.split() for line in self._read(file).splitlines())[name])

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def _remove(self) -> bool:
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        return not self.folder.exists()


def why_not() -> str | None:
    """Why there can be no memory groups here; None: there can."""
    if os.geteuid() != 0:
        return "only root makes control groups"
    try:
        with MemoryGroup(64 << 20) as group:
            assert group.free_bytes > 0
            assert group.killed == 0
    except (OSError, KeyError) as error:
        return f"no memory control groups: {error}"
    return None
