"""What a device is asked to be: options from a TOML file and the command line, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infiniswap.device.limits import (
    DEVICE_BYTES_MAX,
    PAGE_BYTES,
    PENDING_BYTES_MAX,
    PENDING_BYTES_MIN,
    REQUEST_DEADLINE_MS_DEFAULT,
    SLAB_BYTES_MAX,
    SLAB_BYTES_MIN,
    SLABS_MAX,
)
from infiniswap.device.options import OPTIONS
from infiniswap.identity.files import TlsFields, find_identity
from infiniswap.kernel_shim.attach_options import ATTACH_OPTIONS
from infiniswap.shared import paths
from infiniswap.shared.address import HostPort, check_name
from infiniswap.shared.errors import UserError
from infiniswap.shared.layers import Source, Stated, convert, read_layers
from infiniswap.shared.shard_names import is_shard, whole_of
from infiniswap.shared.sizes import format_size

SECTIONS = {"": OPTIONS, "attach": ATTACH_OPTIONS}
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig(TlsFields):
    """A checked device: every value is in range by itself and with the others. Build it with load_config()."""

    name: str
    size_bytes: int
    backup: Path
    backup_layout: str
    backup_log_space_percent: int
    shards: int
    socket_path: Path
    state_dir: Path
    runtime_dir: Path
    slab_bytes: int
    peers: tuple[HostPort, ...]
    tcp: tuple[HostPort, ...]
    web: HostPort | None  # None: no web page
    map_policy: str
    hot_page_ios: float
    cold_page_ios: float | None
    pending_limit_bytes: int
    sparse: bool
    lock_memory: bool
    real_time: bool  # with lock_memory
    accept_backup: bool
    adopt_image: bool
    backup_engine: str
    backup_depth: int
    on_backup_error: str
    writeback_delay_ms: int
    connections_max: int
    peer_timeout_ms: int
    peer_grace_ms: int
    request_deadline_ms: int
    prefetch: str
    client_stall_timeout_ms: int
    encrypt: bool | None  # None: see reach.py
    encrypt_key_file: Path | None  # None: the key is kept where only memory keeps it, or nowhere
    transport: str
    rdma_device: str | None
    rdma_port: int | None
    rdma_gid_index: int | None
    rdma_poll_us: int
    recovery_timeout_s: float
    stop_timeout_s: float
    peers_max: int | None  # None: see slots
    discover_file: Path | None
    discover_dns: str | None
    discover_server: HostPort | None  # None: those of /etc/resolv.conf
    discover_grace_s: float
    trace_least_us: int
    metrics_listen: HostPort | None  # None: /metrics is on the control socket alone
    log_level: str
    log_format: str

    @property
    def discovers(self) -> bool:
        """Whether peers come and go by discovery."""
        return self.discover_file is not None or self.discover_dns is not None

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


@dataclass(frozen=True, slots=True)
class Loaded:
    """A device, and where each option that anybody stated was stated; attach.KEY are those of 'device attach'."""

    config: DeviceConfig
    stated: Mapping[str, Stated]


def load_config(name: str | None, given: Mapping[str, object], file: Path | None = None) -> DeviceConfig:
    """See load()."""
    return load(name, given, file).config


def load(
    name: str | None,
    given: Mapping[str, object],
    file: Path | None = None,
    *,
    last: Mapping[str, object] = _NOTHING,
    changed: Mapping[str, Stated] = _NOTHING,
    mistakes: list[str] | None = None,
) -> Loaded:
    """The device that `given` (option name -> value, names as in OPTIONS) and a TOML file with its drop-ins describe.

    A value of None or an empty sequence counts as not given; numbers and sizes may be text. What counts: changed (at
    run time), else given, else last (given at the last start), else the last of the files that states it. The file may
    carry the name as `name`. Raises UserError with one line, the first mistake; mistakes: gets them all, before.
    Touches nothing.
    """
    stated = read_file(file)
    if (named := stated.pop("name", None)) is not None:
        if not isinstance(named.value, str):
            raise UserError(f"{named.where}: name must be a string")
        if name is not None and whole_of(name) != named.value:
            raise UserError(f"{named.where}: describes device '{named.value}', not '{name}'")
        name = name or named.value
    stated.update(command_line(last, Source.LAST_START))
    stated.update(command_line(given))
    stated.update(changed)
    if name is None:
        raise UserError("the device has no name; give one")
    fields: dict[str, Any] = {"name": check_name(name), **convert(stated, SECTIONS, mistakes)}
    return Loaded(_complete(fields), stated)


def read_file(file: Path | None) -> dict[str, Stated]:
    """What a device's file and its drop-ins state, the name among it; UserError."""
    return {} if file is None else read_layers(file, SECTIONS, free=("name",))


def command_line(given: Mapping[str, object], source: Source = Source.COMMAND_LINE) -> dict[str, Stated]:
    """Those of given that are given, by the options' own names; UserError for unknown ones and those given twice."""
    found: dict[str, Stated] = {}
    for key, value in given.items():
        if value is None or value in ((), []):
            continue
        name = OPTIONS.find(key).name
        if name in found:
            raise UserError(f"option '{key}' is given twice")
        found[name] = Stated(value, source)
    return found


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
    find_identity(fields)
    if is_shard(fields["name"]):
        fields["metrics_listen"] = None  # its parent is there, for all of them
    config = DeviceConfig(**{**OPTIONS.defaults(), **fields})
    _check_sizes(config)
    _check_paths(config)
    _ = config.tls  # complains of what is half given
    if config.request_deadline_ms > config.peer_timeout_ms:
        raise UserError(
            f"--request-deadline-ms {config.request_deadline_ms} must not exceed --peer-timeout-ms "
            f"{config.peer_timeout_ms}: a peer silent for so long is lost already"
        )
    if config.encrypt_key_file is not None and config.encrypt is False:
        raise UserError("--encrypt-key-file is given with --no-encrypt: no page would be sealed")
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
    if config.shards > 1 and size % (slab * config.shards):
        unit = slab * config.shards
        near = " or ".join(format_size(n * unit) for n in (size // unit, size // unit + 1) if n)
        raise UserError(
            f"--size {format_size(size)} does not divide into {config.shards} shards of whole slabs of "
            f"{format_size(slab)}; {near} does"
        )
    if pending % PAGE_BYTES or not PENDING_BYTES_MIN <= pending <= PENDING_BYTES_MAX:
        low, high = format_size(PENDING_BYTES_MIN), format_size(PENDING_BYTES_MAX)
        raise UserError(
            f"--pending-limit {format_size(pending)} must be a multiple of {PAGE_BYTES} bytes between {low} and {high}"
        )
    if pending // config.shards < PENDING_BYTES_MIN:
        raise UserError(
            f"--pending-limit {format_size(pending)} leaves each of {config.shards} shards less than "
            f"{format_size(PENDING_BYTES_MIN)}"
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
