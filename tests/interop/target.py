"""An export that any NBD client may use."""

from __future__ import annotations

from dataclasses import dataclass

import nbd

from tests.support.lease import TakenLease
from tests.support.services import Daemon, Device

SIZE_BYTES = 32 << 20
SLAB_BYTES = 1 << 20


@dataclass(frozen=True)
class Site:
    """What runs for all tests of a worker."""

    daemon: Daemon
    device: Device  # on a UNIX socket, its backup an image
    tcp_device: Device  # on TCP too, its backup a log
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
        return {"lease": None, "device": self.site.device, "device-tcp": self.site.tcp_device}[self.kind]

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
