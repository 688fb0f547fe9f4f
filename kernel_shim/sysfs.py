"""What the kernel shows of nbd devices and of swap: parsing of /proc and /sys, apart from reading them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

SECTOR_BYTES = 512
IDENTIFIER_PREFIX = "infiniswap:"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class SwapArea:
    """A line of /proc/swaps (proc(5)); sizes in bytes."""

    path: str
    kind: str
    size_bytes: int
    used_bytes: int
    priority: int


@dataclass(frozen=True, slots=True)
class Identifier:
    """The backend identifier that binds a kernel device to one device service.

    The socket's path is part of it: a device of the same name served from elsewhere has other contents, and its
    connections must never be put under this kernel device. The number of connections is, because the kernel does not
    tell it (it makes no more queues than there are processors).
    """

    name: str
    connections: int
    socket_path: str

    def dead(self, alive: int) -> int:
        """How many connections the kernel has given up, when the service has so many open.

        Other clients count among those, so it may be more; it is never less.
        """
        return max(0, self.connections - alive)

    def __str__(self) -> str:
        return f"{IDENTIFIER_PREFIX}{self.name}:{self.connections}:{self.socket_path}"

    @classmethod
    def parse(cls, backend: str | None) -> Identifier | None:
        """The identifier in the text that the kernel keeps; None for somebody else's."""
        if backend is None or not backend.startswith(IDENTIFIER_PREFIX):
            return None
        name, _, rest = backend.removeprefix(IDENTIFIER_PREFIX).partition(":")
        count, _, path = rest.partition(":")
        if not (name and path and count.isascii() and count.isdigit() and int(count)):
            return None
        return cls(name, int(count), path)


@dataclass(frozen=True, slots=True)
class NbdDevice:
    """An entry /sys/block/nbdN. connected: the kernel holds sockets, alive or dead."""

    index: int
    size_bytes: int
    connected: bool
    backend: str | None
    holders: tuple[str, ...] = ()
    pid: int | None = None  # of whoever connected it; with netlink that process has ended long ago

    @property
    def path(self) -> str:
        """Device node."""
        return f"/dev/nbd{self.index}"

    @property
    def identifier(self) -> Identifier | None:
        """What attach wrote into it, if it was ours."""
        return Identifier.parse(self.backend)


def unescape(text: str) -> str:
    r"""Undo the kernel's \ooo escapes of blanks in paths."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def parse_swaps(text: str) -> tuple[SwapArea, ...]:
    """The areas in /proc/swaps; lines that are not understood are left out."""
    areas: list[SwapArea] = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 5:
            continue
        try:
            size, used, priority = (int(field) for field in fields[-3:])
        except ValueError:
            continue
        areas.append(SwapArea(unescape(fields[0]), fields[1], size * 1024, used * 1024, priority))
    return tuple(areas)


def parse_mounts(text: str) -> dict[str, list[str]]:
    """Mount points by device number "major:minor", from /proc/self/mountinfo."""
    mounts: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 4:
            mounts.setdefault(fields[2], []).append(unescape(fields[4]))
    return mounts


def parse_kib_table(text: str) -> dict[str, int]:
    """Values of /proc/meminfo or /proc/PID/status: bytes where the unit is kB, else plain numbers."""
    table: dict[str, int] = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            table[key] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return table


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def read_nbd_device(entry: Path) -> NbdDevice | None:
    """One /sys/block/nbdN folder, or None when it is not one or vanishes meanwhile."""
    match = re.fullmatch(r"nbd(\d+)", entry.name)
    size, pid = _read(entry / "size"), _read(entry / "pid")
    if match is None or size is None:
        return None
    return NbdDevice(
        index=int(match[1]),
        size_bytes=int(size) * SECTOR_BYTES,
        connected=pid is not None,
        backend=_read(entry / "backend") or None,
        holders=_names(entry / "holders"),
        pid=int(pid) if pid is not None and pid.isdigit() else None,
    )


def _names(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in folder.iterdir()))
    except OSError:
        return ()


def read_nbd_devices(root: Path = Path("/")) -> tuple[NbdDevice, ...]:
    """All nbd devices under root's sys/block, by index."""
    folder = root / "sys/block"
    devices = [read_nbd_device(folder / name) for name in _names(folder) if name.startswith("nbd")]
    return tuple(sorted((device for device in devices if device), key=lambda device: device.index))


def read_swaps(root: Path = Path("/")) -> tuple[SwapArea, ...]:
    """The swap areas in use."""
    return parse_swaps(_read(root / "proc/swaps") or "")


def attached(name: str, root: Path = Path("/"), socket_path: Path | str | None = None) -> NbdDevice | None:
    """The connected kernel device of that name; with socket_path, only the one attached to that socket."""
    wanted = None if socket_path is None else os.path.realpath(socket_path)
    for device in read_nbd_devices(root):
        identifier = device.identifier
        if device.connected and identifier and identifier.name == name and wanted in (None, identifier.socket_path):
            return device
    return None


def foreign(root: Path = Path("/")) -> tuple[NbdDevice, ...]:
    """Connected kernel devices that attach did not make: nbd-client's, or another program's."""
    return tuple(device for device in read_nbd_devices(root) if device.connected and device.identifier is None)


def swap_on(device: NbdDevice, root: Path = Path("/")) -> SwapArea | None:
    """The swap area on the device, if it is in use as one.

    By the node's name alone: who swapped on in a mount namespace of its own has left a path from there, as /nbd0.
    """
    for area in read_swaps(root):
        if area.kind == "partition" and Path(area.path).name == f"nbd{device.index}":
            return area
    return None


def mounts_of(device: NbdDevice, root: Path = Path("/")) -> tuple[str, ...]:
    """Where file systems on the device are mounted, as far as this mount namespace shows."""
    number = _read(root / "sys/block" / f"nbd{device.index}" / "dev")
    return tuple(parse_mounts(_read(root / "proc/self/mountinfo") or "").get(number or "", ()))
