"""RDMA without hardware: verbs that keep the rules of real ones, write down what is asked, and fail when told."""

from __future__ import annotations

import errno
import ipaddress
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from infiniswap.daemon.rdma import RdmaHost, RdmaOptions
from infiniswap.daemon.rdma_lease import PROBE_BYTES
from infiniswap.daemon.verbs import Connection, VerbsError
from infiniswap.rdma.devices import Gid, GidType, Port
from infiniswap.shared.path_messages import LinkLayer, PathEnd, QueuePair

LOOPBACK = ipaddress.IPv6Address("::ffff:127.0.0.1")
OTHER_HOST = ipaddress.IPv6Address("::ffff:10.0.0.2")


def port(device: str = "rxe0", number: int = 1, state: str = "ACTIVE") -> Port:
    """A port of soft-RoCE on loopback."""
    gids = (
        Gid(0, ipaddress.IPv6Address("::1"), GidType.ROCE_V2, "lo"),
        Gid(1, LOOPBACK, GidType.ROCE_V2, "lo"),
    )
    return Port(device, number, LinkLayer.ETHERNET, state, 0, gids)


def remote_end(gid: ipaddress.IPv6Address = LOOPBACK, mtu_bytes: int = 4096, reads_max: int = 16) -> PathEnd:
    """What a device sends."""
    return PathEnd(LinkLayer.ETHERNET, gid, 0, mtu_bytes, reads_max, (QueuePair(17, 1000), QueuePair(18, 2000)))


@dataclass
class FakeRegion:
    """A registration."""

    domain: FakeDomain
    address: int
    length: int
    rkey: int

    def close(self) -> None:
        verbs = self.domain.device.verbs
        if self.rkey not in verbs.regions:
            return
        if verbs.keep_regions or self.rkey in verbs.kept_keys:
            raise VerbsError("memory cannot be deregistered: Device or resource busy", errno.EBUSY)
        verbs.journal.append(f"deregister {self.address:#x}")
        del verbs.regions[self.rkey]


@dataclass
class FakePair:
    """A queue pair."""

    domain: FakeDomain
    number: int
    connection: Connection | None = None
    failed: bool = False

    def connect(self, connection: Connection) -> None:
        if self.domain.device.verbs.refuse_connections:
            raise VerbsError("a queue pair cannot be connected: Invalid argument", errno.EINVAL)
        self.connection = connection

    def broken(self) -> bool:
        return self.failed or self.connection is None

    def close(self) -> None:
        verbs = self.domain.device.verbs
        if self not in self.domain.pairs:
            return
        if verbs.keep_pairs:
            raise VerbsError("a queue pair cannot be destroyed: Device or resource busy", errno.EBUSY)
        verbs.journal.append(f"destroy pair {self.number}")
        self.domain.pairs.remove(self)


@dataclass(eq=False)
class FakeDomain:
    """A protection domain; like a real one it cannot be closed while something of it is there."""

    device: FakeDevice
    pairs: list[FakePair] = field(default_factory=list)
    closed: bool = False

    def register(self, address: int, length: int) -> FakeRegion:
        verbs = self.device.verbs
        assert not self.closed
        if verbs.refuse_registrations:
            raise VerbsError(f"registering memory: error {verbs.refuse_registrations}", verbs.refuse_registrations)
        if verbs.refuse_slabs and length > PROBE_BYTES:
            raise VerbsError(f"registering memory: error {verbs.refuse_slabs}", verbs.refuse_slabs)
        region = FakeRegion(self, address, length, next(verbs.numbers))
        verbs.regions[region.rkey] = region
        verbs.journal.append(f"register {address:#x}")
        return region

    def queue_pair(self) -> FakePair:
        assert not self.closed
        pair = FakePair(self, next(self.device.verbs.numbers))
        self.pairs.append(pair)
        return pair

    def close(self) -> None:
        verbs = self.device.verbs
        if self.closed:
            return
        if self.pairs or any(region.domain is self for region in verbs.regions.values()):
            raise VerbsError("a protection domain cannot be closed: Device or resource busy", errno.EBUSY)
        verbs.journal.append("close domain")
        self.closed = True


@dataclass(eq=False)
class FakeDevice:
    """An opened device."""

    verbs: FakeVerbs
    name: str
    reads_max: int = 128
    mtu: int = 1024
    answers: bool = True
    domains: list[FakeDomain] = field(default_factory=list)

    def mtu_bytes(self, port: int) -> int:
        assert port == 1
        return self.mtu

    def alive(self) -> bool:
        return self.answers

    def protection_domain(self) -> FakeDomain:
        domain = FakeDomain(self)
        self.domains.append(domain)
        return domain

    def close(self) -> None:
        self.verbs.journal.append("close device")
        self.verbs.open_devices.remove(self)


@dataclass
class FakeVerbs:
    """libibverbs with the devices of one host."""

    ports: tuple[Port, ...] = (port(),)
    removing: bool = False  # the device is on its way out: not in sysfs any more, though it still works
    refuse_open: bool = False
    refuse_registrations: int = 0  # an errno
    refuse_slabs: int = 0  # an errno: a probe is small enough to be registered
    refuse_connections: bool = False
    keep_regions: bool = False
    keep_pairs: bool = False
    kept_keys: set[int] = field(default_factory=set)
    journal: list[str] = field(default_factory=list)
    regions: dict[int, FakeRegion] = field(default_factory=dict)  # by key
    open_devices: list[FakeDevice] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(100))

    def open(self, name: str) -> FakeDevice:
        if self.refuse_open:
            raise VerbsError(f"RDMA device {name} cannot be opened: Permission denied", errno.EACCES)
        device = FakeDevice(self, name)
        self.open_devices.append(device)
        self.journal.append(f"open {name}")
        return device

    @property
    def pairs(self) -> list[FakePair]:
        """All queue pairs there are."""
        return [pair for device in self.open_devices for domain in device.domains for pair in domain.pairs]

    def registered(self, address: int) -> bool:
        """Whether some key opens the memory at address."""
        return any(region.address <= address < region.address + region.length for region in self.regions.values())

    def list_ports(self) -> tuple[Port, ...]:
        return () if self.removing else self.ports

    def device_names(self) -> frozenset[str]:
        return frozenset(known.device for known in self.list_ports())

    def host(self, clock: Callable[[], float], options: RdmaOptions | None = None) -> RdmaHost:
        """A host that has these devices, not looked for yet."""
        return RdmaHost(
            options or RdmaOptions(),
            load=lambda: self,
            ports=self.list_ports,
            names=self.device_names,
            clock=clock,
        )
