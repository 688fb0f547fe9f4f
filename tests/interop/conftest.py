"""Fixtures: three daemons, a lease of one and a device over all of them, and each export as a target for clients."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbd
import pytest

from tests.support.lease import TakenLease, take_lease
from tests.support.services import READY_TIMEOUT_S, Daemon, Device, Services

SIZE_BYTES = 32 << 20
SLAB_BYTES = 1 << 20
TARGETS = ("device", "device-tcp", "lease")


@dataclass(frozen=True)
class Site:
    """What runs for all tests of a worker."""

    daemon: Daemon
    device: Device
    device_tcp: tuple[str, int]
    lease: TakenLease


@dataclass(frozen=True)
class Target:
    """An export that any NBD client may use: SIZE_BYTES, zeroes at first."""

    kind: str
    uri: str
    name: str
    site: Site

    @property
    def server(self) -> str:
        """URI without the export's name."""
        if self.kind == "device":
            return f"nbd+unix:///?socket={self.site.device.socket}"
        host, port = self.site.device_tcp if self.kind == "device-tcp" else (self.site.lease.host, self.site.lease.port)
        return f"nbd://{host}:{port}"

    @property
    def device(self) -> Device | None:
        """The device behind it; None: a daemon's lease."""
        return None if self.kind == "lease" else self.site.device

    def connect(self) -> nbd.NBD:
        """A new connection with everything that libnbd asks for by default, and base:allocation."""
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        self.connect_handle(handle)
        return handle

    def connect_handle(self, handle: nbd.NBD) -> None:
        """Connect a handle that was prepared in another way; in option mode it goes no further than that."""
        if self.kind == "device":
            handle.set_export_name(self.name)
            handle.connect_unix(str(self.site.device.socket))
            return
        host, port = self.site.device_tcp if self.kind == "device-tcp" else (self.site.lease.host, self.site.lease.port)
        handle.set_export_name(self.name)
        handle.connect_tcp(host, str(port))


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Daemon, device and lease; ended in order after the last test."""
    folder = Path(tempfile.mkdtemp(prefix="isw-"))
    try:
        with Services(folder) as services:
            daemons = [services.daemon("64MiB", "--lease-ttl-s", "3600", ready=False) for _ in range(3)]
            for daemon in daemons:
                daemon.read_ready(READY_TIMEOUT_S)
            device = services.device("disk", "--map", "eager", "--tcp", "127.0.0.1:0", size="32MiB", peers=daemons)
            host, port = device.get("/v1/status")["tcp"][0].split(":")
            lease = take_lease(daemons[0], SIZE_BYTES, SLAB_BYTES)
            yield Site(daemons[0], device, (host, int(port)), lease)
            lease.release()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, site: Site) -> Iterator[Target]:
    """Each kind of export. After the test it still serves, and nobody is connected any more."""
    kind = request.param
    if kind == "device":
        uri, name = site.device.uri, "disk"
    elif kind == "device-tcp":
        uri, name = "nbd://{}:{}/disk".format(*site.device_tcp), "disk"
    else:
        uri, name = site.lease.uri, site.lease.export
    made = Target(kind, uri, name, site)
    handle = made.connect()
    handle.zero(SIZE_BYTES, 0)
    handle.shutdown()
    yield made
    handle = made.connect()
    assert len(handle.pread(4096, SIZE_BYTES - 4096)) == 4096
    handle.shutdown()
