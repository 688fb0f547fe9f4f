"""What a device is asked to be: options from a TOML file and the command line, checked before anything is touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infiniswap.shared import paths
from infiniswap.shared.address import HostPort, check_name, parse_host_port
from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import format_size, parse_size
from infiniswap.shared.toml_file import read_toml

PAGE_BYTES = 4096
SLAB_BYTES_MIN = 1 << 20
SLAB_BYTES_MAX = 1 << 30
SLAB_BYTES_DEFAULT = 64 << 20
DEVICE_BYTES_MAX = 16 << 40
SLABS_MAX = 1 << 18  # also the most that a daemon grants one lease
PENDING_BYTES_MIN = 1 << 20
PENDING_BYTES_MAX = 64 << 30
PENDING_BYTES_DEFAULT = 64 << 20
PEERS_MAX = 64  # ISW_PEERS_MAX of the engine
TCP_LISTENERS_MAX = 16
HOT_PAGE_IOS_DEFAULT = 20.0  # HotSlab of the paper, section 4.3
# What a peer has not answered by then goes another way. A fifth of the kernel's own deadline (10 s in device attach),
# for a request may wait for another first, and for the backup afterwards.
REQUEST_DEADLINE_MS_DEFAULT = 2000
MAP_POLICIES = ("hot", "eager", "never")
BACKUP_ENGINES = ("auto", "io_uring", "threads")
TRANSPORTS = ("auto", "rdma", "tcp")
ON_BACKUP_ERROR = ("degrade", "stop")
SCRUB_BYTES_S_MIN = PAGE_BYTES
SCRUB_BYTES_S_MAX = 1 << 40
SCRUB_BYTES_S_DEFAULT = 64 << 20
RDMA_POLL_US_DEFAULT = 50  # many round trips of a real network, and less than waking up costs


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """A checked device: every value is in range by itself and with the others. Build it with load_config()."""

    name: str
    size_bytes: int
    backup: Path
    socket_path: Path
    state_dir: Path
    runtime_dir: Path
    slab_bytes: int = SLAB_BYTES_DEFAULT
    peers: tuple[HostPort, ...] = ()
    tcp: tuple[HostPort, ...] = ()
    map_policy: str = "hot"
    hot_page_ios: float = HOT_PAGE_IOS_DEFAULT
    cold_page_ios: float | None = None
    pending_limit_bytes: int = PENDING_BYTES_DEFAULT
    sparse: bool = False
    lock_memory: bool = False
    accept_backup: bool = False
    adopt_image: bool = False
    backup_engine: str = "auto"
    backup_depth: int = 64
    on_backup_error: str = "degrade"
    writeback_delay_ms: int = 20
    connections_max: int = 64
    peer_timeout_ms: int = 3000
    request_deadline_ms: int = REQUEST_DEADLINE_MS_DEFAULT
    client_stall_timeout_ms: int = 60000
    transport: str = "auto"
    rdma_device: str | None = None
    rdma_port: int | None = None
    rdma_gid_index: int | None = None
    rdma_poll_us: int = RDMA_POLL_US_DEFAULT
    recovery_timeout_s: float = 15.0
    stop_timeout_s: float = 1800.0

    @property
    def slabs(self) -> int:
        """Number of slabs; the last one may be cut short by the device's end."""
        return -(-self.size_bytes // self.slab_bytes)

    @property
    def control_path(self) -> Path:
        """UNIX socket of the control API."""
        return paths.control_socket(self.runtime_dir, self.name)

    @property
    def lock_path(self) -> Path:
        """File whose flock holds the name."""
        return paths.lock_file(self.runtime_dir, self.name)

    @property
    def device_dir(self) -> Path:
        """Folder of this device's state file and leases."""
        return paths.device_state_dir(self.state_dir, self.name)


def _boolean(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{what} must be true or false, not '{value}'")
    return value


def _number(what: str, value: object, lowest: float, highest: float) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not lowest <= number <= highest:
        raise UserError(f"{what} '{value}' must be a number between {lowest:g} and {highest:g}")
    return number


def _integer(lowest: int, highest: int) -> Callable[[str, object], int]:
    def convert(what: str, value: object) -> int:
        number = _number(what, value, lowest, highest)
        if number != int(number):
            raise UserError(f"{what} '{value}' must be a whole number")
        return int(number)

    return convert


def _float(lowest: float, highest: float) -> Callable[[str, object], float]:
    return lambda what, value: _number(what, value, lowest, highest)


def _size(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UserError(f"{what} '{value}' is not a size; write for example 64MiB")
    try:
        return parse_size(value)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def _path(what: str, value: object) -> Path:
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not text or "\0" in text or "\n" in text:
        raise UserError(f"{what} must be a path, not '{value!r}'")
    return Path(text).absolute()


def _word(what: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,63}", value, re.ASCII):
        raise UserError(f"{what} '{value}' is no device name; see infiniswap rdma list")
    return value


def _choice(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    def convert(what: str, value: object) -> str:
        if value not in choices:
            raise UserError(f"{what} '{value}' must be one of {', '.join(choices)}")
        return str(value)

    return convert


def _addresses(most: int, port_min: int) -> Callable[[str, object], tuple[HostPort, ...]]:
    def convert(what: str, value: object) -> tuple[HostPort, ...]:
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [str(value)]
        if len(texts) > most:
            raise UserError(f"{what}: {len(texts)} given, the most is {most}")
        found: list[HostPort] = []
        for text in texts:
            address = parse_host_port(str(text), what, port_min=port_min)
            if address.port and address in found:
                raise UserError(f"{what} '{address}' is given twice; name each once")
            found.append(address)
        return tuple(found)

    return convert


@dataclass(frozen=True, slots=True)
class _Option:
    field: str
    convert: Callable[[str, object], Any]


# Option name in TOML (and, with hyphens, on the command line) to field and check.
_OPTIONS: dict[str, _Option] = {
    "size": _Option("size_bytes", _size),
    "slab_size": _Option("slab_bytes", _size),
    "backup": _Option("backup", _path),
    "peers": _Option("peers", _addresses(PEERS_MAX, 1)),
    "socket": _Option("socket_path", _path),
    "tcp": _Option("tcp", _addresses(TCP_LISTENERS_MAX, 0)),
    "state_dir": _Option("state_dir", _path),
    "runtime_dir": _Option("runtime_dir", _path),
    "map": _Option("map_policy", _choice(MAP_POLICIES)),
    "hot_page_ios": _Option("hot_page_ios", _float(0.01, 1e9)),
    "cold_page_ios": _Option("cold_page_ios", _float(0, 1e9)),
    "pending_limit": _Option("pending_limit_bytes", _size),
    "sparse": _Option("sparse", _boolean),
    "lock_memory": _Option("lock_memory", _boolean),
    "accept_backup": _Option("accept_backup", _boolean),
    "adopt_image": _Option("adopt_image", _boolean),
    "backup_engine": _Option("backup_engine", _choice(BACKUP_ENGINES)),
    "backup_depth": _Option("backup_depth", _integer(1, 256)),
    "on_backup_error": _Option("on_backup_error", _choice(ON_BACKUP_ERROR)),
    "writeback_delay_ms": _Option("writeback_delay_ms", _integer(0, 60_000)),
    "connections_max": _Option("connections_max", _integer(1, 1024)),
    "peer_timeout_ms": _Option("peer_timeout_ms", _integer(10, 600_000)),
    "request_deadline_ms": _Option("request_deadline_ms", _integer(10, 600_000)),
    "client_stall_timeout_ms": _Option("client_stall_timeout_ms", _integer(100, 3_600_000)),
    "transport": _Option("transport", _choice(TRANSPORTS)),
    "rdma_device": _Option("rdma_device", _word),
    "rdma_port": _Option("rdma_port", _integer(1, 255)),
    "rdma_gid_index": _Option("rdma_gid_index", _integer(0, 255)),
    "rdma_poll_us": _Option("rdma_poll_us", _integer(0, 10_000)),
    "recovery_timeout_s": _Option("recovery_timeout_s", _float(0, 600)),
    "stop_timeout_s": _Option("stop_timeout_s", _float(1, 86_400)),
}
OPTION_NAMES = tuple(_OPTIONS)
_SINGULAR = {"peer": "peers", "slab": "slab_size", "map_policy": "map", "accept_stale_backup": "accept_backup"}


def load_config(name: str | None, given: Mapping[str, object], file: Path | None = None) -> DeviceConfig:
    """The device that `given` (option name -> value, as in OPTION_NAMES) and a TOML file describe.

    A value of None or an empty sequence counts as not given; given wins over the file; numbers and sizes may be text.
    The file may carry the name as `name`. Raises UserError with one line; touches nothing.
    """
    values: dict[str, object] = {}
    if file is not None:
        table = read_toml(file)
        file_name = table.pop("name", None)
        if file_name is not None and not isinstance(file_name, str):
            raise UserError(f"{file}: name must be a string")
        if name is not None and file_name is not None and name != file_name:
            raise UserError(f"{file} describes device '{file_name}', not '{name}'")
        name = name if name is not None else file_name
        values.update(_named(table, f"{file}: "))
    values.update(_named({k: v for k, v in given.items() if v is not None and v != () and v != []}, ""))
    if name is None:
        raise UserError("the device has no name; give one")
    fields: dict[str, Any] = {"name": check_name(name)}
    for key, value in values.items():
        option = _OPTIONS[key]
        fields[option.field] = option.convert(_shown(key), value)
    return _complete(fields)


def _shown(key: str) -> str:
    return "--peer" if key == "peers" else "--" + key.replace("_", "-")


def _named(table: Mapping[str, object], where: str) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in table.items():
        known = key.replace("-", "_")
        known = _SINGULAR.get(known, known)
        if known not in _OPTIONS:
            raise UserError(f"{where}unknown option '{key}'; known are {', '.join(OPTION_NAMES)}")
        if known in values:
            raise UserError(f"{where}option '{key}' is given twice")
        values[known] = value
    return values


def _complete(fields: dict[str, Any]) -> DeviceConfig:
    """Fill defaults that depend on others and check what holds between values."""
    for needed, option in (("size_bytes", "--size"), ("backup", "--backup")):
        if needed not in fields:
            raise UserError(f"{option} is missing; a device needs a size and a backup")
    fields.setdefault("state_dir", paths.default_state_dir().absolute())
    fields.setdefault("runtime_dir", paths.default_runtime_dir().absolute())
    fields.setdefault("socket_path", paths.nbd_socket(fields["runtime_dir"], fields["name"]))
    if "peer_timeout_ms" in fields:
        fields.setdefault("request_deadline_ms", min(REQUEST_DEADLINE_MS_DEFAULT, fields["peer_timeout_ms"]))
    config = DeviceConfig(**fields)
    _check_sizes(config)
    _check_paths(config)
    if config.request_deadline_ms > config.peer_timeout_ms:
        raise UserError(
            f"--request-deadline-ms {config.request_deadline_ms} must not exceed --peer-timeout-ms "
            f"{config.peer_timeout_ms}: a peer silent for so long is lost already"
        )
    if config.cold_page_ios is not None and config.cold_page_ios >= config.hot_page_ios:
        raise UserError(
            f"--cold-page-ios {config.cold_page_ios:g} must be below --hot-page-ios {config.hot_page_ios:g}, "
            "or slabs would be mapped and given up in turn"
        )
    return config


def _check_sizes(config: DeviceConfig) -> None:
    size, slab, pending = config.size_bytes, config.slab_bytes, config.pending_limit_bytes
    if size == 0:
        raise UserError("--size must not be zero")
    if size % PAGE_BYTES:
        near = format_size(-(-size // PAGE_BYTES) * PAGE_BYTES)
        raise UserError(f"--size {size} is not a multiple of the page of {PAGE_BYTES} bytes; the next that is: {near}")
    if size > DEVICE_BYTES_MAX:
        raise UserError(f"--size {format_size(size)} is too large; the most is {format_size(DEVICE_BYTES_MAX)}")
    if slab & (slab - 1) or not SLAB_BYTES_MIN <= slab <= SLAB_BYTES_MAX:
        low, high = format_size(SLAB_BYTES_MIN), format_size(SLAB_BYTES_MAX)
        raise UserError(f"--slab-size {format_size(slab)} must be a power of two between {low} and {high}")
    if config.slabs > SLABS_MAX:
        least = 1 << (-(-size // SLABS_MAX) - 1).bit_length()
        raise UserError(
            f"--slab-size {format_size(slab)} cuts the device into {config.slabs} slabs, the most is {SLABS_MAX}; "
            f"take at least {format_size(least)}"
        )
    if pending % PAGE_BYTES or not PENDING_BYTES_MIN <= pending <= PENDING_BYTES_MAX:
        low, high = format_size(PENDING_BYTES_MIN), format_size(PENDING_BYTES_MAX)
        raise UserError(
            f"--pending-limit {format_size(pending)} must be a multiple of {PAGE_BYTES} bytes between {low} and {high}"
        )


def _check_paths(config: DeviceConfig) -> None:
    for path in (config.socket_path, config.control_path):
        if len(str(path).encode()) > paths.UNIX_PATH_BYTES_MAX:
            raise UserError(f"socket path {path} is longer than {paths.UNIX_PATH_BYTES_MAX} bytes; choose another")
    if config.socket_path in (config.control_path, config.lock_path):
        raise UserError(f"--socket {config.socket_path} is the device's own control socket or lock; choose another")
    if config.backup in (config.socket_path, config.control_path, config.lock_path):
        raise UserError(f"--backup {config.backup} is one of the device's sockets; choose another")
    if config.backup.is_relative_to(config.device_dir):
        raise UserError(f"--backup {config.backup} lies in the device's state folder; choose another place")
