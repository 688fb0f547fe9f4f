"""Gathers the facts that doctor.py judges: reads /proc, /sys and the device's control API, changes nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infiniswap.kernel_shim import rdma_sysfs, sysfs, zswap
from infiniswap.kernel_shim.doctor_model import DeviceFacts, HostFacts, PeerFacts, RdmaFacts
from infiniswap.kernel_shim.storage import devices_under, is_plain
from infiniswap.rdma.devices import list_ports
from infiniswap.shared.file_systems import file_system

_SYS_IO_URING_SETUP = 425
# Of /proc/PID/task/TID/stat, counted behind the command's closing parenthesis (proc(5) fields 9 and 41).
_FLAGS_FIELD = 6
_POLICY_FIELD = 38
_UNLIMITED = "unlimited"


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int((_text(path) or "").strip())
    except ValueError:
        return None


def parse_task(stat: str) -> tuple[int, int] | None:
    """Flags and scheduling policy of a task from its stat line; its name may hold blanks and parentheses."""
    fields = stat.rpartition(")")[2].split()
    try:
        return int(fields[_FLAGS_FIELD]), int(fields[_POLICY_FIELD])
    except (IndexError, ValueError):
        return None


def parse_memlock(limits: str) -> int | None:
    """Soft limit of locked memory from /proc/PID/limits, bytes; None: unlimited or unknown."""
    for line in limits.splitlines():
        if line.startswith("Max locked memory"):
            value = line.split()[3]
            return None if value == _UNLIMITED else int(value)
    return None


def io_uring_works() -> bool:
    """Whether io_uring_setup(2) gets as far as looking at its (invalid) arguments."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_SYS_IO_URING_SETUP, 0, None)
    return ctypes.get_errno() in (errno.EINVAL, errno.EFAULT)


def host_facts(root: Path = Path("/")) -> HostFacts:
    """The machine's facts."""
    memory = sysfs.parse_kib_table(_text(root / "proc/meminfo") or "")
    min_free_kib = _number(root / "proc/sys/vm/min_free_kbytes")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    parameters = root / "sys/module/nbd/parameters"
    return HostFacts(
        root=os.geteuid() == 0,
        kernel_release=os.uname().release,
        nbd_loaded=(root / "sys/module/nbd").exists(),
        nbds_max=_number(parameters / "nbds_max"),
        max_part=_number(parameters / "max_part"),
        io_uring_disabled=_number(root / "proc/sys/kernel/io_uring_disabled"),
        io_uring_works=io_uring_works(),
        memory_total_bytes=memory.get("MemTotal", 0),
        oom_kill_allocating_task=_number(root / "proc/sys/vm/oom_kill_allocating_task"),
        min_free_bytes=None if min_free_kib is None else min_free_kib << 10,
        memlock_limit_bytes=None if soft == resource.RLIM_INFINITY else soft,
        foreign_nbd=tuple(device.path for device in sysfs.foreign(root)),
        nbd_used=nbd_used(root),
        huge_pages_total=memory.get("HugePages_Total", 0),
        huge_pages_free=memory.get("HugePages_Free", 0),
        huge_page_bytes=memory.get("Hugepagesize", 2 << 20),
        swaps=sysfs.read_swaps(root),
        zswap=zswap.parameters(root),
        rdma=rdma_facts(root),
    )


def nbd_used(root: Path = Path("/")) -> tuple[str, ...]:
    """Kernel devices for whose sake module nbd must stay."""
    return tuple(
        device.path
        for device in sysfs.read_nbd_devices(root)
        if device.connected or device.holders or sysfs.swap_on(device, root) or sysfs.mounts_of(device, root)
    )


def rdma_facts(root: Path = Path("/")) -> RdmaFacts:
    """The machine's RDMA, and the libraries it is used with."""
    netdevs = {name: netdev for name in rdma_sysfs.netdev_names(root) if (netdev := rdma_sysfs.read_netdev(name, root))}
    return RdmaFacts(
        libibverbs=loadable("libibverbs.so.1"),
        pyverbs=find_spec("pyverbs") is not None,
        ports=list_ports(root),
        netdevs={link.name: link.netdev for link in rdma_sysfs.read_links(root)},
        mtu_bytes={name: netdev.mtu_bytes for name, netdev in netdevs.items()},
    )


