"""The doctor's rules for RDMA, pure. None is a failure: where RDMA cannot be used, pages travel over TCP."""

from __future__ import annotations

from infiniswap.kernel_shim.doctor_model import Check, DeviceFacts, Level, RdmaFacts
from infiniswap.rdma.devices import GidType, Port
from infiniswap.rdma.path import ROCE_MTU_BYTES, RdmaUnavailableError, choose_port
from infiniswap.shared.path_messages import MTU_CODES, LinkLayer

PAGE_BYTES = 4096
HEADERS_BYTES = 96  # of a RoCE packet, as the kernel reckons (iboe_get_mtu); soft-RoCE is content with 80


def examine_rdma(facts: RdmaFacts) -> list[Check]:
    """The host's RDMA; one line, and no complaint, where it has none."""
    if not facts.ports:
        found = "none; pages travel over TCP (`infiniswap rdma setup --netdev NAME` makes a port in software)"
        return [Check("rdma ports", Level.OK, found, "over RDMA a peer's processor has no part in reading a page")]
    return [check_ports(facts), check_gids(facts), check_mtu(facts), check_libibverbs(facts), check_pyverbs(facts)]


def _check(name: str, good: bool, found: str, why: str, command: str | None = None) -> Check:
    return Check(name, Level.OK if good else Level.WARNING, found, why, None if good else command)


def check_ports(facts: RdmaFacts) -> Check:
    """A port that is active. One that is not is no fault beside one that is: many cards have a spare."""
    why = "pages travel through active ports only; without one they travel over TCP"
    found = ", ".join(f"{port} is {port.state}" for port in facts.ports)
    first = facts.ports[0]
    command = "systemctl start opensm (on one host of the subnet)"
    if first.link_layer is LinkLayer.ETHERNET:
        command = f"ip link set {facts.netdev_of(first) or 'NETDEV'} up"
    return _check("rdma ports", any(port.active for port in facts.ports), found, why, command)


def _active_ethernet(facts: RdmaFacts) -> list[Port]:
    return [port for port in facts.ports if port.active and port.link_layer is LinkLayer.ETHERNET]


def check_gids(facts: RdmaFacts) -> Check:
    """A RoCE v2 GID on every active port of Ethernet."""
    why = "a port of Ethernet is reached by an IP address of its network interface"
    lacking = [port for port in _active_ethernet(facts) if not any(gid.kind is GidType.ROCE_V2 for gid in port.gids)]
    if not lacking:
        return _check("rdma addresses", True, "every active port has one", why)
    netdev = facts.netdev_of(lacking[0]) or "NETDEV"
    found = f"{', '.join(map(str, lacking))}: no RoCE v2 GID"
    return _check("rdma addresses", False, found, why, f"ip address add ADDRESS/PREFIX dev {netdev}")


def packet_bytes(mtu_bytes: int) -> int:
    """How much of a page one RDMA packet carries on an interface of that MTU."""
    return max((size for size in MTU_CODES if size + HEADERS_BYTES <= mtu_bytes), default=min(MTU_CODES))


def check_mtu(facts: RdmaFacts) -> Check:
    """A page in one packet. Never a complaint: not every network carries jumbo frames."""
    why = "a page in one packet takes less time than in four"
    small = []
    for netdev in sorted({netdev for port in _active_ethernet(facts) if (netdev := facts.netdev_of(port))}):
        mtu_bytes = facts.mtu_bytes.get(netdev)
        if mtu_bytes is not None and (count := PAGE_BYTES // packet_bytes(mtu_bytes)) > 1:
            small.append(
                f"{netdev} has {mtu_bytes}, {count} packets a page; where the network carries jumbo frames: "
                f"`ip link set {netdev} mtu {ROCE_MTU_BYTES}`"
            )
    return _check("rdma mtu", True, "; ".join(small) or "a page travels in one packet", why)


def check_libibverbs(facts: RdmaFacts) -> Check:
    """The library that devices and daemons open ports with."""
    why = "without libibverbs this host's devices and daemons use TCP"
    found = "installed" if facts.libibverbs else "not installed"
    return _check("libibverbs", facts.libibverbs, found, why, "apt-get install libibverbs1 ibverbs-providers")


def check_pyverbs(facts: RdmaFacts) -> Check:
    """What infiniswapd registers memory with."""
    why = "without pyverbs infiniswapd lends this host's memory over TCP only; devices do not need it"
    found = "installed" if facts.pyverbs else "not installed"
    return _check("pyverbs", facts.pyverbs, found, why, "apt-get install python3-pyverbs")


def _usable(facts: RdmaFacts) -> bool:
    try:
        choose_port(facts.ports)
    except RdmaUnavailableError:
        return False
    return facts.libibverbs


def check_transport(device: DeviceFacts, facts: RdmaFacts) -> Check:
    """A device whose host has RDMA reaches its peers by it."""
    why = "this host has RDMA, and reads from these peers wait for their processors all the same"
    up = [peer for peer in device.peers if peer.up]
    if device.transport == "tcp":
        return Check("transport", Level.OK, "TCP, as configured", why, None, device.name)
    if _usable(facts):
        slow = [f"{peer.peer} ({peer.rdma_error or 'no reason given'})" for peer in up if peer.transport == "tcp"]
        if slow:
            found = f"over TCP: {', '.join(slow)}"
            return Check("transport", Level.WARNING, found, why, "infiniswap doctor (on the peer's host)", device.name)
    count = sum(peer.transport == "rdma" for peer in up)
    return Check("transport", Level.OK, f"{count} of {len(up)} peers over RDMA", why, None, device.name)
