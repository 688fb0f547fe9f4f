"""What some options of a device alone may be, as in shared/values.py; and one whole option."""

from __future__ import annotations

import re

from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.errors import UserError
from infiniswap.shared.host_names import is_address
from infiniswap.shared.options import Option
from infiniswap.shared.values import integer


def rdma_name(what: str, value: object) -> str:
    """Name of an RDMA device. UserError."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,63}", value, re.ASCII):
        raise UserError(f"{what} '{value}' is no device name; see infiniswap rdma list")
    return value


def domain(what: str, value: object) -> str:
    """A domain in which peers are looked for. UserError."""
    label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    if not isinstance(value, str) or len(value) > 200 or not re.fullmatch(rf"{label}(\.{label})*\.?", value, re.ASCII):
        raise UserError(f"{what} '{value}' is no domain; write for example example.net")
    return value.rstrip(".")


def name_server(what: str, value: object) -> HostPort:
    """A name server by its address. UserError."""
    server = parse_host_port(str(value), what, default_port=53)
    if not is_address(server.host):
        raise UserError(f"{what} '{value}' must be an IP address: who should look up its name?")
    return server


BACKUP_LOG_SPACE = Option(
    name="backup_log_space",
    field="backup_log_space_percent",
    convert=integer(150, 1000),
    metavar="PERCENT",
    help="What a log's new file takes of the device's size: the more, the less is moved to clean it.",
    default=150,
)