def loadable(library: str) -> bool:
    """Whether programs here can load that shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def threads(pid: int, root: Path = Path("/")) -> tuple[tuple[int, int], ...]:
    """Flags and policy of every thread of pid; threads that end meanwhile are left out."""
    folder = root / f"proc/{pid}/task"
    try:
        tasks = sorted(folder.iterdir())
    except OSError:
        return ()
    found = [parse_task(_text(task / "stat") or "") for task in tasks]
    return tuple(value for value in found if value is not None)


def cgroup_swap_max(pid: int, root: Path = Path("/")) -> tuple[str | None, str | None]:
    """The cgroup (version 2) of the process that decides, and its memory.swap.max: the nearest one that has any, or 0.

    Where none has (the root has not, but for that of a container), the process's own, and None.
    """
    group = None
    for line in (_text(root / f"proc/{pid}/cgroup") or "").splitlines():
        if line.startswith("0::"):
            group = line[3:]
    if group is None:
        return None, None
    top = root / "sys/fs/cgroup"
    folder = top / group.lstrip("/")
    found: tuple[str, str] | None = None
    for each in (folder, *folder.parents):
        value = (_text(each / "memory.swap.max") or "").strip()
        name = "/" if each == top else f"/{each.relative_to(top)}"
        if value == "0":
            return group, "0"
        found = found or ((name, value) if value else None)
        if each == top:
            break
    return found or (group, None)


def file_system_type(path: Path, root: Path = Path("/")) -> str | None:
    """Type of the file system that path lies on; None when it cannot be told."""
    try:
        return file_system(path.stat().st_dev, _text(root / "proc/self/mountinfo") or "") or None
    except OSError:
        return None


def _is_swap(backup: Path, areas: Sequence[sysfs.SwapArea]) -> bool:
    real = os.path.realpath(backup)
    return any(os.path.realpath(area.path) == real for area in areas)


def log_file(pid: int, root: Path = Path("/")) -> Path | None:
    """The file that a process's stderr goes to; None where it is none, or cannot be read."""
    try:
        stderr = root / f"proc/{pid}/fd/2"
        return Path(os.readlink(stderr)) if stat.S_ISREG(stderr.stat().st_mode) else None  # noqa: PTH115 - the link as text
    except OSError:
        return None


def device_facts(status: Mapping[str, Any], peers: Sequence[Mapping[str, Any]], root: Path = Path("/")) -> DeviceFacts:
    """Facts of one device, from the answers of its control API (/v1/status, /v1/peers) and from /proc."""
    pid = int(status["pid"])
    table = sysfs.parse_kib_table(_text(root / f"proc/{pid}/status") or "")
    group, swap_max = cgroup_swap_max(pid, root)
    device = sysfs.attached(status["name"], root, status.get("socket"))
    identifier = device.identifier if device else None
    backup = Path(status["backup"])
    state_dir = str(status.get("state_dir", ""))
    log = log_file(pid, root)
    tasks = threads(pid, root)
    return DeviceFacts(
        name=status["name"],
        pid=pid,
        size_bytes=int(status["size_bytes"]),
        mapped_bytes=int(status.get("mapped_slabs", 0)) * int(status.get("slab_bytes", 0)),
        backup=str(backup),
        node=device.path if device else None,
        nbd_connections=identifier.connections if identifier else 0,
        nbd_dead=identifier.dead(int(status.get("connections", identifier.connections))) if identifier else 0,
        swap=sysfs.swap_on(device, root) if device else None,
        locked_bytes=table.get("VmLck"),
        resident_bytes=table.get("VmRSS"),
        thread_flags=tuple(flags for flags, _ in tasks),
        thread_policies=tuple(policy for _, policy in tasks),
        oom_score_adj=_number(root / f"proc/{pid}/oom_score_adj"),
        cgroup=group,
        cgroup_swap_max=swap_max,
        memlock_limit_bytes=parse_memlock(_text(root / f"proc/{pid}/limits") or ""),
        backup_devices=devices_under(backup, root),
        backup_is_plain=is_plain(backup, root) if status.get("sealed") else None,
        backup_is_swap=_is_swap(backup, sysfs.read_swaps(root)),
        state_dir=state_dir,
        state_file_system=file_system_type(Path(state_dir), root) if state_dir else None,
        log_file=str(log) if log else None,
        log_file_system=file_system_type(log, root) if log else None,
        transport=status.get("transport"),
        peers=tuple(peer_facts(peer) for peer in peers),
    )


def peer_facts(row: Mapping[str, Any]) -> PeerFacts:
    """Facts of one peer, from its row of /v1/peers; a device that does not speak of transports leaves them unknown."""
    return PeerFacts(
        peer=str(row["peer"]),
        up=row.get("state") in ("up", "slow"),
        free_bytes=int(row.get("free_bytes") or 0),
        transport=row.get("transport"),
        rdma_error=row.get("rdma_error"),
    )
