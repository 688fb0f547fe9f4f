"""What is on this host alone: addresses of its loopback interface."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from infiniswap.shared.host_names import is_address


def is_loopback(address: str) -> bool:
    """Whether an IP address, with or without a zone, is reached from this host alone. A name is none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (found if mapped is None else mapped).is_loopback


def all_loopback(addresses: Iterable[str]) -> bool:
    """Whether there are some, all of which are."""
    found = [is_loopback(address) for address in addresses]
    return bool(found) and all(found)


def listens_here_alone(host: str) -> bool | None:
    """Whether a program that listens at host is reached from this host alone; None: no such name. Looks names up."""
    if is_address(host):
        return is_loopback(host)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return None
    return all_loopback(str(target[0]) for *_, target in found)
