"""How two ends of an RDMA path find and address each other; pure.

A path is two reliable connected queue pairs (InfiniBand Architecture Specification 1.4, chapter 9.7; RoCE v2 is its
annex A17): the device reads slabs through the first and writes them through the second. What each end tells the other
is in shared/path_messages.py.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable

from infiniswap.rdma.devices import Gid, GidType, Port
from infiniswap.shared.path_messages import LinkLayer

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

READS_MAX = 16  # RDMA READs that the device may have outstanding on one queue pair

# A lost packet that none follows is sent again after 4.096 µs * 2^exponent, and until then the queue pair stands still:
# so the exponent follows the round trip, with room for a peer that is busy. In hardware tries are counted: seven must
# span a switch's failover, or a host that pauses for half a second, for a lost path costs its slabs (from 15 on: 134 ms
# each, 0.94 s in all); and they must end before the device's own peer time-out does, so that the error names what
# happened. Six retries and not seven, which soft-RoCE takes for no end. There no end is what is wanted: the peer
# time-out is the bound, and tries may follow sooner: from 14 on, 67 ms. Each sends all again that is out, so where a
# busy host answers later than that for a while, shorter ones would only add to its load.
ACK_TIMEOUT_MAX = 16
ACK_TIMEOUT_MIN = 15
SOFT_ACK_TIMEOUT_MIN = 14
ACK_UNIT_MS = 4.096e-3
ROUND_TRIPS = 32  # that a try takes at least
RETRIES = 6
SOFT_RETRIES = 7
# One-sided READ and WRITE take no receive buffer, so a healthy peer never answers "receiver not ready"; soft-RoCE fails
# below 12 (0.64 ms). With 7 (for ever) the peer time-out is what ends it.
RNR_TIMER = 12
RNR_RETRIES = 7
HOP_LIMIT = 64
ROCE_MTU_BYTES = (
    4200  # of an interface, so that a page and its headers travel as one packet; cards take it, and 9000 too
)


class RdmaUnavailableError(Exception):
    """RDMA cannot be used here; the message is one sentence without a full stop."""


def choose_port(
    ports: Iterable[Port],
    *,
    device: str | None = None,
    number: int | None = None,
    local: Address | None = None,
) -> Port:
    """The active port among those asked for that has the GID of address local, else the first with a GID.

    RdmaUnavailableError says why there is none.
    """
    every = list(ports)
    if not every:
        raise RdmaUnavailableError("this host has no RDMA device")
    asked = [port for port in every if device in (None, port.device) and number in (None, port.number)]
    if not asked:
        wanted = f"{device or 'DEVICE'}/{number or 'PORT'}"
        raise RdmaUnavailableError(f"there is no RDMA port {wanted}; there are {', '.join(map(str, every))}")
    active = [port for port in asked if port.active]
    if not active:
        raise RdmaUnavailableError(f"RDMA port {asked[0]} is {asked[0].state}")
    usable = [port for port in active if port.gids]
    if not usable:
        raise RdmaUnavailableError(f"RDMA port {active[0]} has no GID: give its network interface an address")
    wanted_gid = None if local is None else as_gid(local)
    return next((port for port in usable if any(gid.address == wanted_gid for gid in port.gids)), usable[0])


def choose_gid(
    port: Port, *, index: int | None = None, local: Address | None = None, remote: ipaddress.IPv6Address | None = None
) -> Gid:
    """The GID to speak from; index asks for one. RdmaUnavailableError when the port has none that could do.

    With remote known, only a GID of its family (IPv4-mapped or not) can reach it. RoCE v2 comes before v1, then the
    remote one itself (loopback), then the one of address local, by which the other end's host is reached, then what
    has the scope of remote, global addresses before link-local ones, and IPv4, which is what RoCE is mostly routed by.
    """
    if index is not None:
        for gid in port.gids:
            if gid.index == index:
                return gid
        has = ", ".join(str(gid.index) for gid in port.gids) or "none"
        raise RdmaUnavailableError(f"RDMA port {port} has no GID {index}; it has {has}")
    if not port.gids:
        raise RdmaUnavailableError(f"RDMA port {port} has no GID")
    usable = [gid for gid in port.gids if remote is None or _mapped(gid.address) == _mapped(remote)]
    if not usable:
        family = "IPv4" if remote is not None and _mapped(remote) else "IPv6"
        raise RdmaUnavailableError(f"RDMA port {port} has no {family} GID, as the other end's is")
    wanted = None if local is None else as_gid(local)

    def rank(gid: Gid) -> tuple[bool, bool, bool, bool, bool, bool, int]:
        address = gid.address
        return (
            gid.kind is not GidType.ROCE_V2,
            address != remote,
            address != wanted,
            remote is not None and address.is_link_local != remote.is_link_local,
            address.is_link_local,
            not _mapped(address),
            gid.index,
        )

    return min(usable, key=rank)


def _mapped(gid: ipaddress.IPv6Address) -> bool:
    return gid.ipv4_mapped is not None


def as_gid(address: Address) -> ipaddress.IPv6Address:
    """The GID of an interface with that address (RoCE v2: IPv4 addresses are mapped, RFC 4291 section 2.5.5.2)."""
    if isinstance(address, ipaddress.IPv4Address):
        return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    return address


def show_gid(gid: ipaddress.IPv6Address) -> str:
    """The GID, its IPv4 address readable where it is one."""
    return f"::ffff:{gid.ipv4_mapped}" if gid.ipv4_mapped is not None else str(gid)


def needs_global_route(link_layer: LinkLayer, local: ipaddress.IPv6Address, remote: ipaddress.IPv6Address) -> bool:
    """Whether packets carry a global routing header: always on Ethernet, between subnets on InfiniBand."""
    return link_layer is LinkLayer.ETHERNET or local.packed[:8] != remote.packed[:8]


def ack_timeout(limit_ms: float, round_trip_ms: float | None = None, *, soft: bool = False) -> int:
    """Exponent of the local acknowledgement time-out; round_trip_ms: as measured, None: unknown.

    In hardware 1 + RETRIES tries end within limit_ms; soft-RoCE tries on until the limit.
    """
    fitting = limit_ms / (1 + RETRIES) / ACK_UNIT_MS
    most = max(1, min(ACK_TIMEOUT_MAX, int(math.log2(fitting)) if fitting > 2 else 1))
    if round_trip_ms is None:
        return most
    wanted = math.ceil(math.log2(max(1.0, ROUND_TRIPS * round_trip_ms / ACK_UNIT_MS)))
    return min(most, max(SOFT_ACK_TIMEOUT_MIN if soft else ACK_TIMEOUT_MIN, wanted))
