"""A memory daemon in a control group of its own, whose limit decides how much it may lend."""

from __future__ import annotations

import contextlib
import http.client
import os
import time
from pathlib import Path
from typing import Any

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.json_client import JsonClient
from scripts.benchmark.cluster import beside_python
from scripts.benchmark.processes import Program, Programs

REMOVE_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 1 << 20
_POLL_S = 0.02


class DonorGroup:
    """A memory control group, version 2 or 1, for one daemon. Needs root."""

    def __init__(self, name: str, root: Path = Path("/sys/fs/cgroup")) -> None:
        """Make the group. UserError when the host lets nobody do that."""
        unified = (root / "cgroup.controllers").exists()
        parent = root if unified else root / "memory"
        if unified:
            with contextlib.suppress(OSError):
                (root / "cgroup.subtree_control").write_text("+memory")
        self._path = parent / name
        self._limit = self._path / ("memory.max" if unified else "memory.limit_in_bytes")
        self._usage = self._path / ("memory.current" if unified else "memory.usage_in_bytes")
        try:
            self._path.mkdir()
        except OSError as error:
            raise UserError(
                f"cannot make control group {self._path}: {error.strerror}; run as root, with the memory controller",
                ExitCode.RESOURCES,
            ) from None
        if not self._limit.exists():
            self._path.rmdir()
            raise UserError(f"{parent} has no memory controller", ExitCode.RESOURCES)

    def command(self, command: list[str]) -> list[str]:
        """What to run so that command runs inside from its first page on."""
        return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._path), *command]

    def limit(self, limit_bytes: int) -> None:
        """Set it at once. UserError when more than that is in use."""
        try:
            self._limit.write_text(str(limit_bytes))
        except OSError as error:
            raise UserError(f"{self._limit} does not become {limit_bytes}: {error.strerror}", ExitCode.FAILED) from None

    def used_bytes(self) -> int:
        """What is charged to the group, without file pages that nobody would miss, as the daemon reckons."""
        counts = dict(line.split() for line in (self._path / "memory.stat").read_text().splitlines())
        inactive, active = (
            int(counts.get(f"total_{kind}_file", counts.get(f"{kind}_file", 0))) for kind in ("inactive", "active")
        )
        return int(self._usage.read_text()) - inactive - active // 2

    def remove(self) -> None:
        """Remove the group once its processes have ended."""
        end_s = time.monotonic() + REMOVE_TIMEOUT_S
        while True:
            try:
                os.rmdir(self._path)  # noqa: PTH106  (a cgroup is removed as a folder with files in it)
                return
            except OSError as error:
                if time.monotonic() > end_s:
                    message = f"control group {self._path} cannot be removed: {error.strerror}"
                    raise UserError(message, ExitCode.FAILED) from None
            time.sleep(_POLL_S)


class Donor:
    """A daemon that lends memory_bytes at most, in a group or in none."""

    def __init__(
        self, programs: Programs, label: str, memory_bytes: int, headroom_bytes: int, group: DonorGroup | None = None
    ) -> None:
        """Start it; UserError when it does not serve."""
        self._group = group
        self._headroom_bytes = headroom_bytes
        command = [beside_python("infiniswapd"), "--memory", str(memory_bytes), "--headroom", str(headroom_bytes)]
        command += ["--listen", "127.0.0.1:0"]
        self.program: Program = programs.start(label, group.command(command) if group else command)
        self.address = programs.ready_line(self.program).removeprefix("http://")
        self._client = JsonClient(
            http.client.HTTPConnection(self.address, timeout=ANSWER_TIMEOUT_S),
            timeout_s=ANSWER_TIMEOUT_S,
            answer_bytes_max=ANSWER_BYTES_MAX,
        )

    def stats(self) -> dict[str, Any]:
        """GET /v1/stats."""
        answer = self._client.get("/v1/stats")
        assert isinstance(answer, dict)
        return answer

    def lent_bytes(self) -> int:
        """Memory that slabs occupy, by the kernel's count of this process's shared memory."""
        for line in Path(f"/proc/{self.program.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "RssShmem":
                return int(value.split()[0]) << 10
        raise self.program.failed("has no memory any more")

    def want_back(self, wanted_bytes: int) -> None:
        """Lower the group's limit so that wanted_bytes more than may be lent are lent now."""
        assert self._group is not None
        self._group.limit(self._group.used_bytes() + self._headroom_bytes - wanted_bytes)
