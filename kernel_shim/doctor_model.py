"""What the doctor's checks are given (facts) and what they come to (findings)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from infiniswap.kernel_shim.sysfs import SwapArea
from infiniswap.rdma.devices import Port
from infiniswap.shared.shard_names import whole_of


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. device: None for what concerns the whole host; command: what mends it, where one can."""

    name: str
    level: Level
    found: str
    why: str
    command: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaFacts:
    """What RDMA there is on this machine."""

    libibverbs: bool = False
    pyverbs: bool = False
    ports: tuple[Port, ...] = ()
    netdevs: Mapping[str, str] = field(default_factory=dict)  # by device, of soft-RoCE links
    mtu_bytes: Mapping[str, int] = field(default_factory=dict)  # by network interface

    def netdev_of(self, port: Port) -> str | None:
        """The network interface under an Ethernet port, where it can be told."""
        return port.netdev or self.netdevs.get(port.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What is true of the machine; sizes in bytes, None for what could not be read."""

    root: bool
    kernel_release: str
    nbd_loaded: bool
    nbds_max: int | None = None
    max_part: int | None = None
    io_uring_disabled: int | None = None
    io_uring_works: bool = True
    memory_total_bytes: int = 0
    min_free_bytes: int | None = None
    oom_kill_allocating_task: int | None = None
    memlock_limit_bytes: int | None = None  # None: unlimited
    huge_pages_total: int = 0
    huge_pages_free: int = 0
    huge_page_bytes: int = 2 << 20
    foreign_nbd: tuple[str, ...] = ()  # kernel devices attached by others than attach
    swaps: tuple[SwapArea, ...] = ()
    zswap: Mapping[str, str] | None = None  # its parameters; None: the kernel has none
    nbd_used: tuple[str, ...] = ()  # all that are attached, swapped to or mounted
    rdma: RdmaFacts = RdmaFacts()


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """A memory daemon as the device sees it."""

    peer: str
    up: bool
    free_bytes: int
    transport: str | None = None  # rdma or tcp; None: the device does not tell
    rdma_error: str | None = None  # why it is not rdma


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What is true of one running device service; sizes in bytes, None for what could not be read."""

    name: str
    pid: int
    size_bytes: int
    mapped_bytes: int
    backup: str
    node: str | None = None  # /dev/nbdN when attached
    swap: SwapArea | None = None
    nbd_connections: int = 0  # that attach gave the kernel
    nbd_dead: int = 0  # of these, given up by the kernel
    locked_bytes: int | None = None
    resident_bytes: int | None = None
    thread_flags: tuple[int, ...] = ()
    thread_policies: tuple[int, ...] = ()  # SCHED_…, in the same order
    oom_score_adj: int | None = None
    cgroup: str | None = None
    cgroup_swap_max: str | None = None  # as memory.swap.max has it; None: no limit there
    memlock_limit_bytes: int | None = None
    backup_devices: tuple[str, ...] = ()  # names of the block devices that the backup lies on
    backup_is_plain: bool | None = None  # None: nobody knows, or pages are not sealed anyway
    backup_is_swap: bool = False
    state_dir: str = ""
    state_file_system: str | None = None  # type, as mount(8) has it
    log_file: str | None = None  # where stderr goes when that is a file; None: elsewhere, or not to be read
    log_file_system: str | None = None
    transport: str | None = None  # auto, rdma or tcp, as configured; None: the device does not tell
    peers: tuple[PeerFacts, ...] = ()

    @property
    def whole(self) -> str:
        """The device that is started, stopped and attached: of a shard the one that it is a part of."""
        return whole_of(self.name)
