"""Who may give orders to the daemon: see how it stands, cordon and drain it."""

from __future__ import annotations

import ipaddress
from enum import StrEnum


class Operators(StrEnum):
    """Whose orders are taken."""

    LOCAL = "local"  # of programs on the daemon's own host
    ANYONE = "anyone"  # of whoever reaches the control port


def is_local(peer: str, own: str) -> bool:
    """Whether a TCP connection with these two addresses comes from its own host.

    By loopback, or from the very address that it goes to: the kernel routes answers to that back to itself, so nobody
    else can open a connection from there.
    """
    try:
        host, here = (_plain(text) for text in (peer, own))
    except ValueError:
        return False
    return host.is_loopback or host == here


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
