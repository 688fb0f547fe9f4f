"""What the daemon is asked to be: options from a TOML file and the command line, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infiniswap.daemon.rdma import RdmaMode, RdmaOptions
from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import parse_size
from infiniswap.shared.toml_file import read_toml

LISTEN_DEFAULT = HostPort("127.0.0.1", 7401)
LEASE_TTL_S_MIN = 1.0
LEASE_TTL_S_MAX = 86400.0
THREADS_MAX = 64
RDMA_PORT_MAX = 255  # a port number has 8 bits (InfiniBand Architecture Specification, 3.5.3)
GID_INDEX_MAX = 255
RDMA_DEVICE_CHARACTERS_MAX = 63  # IB_DEVICE_NAME_MAX of the kernel, less its final zero
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """A checked daemon: each value is in range; what the host can give is found out when it starts."""

    memory_bytes: int
    listen: HostPort = LISTEN_DEFAULT
    data_listen: HostPort | None = None  # None: the host of listen, any free port
    headroom_bytes: int | None = None  # None: the larger of 10 % of the host's memory and 512 MiB
    huge_pages: bool = False
    lease_ttl_s: float = 60.0
    threads: int = 2
    rdma: RdmaMode = RdmaMode.AUTO
    rdma_device: str | None = None  # None: one that fits is found, as with port and GID
    rdma_port: int | None = None
    rdma_gid_index: int | None = None
    log_level: str = "warning"

    @property
    def rdma_options(self) -> RdmaOptions:
        """All that is asked of RDMA."""
        return RdmaOptions(self.rdma, self.rdma_device, self.rdma_port, self.rdma_gid_index)


def _size(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{option} must be a size such as 512MiB")
    try:
        return parse_size(value)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _address(option: str, value: object) -> HostPort:
    if not isinstance(value, str):
        raise UserError(f"{option} must be HOST:PORT")
    return parse_host_port(value, option, port_min=0)


def _flag(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{option} must be true or false")
    return value


def _number(option: str, value: object, low: float, high: float) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise UserError(f"{option} '{value}' is not a number") from None
    if not low <= number <= high:
        raise UserError(f"{option} {number:g} must be between {low:g} and {high:g}")
    return number


def _lease_ttl(option: str, value: object) -> float:
    return _number(option, value, LEASE_TTL_S_MIN, LEASE_TTL_S_MAX)


def _whole(option: str, value: object, low: int, high: int) -> int:
    number = _number(option, value, low, high)
    if number != int(number):
        raise UserError(f"{option} must be a whole number")
    return int(number)


def _threads(option: str, value: object) -> int:
    return _whole(option, value, 1, THREADS_MAX)


def _rdma_mode(option: str, value: object) -> RdmaMode:
    try:
        return RdmaMode(str(value).lower())
    except ValueError:
        raise UserError(f"{option} must be one of {', '.join(RdmaMode)}") from None


def _rdma_device(option: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= RDMA_DEVICE_CHARACTERS_MAX or "/" in value:
        raise UserError(f"{option} must be the name of an RDMA device, for example rxe0 ('rdma link' shows them)")
    return value


def _rdma_port(option: str, value: object) -> int:
    return _whole(option, value, 1, RDMA_PORT_MAX)


def _gid_index(option: str, value: object) -> int:
    return _whole(option, value, 0, GID_INDEX_MAX)


def _log_level(option: str, value: object) -> str:
    if not isinstance(value, str) or value.lower() not in LOG_LEVELS:
        raise UserError(f"{option} must be one of {', '.join(LOG_LEVELS)}")
    return value.lower()


_OPTIONS: dict[str, tuple[str, Callable[[str, object], object]]] = {
    "memory": ("memory_bytes", _size),
    "listen": ("listen", _address),
    "data_listen": ("data_listen", _address),
    "headroom": ("headroom_bytes", _size),
    "huge_pages": ("huge_pages", _flag),
    "lease_ttl_s": ("lease_ttl_s", _lease_ttl),
    "threads": ("threads", _threads),
    "rdma": ("rdma", _rdma_mode),
    "rdma_device": ("rdma_device", _rdma_device),
    "rdma_port": ("rdma_port", _rdma_port),
    "rdma_gid_index": ("rdma_gid_index", _gid_index),
    "log_level": ("log_level", _log_level),
}
OPTION_NAMES = tuple(_OPTIONS)


def default_threads() -> int:
    """Threads that carry page I/O: one for each core, up to 4."""
    return max(1, min(4, os.cpu_count() or 1))


def load_config(given: Mapping[str, object], file: Path | None = None) -> DaemonConfig:
    """The daemon that given (option name -> value, None: not given) and the TOML file describe; given wins.

    Raises UserError with one line; touches nothing.
    """
    fields: dict[str, Any] = {"threads": default_threads()}
    if file is not None:
        for key, value in read_toml(file).items():
            name = key.replace("-", "_")
            if name not in _OPTIONS:
                raise UserError(f"{file}: unknown option '{key}'; known are {', '.join(OPTION_NAMES)}")
            field, convert = _OPTIONS[name]
            fields[field] = convert(f"{file}: {name}", value)
    for name, value in given.items():
        if value is not None:
            field, convert = _OPTIONS[name]
            fields[field] = convert("--" + name.replace("_", "-"), value)
    if "memory_bytes" not in fields:
        raise UserError("--memory is missing: say how much memory to lend, for example --memory 512MiB")
    return DaemonConfig(**fields)
