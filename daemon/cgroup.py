"""The memory limits of the daemon's own control group: in a container, what the host has free is not all ours to lend.

Sources: kernel docs, admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory. A host may have both at once; whichever
has the memory controller sets the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infiniswap.daemon.host_files import HostFiles
from infiniswap.policy.headroom import GroupMemory

OWN_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
DEPTH_MAX = 64  # ancestors looked at
_UNLIMITED_BYTES = 1 << 60  # v1 writes no limit as the largest number of whole pages


@dataclass(frozen=True, slots=True)
class _Names:
    """Files of one version of the interface."""

    limits: tuple[str, ...]
    current: str
    prefix: str  # of counts that include the groups below


_V2 = _Names(("memory.max", "memory.high"), "memory.current", "")
_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")


_ONCE = HostFiles(keep_open=False)


def read_groups(own: Path = OWN_CGROUP, root: Path = CGROUP_ROOT, files: HostFiles = _ONCE) -> tuple[GroupMemory, ...]:
    """Every limit on this process's memory: that of its group and of each above it; none where nothing is limited."""
    found = [_read_folder(folder, names, files) for folder, names in _folders(own, root, files)]
    return tuple(group for group in found if group is not None)


def pressure_files(own: Path = OWN_CGROUP, root: Path = CGROUP_ROOT) -> list[Path]:
    """PSI of this process's group and of those above it that have a limit (v2 only)."""
    folders = [folder for folder, names in _folders(own, root) if names is _V2 and _read_folder(folder, names)]
    return [folder / "memory.pressure" for folder in folders if (folder / "memory.pressure").exists()]


def dies_as_a_whole(own: Path = OWN_CGROUP, root: Path = CGROUP_ROOT) -> bool:
    """Whether the kernel kills all of the group when it kills one of it for want of memory (memory.oom.group)."""
    return any(
        (_ONCE.text(folder / "memory.oom.group") or "").strip() == "1"
        for folder, names in _folders(own, root)
        if names is _V2
    )


def _folders(own: Path, root: Path, files: HostFiles = _ONCE) -> list[tuple[Path, _Names]]:
    """The process's groups and all above them, as folders, the own ones first."""
    found = []
    for line in (files.text(own) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            unified = root if (root / "cgroup.controllers").exists() else root / "unified"
            found += [(folder, _V2) for folder in _upwards(unified, path)]
        elif "memory" in controllers.split(","):
            # In a container the path is the host's while its own group stands at the root: then only that is found.
            found += [(folder, _V1) for folder in _upwards(root / "memory", path)]
    return found


def _upwards(root: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part][:DEPTH_MAX]
    # A process outside its cgroup namespace's root is shown with .., and its folder cannot be found from here.
    if ".." in parts:
        parts = []
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _read_folder(folder: Path, names: _Names, files: HostFiles = _ONCE) -> GroupMemory | None:
    """The group's limit; None where it has none, or is not there."""
    try:
        limits = [_limit(files.text(folder / name)) for name in names.limits]
        limit = min((limit for limit in limits if limit is not None), default=None)
        current, statistics = files.text(folder / names.current), files.text(folder / "memory.stat")
        if limit is None or current is None or statistics is None:
            return None
        counts = {name: int(value) for name, value in (line.split() for line in statistics.splitlines())}
        # Without a limit of its own a file page costs nothing to give up; those in use are only half given up, as
        # MemAvailable reckons where memory is short. Shared memory is on neither of these lists.
        inactive, active = (counts.get(f"{names.prefix}{kind}_file", 0) for kind in ("inactive", "active"))
        # A page in a processor's list of free ones (zoneinfo.py) is charged to no group: nothing of it is in current. A
        # little is there too much, the charges that processors hold in store; at a group's limit the kernel drops them.
        in_use = max(0, int(current) - inactive - active // 2)
        shared = counts.get(f"{names.prefix}shmem", 0)
    except ValueError:
        return None
    return GroupMemory(limit, max(0, limit - in_use), shared)


def _limit(content: str | None) -> int | None:
    text = (content or "max").strip()
    limit = None if text == "max" else int(text)
    return None if limit is None or limit >= _UNLIMITED_BYTES else limit
