"""Addresses as the user writes them: HOST:PORT of a daemon, and the name of a device."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from infiniswap.shared.errors import UserError

CONTROL_PORT = 7401  # of memory daemons, where none is named
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(~[0-9]{1,2})?", re.ASCII)  # VOL~N: shard_names.py
_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?", re.ASCII)


class HostPort(NamedTuple):
    """A TCP address as the user gave it."""

    host: str
    port: int

    def __str__(self) -> str:
        """HOST:PORT, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(text: str, what: str, *, port_min: int = 1, default_port: int | None = None) -> HostPort:
    """HOST:PORT, IPv4:PORT or [IPv6]:PORT; what names the option in the UserError.

    default_port: of a host without one. A number alone is no host then: it was meant as a port.
    """
    shown = str(text).strip()
    help_text = f"{what} '{shown}' is not HOST:PORT; write for example 127.0.0.1:7401, donor1:7401 or [::1]:7401"
    host, separator, port_text = shown.rpartition(":")
    alone = shown.endswith("]") or (":" not in shown and not shown.isdigit())
    if default_port is not None and alone:
        host, separator, port_text = shown, ":", str(default_port)
    if not separator or not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5:
        raise UserError(help_text)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            raise UserError(help_text) from None
    elif not _HOST_NAME.fullmatch(host):
        raise UserError(help_text)
    port = int(port_text)
    if not port_min <= port <= 65535:
        raise UserError(f"{what} '{shown}': the port must be between {port_min} and 65535")
    return HostPort(host, port)


def check_name(name: str) -> str:
    """A device name fit for file names and URIs, or UserError."""
    if not _NAME.fullmatch(name):
        raise UserError(f"device name '{name}' must be 1 to 64 of A-Z a-z 0-9 _ . - and begin with a letter or digit")
    return name
