"""What the kernel shows of soft-RoCE links, the network interfaces under them, and who has them open."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infiniswap.rdma.devices import device_names, verbs_names

NODES = "/dev/infiniband"
_CLASS = "sys/class/infiniband"
_IFF_UP = 1
_DELETED = " (deleted)"  # how /proc/PID/fd shows a node that was removed


@dataclass(frozen=True, slots=True)
class SoftLink:
    """A soft-RoCE device. present: programs can open it; otherwise it is being removed."""

    name: str
    netdev: str
    present: bool


@dataclass(frozen=True, slots=True)
class Netdev:
    """A network interface. carrier: something is at the other end of the cable (always so without a cable)."""

    name: str
    up: bool
    carrier: bool
    vlan: bool
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class User:
    """A process that has a device open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None  # gone meanwhile; or carrier of an interface that is down


def read_links(root: Path = Path("/")) -> tuple[SoftLink, ...]:
    """All soft-RoCE links by name, told from real devices by `parent`, which only this driver shows."""
    present = device_names(root)
    found = []
    for entry in sorted((root / _CLASS).glob("*")):
        netdev = _text(entry / "parent")
        if netdev:
            found.append(SoftLink(entry.name, netdev, entry.name in present))
    return tuple(found)


def rdma_names(root: Path = Path("/")) -> frozenset[str]:
    """Names that are taken, by devices that are being removed too."""
    return frozenset(entry.name for entry in (root / _CLASS).glob("*"))


def netdev_names(root: Path = Path("/")) -> tuple[str, ...]:
    """The network interfaces of this host."""
    return tuple(sorted(entry.name for entry in (root / "sys/class/net").glob("*") if entry.is_dir()))


def read_netdev(name: str, root: Path = Path("/")) -> Netdev | None:
    """One network interface, or None where there is none of that name."""
    if name not in netdev_names(root):
        return None
    folder = root / "sys/class/net" / name
    try:
        flags = int(_text(folder / "flags") or "0", 16)
        mtu = int(_text(folder / "mtu") or "0")
    except ValueError:
        return None
    vlan = "DEVTYPE=vlan" in (_text(folder / "uevent") or "").split()
    return Netdev(name, bool(flags & _IFF_UP), _text(folder / "carrier") == "1", vlan, mtu)


def node_of(device: str, root: Path = Path("/")) -> str | None:
    """Path of the node that programs open, as they know it; None for a device that is being removed."""
    name = verbs_names(root).get(device)
    return None if name is None else f"{NODES}/{name}"


def users(node: str | None, root: Path = Path("/")) -> tuple[User, ...]:
    """Who has the node open, removed or not; node None: who has any node open that was removed.

    Processes that may not be looked into are left out.
    """
    found = [
        User(int(process.name), _text(process / "comm") or "?")
        for process in (root / "proc").glob("[0-9]*")
        if any(_is_node(target, node) for target in _open_files(process))
    ]
    return tuple(sorted(found, key=lambda user: user.pid))


def _open_files(process: Path) -> list[str]:
    targets = []
    with suppress(OSError):  # the process has ended, or is somebody else's
        for link in (process / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                targets.append(str(link.readlink()))
    return targets


def _is_node(target: str, node: str | None) -> bool:
    if node is not None:
        return target.removesuffix(_DELETED) == node
    return target.startswith(f"{NODES}/uverbs") and target.endswith(_DELETED)
