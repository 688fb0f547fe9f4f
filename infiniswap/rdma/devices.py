"""RDMA devices of this host, as sysfs tells; reads, and changes nothing.

Source: Documentation/ABI/stable/sysfs-class-infiniband of the kernel.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from infiniswap.shared.path_messages import LinkLayer

GIDS_MAX = 256  # entries of a port's GID table that are looked at; soft-RoCE has 1024 and fills the first few
_CLASS = "sys/class/infiniband"
_VERBS_CLASS = "sys/class/infiniband_verbs"


class GidType(StrEnum):
    """What a GID table entry speaks, in the kernel's words; the first one is also what InfiniBand ports have."""

    IB_OR_ROCE_V1 = "IB/RoCE v1"
    ROCE_V2 = "RoCE v2"


@dataclass(frozen=True, slots=True)
class Gid:
    """An entry of a port's GID table; of RoCE v2, address is the interface's IPv6 or IPv4-mapped address."""

    index: int
    address: ipaddress.IPv6Address
    kind: GidType
    netdev: str | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """A port of an RDMA device."""

    device: str
    number: int
    link_layer: LinkLayer
    state: str  # ACTIVE, DOWN, INIT, …
    lid: int
    gids: tuple[Gid, ...] = ()

    @property
    def active(self) -> bool:
        """Whether pages can travel through it."""
        return self.state == "ACTIVE"

    @property
    def netdev(self) -> str | None:
        """The network interface under an Ethernet port, as its first GID that has one tells; None when none does."""
        return next((gid.netdev for gid in self.gids if gid.netdev is not None), None)

    def __str__(self) -> str:
        """DEVICE/PORT."""
        return f"{self.device}/{self.number}"


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None  # gone meanwhile, or an empty entry of a table


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _numbers(folder: Path) -> list[int]:
    return sorted(int(name) for name in _names(folder) if name.isdigit())


def list_ports(root: Path = Path("/")) -> tuple[Port, ...]:
    """All ports of all devices that programs can open, by name and number."""
    present = device_names(root)
    found = []
    for device in _names(root / _CLASS):
        if device in present:
            ports = root / _CLASS / device / "ports"
            found += [_read_port(ports / str(number), device, number) for number in _numbers(ports)]
    return tuple(found)


def is_soft(device: str, root: Path) -> bool:
    """Whether it is soft-RoCE: the kernel's rxe driver tells the network interface under it."""
    return (root / _CLASS / device / "parent").exists()


def device_names(root: Path = Path("/")) -> frozenset[str]:
    """Devices that programs can open.

    One that is being removed is not among them, though its removal waits for those who have it open.
    """
    return frozenset(verbs_names(root))


def verbs_names(root: Path = Path("/")) -> dict[str, str]:
    """By device that programs can open, the name of its node in /dev/infiniband (uverbsN)."""
    folder = root / _VERBS_CLASS
    return {device: entry for entry in _names(folder) if (device := _text(folder / entry / "ibdev"))}


def _read_port(folder: Path, device: str, number: int) -> Port:
    layer = LinkLayer.INFINIBAND if _text(folder / "link_layer") == LinkLayer.INFINIBAND else LinkLayer.ETHERNET
    state = (_text(folder / "state") or "").rpartition(" ")[2] or "unknown"  # "4: ACTIVE"
    try:
        lid = int(_text(folder / "lid") or "0", 16)
    except ValueError:
        lid = 0
    indexes = _numbers(folder / "gids")[:GIDS_MAX]
    gids = tuple(gid for index in indexes if (gid := _read_gid(folder, index)) is not None)
    return Port(device, number, layer, state, lid, gids)


def _read_gid(folder: Path, index: int) -> Gid | None:
    try:
        address = ipaddress.IPv6Address(_text(folder / f"gids/{index}") or "::")
    except ValueError:
        return None
    if address.is_unspecified:
        return None
    kind = _text(folder / f"gid_attrs/types/{index}")
    netdev = _text(folder / f"gid_attrs/ndevs/{index}")
    return Gid(index, address, GidType.ROCE_V2 if kind == GidType.ROCE_V2 else GidType.IB_OR_ROCE_V1, netdev or None)
