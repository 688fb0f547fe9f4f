"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from infiniswap import __version__
from infiniswap.shared.errors import ExitCode, UserError

_VERSION_TIMEOUT_S = 10.0


def version_of(command: str) -> str | None:
    """The first line that command --version prints; None when it cannot be run."""
    try:
        done = subprocess.run(
            [command, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0] if lines else None


def cpu_model(cpuinfo: str) -> str:
    """The name of the first processor in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def file_system(folder: Path, mounts: str) -> str:
    """Type of the file system that holds folder, an absolute path, from the text of /proc/self/mounts."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 2 and folder.is_relative_to(fields[1]) and len(fields[1]) >= len(best):
            best, kind = fields[1], fields[2]
    return kind


def block_device(folder: Path) -> Path | None:
    """The whole disk that folder lies on, in /sys; None where there is none, as of an overlay."""
    number = os.stat(folder).st_dev  # noqa: PTH116 - a Path has no other way
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not node.exists():
        return None
    return node.resolve().parent if (node / "partition").exists() else node.resolve()


def disk_in_words(folder: Path) -> str:
    """File system, device, and whether that rotates, as the kernel says; virtual disks are often said to."""
    kind = file_system(folder.resolve(), Path("/proc/self/mounts").read_text())
    device = block_device(folder)
    if device is None:
        return f"{kind} on no disk of this machine's own"
    rotates = (device / "queue" / "rotational").read_text().strip() == "1"
    virtual = " (virtual)" if "virtio" in str(device) else ""
    return f"{kind} on {device.name}{virtual}, {'rotational' if rotates else 'not rotational'} by the kernel's word"


def describe(folder: Path) -> dict[str, Any]:
    """Machine and programs; folder: where the backup lies."""
    return {
        "kernel": platform.release(),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "file_system": file_system(folder.resolve(), Path("/proc/self/mounts").read_text()),
        "disk": disk_in_words(folder),
        "infiniswap": __version__,
        "fio": version_of("fio"),
        "nbdkit": version_of("nbdkit"),
        "qemu_nbd": version_of("qemu-nbd"),
    }


def need_memory(bytes_needed: int) -> None:
    """UserError when the machine has less available."""
    available = psutil.virtual_memory().available
    if available < bytes_needed:
        raise UserError(
            f"this needs {bytes_needed >> 20} MiB of memory and {available >> 20} MiB are available: "
            "choose a smaller --size or fewer contenders with --only",
            ExitCode.RESOURCES,
        )


def need_on_disk(folder: Path) -> None:
    """UserError when folder's file system keeps its files in memory."""
    if file_system(folder.resolve(), Path("/proc/self/mounts").read_text()) in {"tmpfs", "ramfs"}:
        raise UserError(f"{folder} is in memory: name a folder on a disk with --directory", ExitCode.REFUSED)


def need_disk(folder: Path, bytes_needed: int) -> None:
    """UserError when folder's file system has less room, or keeps its files in memory."""
    need_on_disk(folder)
    free = psutil.disk_usage(str(folder)).free
    if free < bytes_needed:
        raise UserError(
            f"this needs {bytes_needed >> 20} MiB in {folder} and {free >> 20} MiB are free: "
            "choose a smaller --size or another --directory",
            ExitCode.RESOURCES,
        )
