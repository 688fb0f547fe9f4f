"""What the two ends of an RDMA path tell each other through the control API."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

QUEUE_PAIRS = 2  # page-ins, page-outs
MTU_CODES = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}  # enum ibv_mtu


class LinkLayer(StrEnum):
    """How a port is addressed: InfiniBand by LID, Ethernet (RoCE) by GID."""

    INFINIBAND = "InfiniBand"
    ETHERNET = "Ethernet"


@dataclass(frozen=True, slots=True)
class QueuePair:
    """Number and first packet sequence number of a queue pair, 24 bits each."""

    number: int
    psn: int


@dataclass(frozen=True, slots=True)
class PathEnd:
    """What one end tells the other."""

    link_layer: LinkLayer
    gid: ipaddress.IPv6Address
    lid: int
    mtu_bytes: int
    reads_max: int
    queue_pairs: tuple[QueuePair, ...]

    def as_json(self) -> dict[str, Any]:
        """For the control API."""
        return {
            "link_layer": str(self.link_layer),
            "gid": str(self.gid),
            "lid": self.lid,
            "mtu_bytes": self.mtu_bytes,
            "reads_max": self.reads_max,
            "queue_pairs": [{"number": pair.number, "psn": pair.psn} for pair in self.queue_pairs],
        }


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory of the donor: where it begins in the donor's address space, and the key that opens it."""

    address: int
    rkey: int

    def as_json(self) -> dict[str, int]:
        """For the control API."""
        return {"address": self.address, "rkey": self.rkey}


def _integer(content: Any, name: str, highest: int) -> int:
    value = content.get(name) if isinstance(content, dict) else None
    if type(value) is not int or not 0 <= value <= highest:
        raise ValueError(f"{name} must be a whole number up to {highest}")
    return value


def _text(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text")
    return value


def parse_end(content: Any) -> PathEnd:
    """A PathEnd out of JSON that a stranger sent; ValueError with a sentence."""
    if not isinstance(content, dict):
        raise ValueError("an end of an RDMA path must be an object")
    try:
        link_layer = LinkLayer(_text(content, "link_layer"))
        gid = ipaddress.IPv6Address(_text(content, "gid"))
    except ValueError:
        raise ValueError("link_layer must be Ethernet or InfiniBand, and gid an IPv6 address") from None
    if gid.scope_id is not None:
        raise ValueError("gid must be an IPv6 address without a zone")
    mtu_bytes = _integer(content, "mtu_bytes", max(MTU_CODES))
    if mtu_bytes not in MTU_CODES:
        raise ValueError(f"mtu_bytes must be one of {', '.join(map(str, MTU_CODES))}")
    pairs = content.get("queue_pairs")
    if not isinstance(pairs, list) or len(pairs) != QUEUE_PAIRS:
        raise ValueError(f"queue_pairs must be a list of {QUEUE_PAIRS}")
    return PathEnd(
        link_layer=link_layer,
        gid=gid,
        lid=_integer(content, "lid", 0xFFFF),
        mtu_bytes=mtu_bytes,
        reads_max=_integer(content, "reads_max", 255),
        queue_pairs=tuple(QueuePair(_integer(p, "number", 0xFFFFFF), _integer(p, "psn", 0xFFFFFF)) for p in pairs),
    )


def parse_region(content: Any) -> Region:
    """A Region out of JSON; ValueError with a sentence."""
    return Region(_integer(content, "address", (1 << 64) - 1), _integer(content, "rkey", 0xFFFFFFFF))
