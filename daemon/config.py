"""What the daemon is asked to be: options from a TOML file and the command line, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infiniswap.daemon.operators import Operators
from infiniswap.daemon.options import OPTIONS, MemoryAmount
from infiniswap.daemon.quotas import Rule
from infiniswap.daemon.rdma import RdmaMode, RdmaOptions
from infiniswap.identity.files import TlsFields, find_identity
from infiniswap.identity.roles import Roles
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import UserError
from infiniswap.shared.layers import Source, Stated, convert, read_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig(TlsFields):
    """A checked daemon: each value is in range; what the host can give is found out when it starts."""

    memory: MemoryAmount
    listen: HostPort
    data_listen: HostPort | None  # None: see ports.py
    web: HostPort | None  # None: no web page
    headroom: MemoryAmount | None  # None: the larger of 10 % of the host's memory and 512 MiB
    lease_bytes_max: int | None  # None: no quota
    huge_pages: bool
    lease_ttl_s: float
    keep_memory: Path | None  # None: systemd's fd store, where there is one
    lease_grace_s: float | None  # None: as long as lease_ttl_s
    stop_timeout_s: float  # 0: a stop waits for no device
    operators: Operators
    threads: int
    rdma: RdmaMode
    rdma_device: str | None  # None: one that fits is found, as with port and GID
    rdma_port: int | None
    rdma_gid_index: int | None
    fuses: int
    lock_memory: bool
    may_borrow: tuple[str, ...]  # empty, as the next two: see roles.py
    may_look: tuple[str, ...]
    may_drain: tuple[str, ...]
    quotas: tuple[Rule, ...]  # empty: quotas.DEFAULT for every host
    metrics_listen: HostPort | None  # None: /metrics is on the control API alone
    log_level: str
    log_format: str

    @property
    def roles(self) -> Roles:
        """Who may do what, by the names in certificates."""
        return Roles(self.may_borrow or None, self.may_look or None, self.may_drain or None)

    @property
    def grace_s(self) -> float:
        """How long a lease is kept after its time has run out."""
        return self.lease_ttl_s if self.lease_grace_s is None else self.lease_grace_s

    @property
    def rdma_options(self) -> RdmaOptions:
        """All that is asked of RDMA."""
        return RdmaOptions(self.rdma, self.rdma_device, self.rdma_port, self.rdma_gid_index)


def default_threads() -> int:
    """Threads that carry page I/O: one for each core, up to 4."""
    return max(1, min(4, os.cpu_count() or 1))


SECTIONS = {"": OPTIONS}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A daemon, and where each option that anybody stated was stated."""

    config: DaemonConfig
    stated: Mapping[str, Stated]


def load_config(given: Mapping[str, object], file: Path | None = None) -> DaemonConfig:
    """See load()."""
    return load(given, file).config


def load(
    given: Mapping[str, object],
    file: Path | None = None,
    *,
    changed: Mapping[str, Stated] | None = None,
    mistakes: list[str] | None = None,
) -> Loaded:
    """The daemon that given (option name -> value, None: not given) and the TOML file with its drop-ins describe.

    What counts: changed (at run time), else given, else the last of the files that states it. Raises UserError with one
    line, the first mistake; mistakes: gets them all, before. Touches nothing.
    """
    stated = {} if file is None else read_layers(file, SECTIONS)
    for name, value in given.items():
        if value is not None:
            stated[OPTIONS.find(name).name] = Stated(value, Source.COMMAND_LINE)
    stated.update(changed or {})
    fields: dict[str, Any] = {**OPTIONS.defaults(), "threads": default_threads()}
    fields.update(convert(stated, SECTIONS, mistakes))
    if "memory" not in fields:
        raise UserError("--memory is missing: say how much memory to lend, for example 512MiB or auto")
    find_identity(fields)
    config = DaemonConfig(**fields)
    if config.tls is None and (config.roles != Roles() or config.quotas):
        raise UserError(
            "--may-borrow, --may-look, --may-drain and --quota go by certificates: they need --tls-dir, or --tls-cert"
        )
    return Loaded(config, stated)
