"""The memory limit of the daemon's own control group: in a container, what the host has free is not all ours to lend.

Source: kernel docs, admin-guide/cgroup-v2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infiniswap.shared.descriptors import EXHAUSTED

OWN_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
DEPTH_MAX = 64  # ancestors looked at


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """The tightest limit among the daemon's cgroup and its ancestors, and what is left below it, bytes."""

    limit_bytes: int
    available_bytes: int


def read_cgroup_memory(own: Path = OWN_CGROUP, root: Path = CGROUP_ROOT) -> CgroupMemory | None:
    """Limit and memory left of this process's cgroup; None where cgroup v2 sets no limit or is not there."""
    found: list[CgroupMemory] = []
    for folder in _folders(own, root):
        memory = _read_folder(folder)
        if memory is not None:
            found.append(memory)
    if not found:
        return None
    return CgroupMemory(min(memory.limit_bytes for memory in found), min(memory.available_bytes for memory in found))


def _folders(own: Path, root: Path) -> list[Path]:
    """The process's cgroup and its ancestors up to the root, as folders."""
    try:
        lines = own.read_text().splitlines()
    except OSError as error:
        _unless_exhausted(error)
        return []
    for line in lines:
        if line.startswith("0::/"):
            parts = [part for part in line[4:].split("/") if part][:DEPTH_MAX]
            # A process outside its cgroup namespace's root is shown with .., and its folder cannot be found from here.
            if ".." in parts:
                parts = []
            return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return []


def _read_folder(folder: Path) -> CgroupMemory | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        current = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # File pages that nobody used lately are given up before anything is killed, as MemAvailable assumes too.
        in_use = current - int(statistics.get("inactive_file", 0))
        return CgroupMemory(int(limit), max(0, int(limit) - max(0, in_use)))
    except OSError as error:
        _unless_exhausted(error)
        return None
    except ValueError:
        return None


def _unless_exhausted(error: OSError) -> None:
    """A limit that could not be looked at is not one that is not there."""
    if error.errno in EXHAUSTED:
        raise error
