"""Fixtures: three daemons, a lease of one and two devices over all of them, and each export as a target for clients.

Every client meets both layouts of a backup: the device on a UNIX socket has an image, the one on TCP a log.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.target import SIZE_BYTES, SLAB_BYTES, Site, Target
from tests.support.lease import take_lease
from tests.support.services import READY_TIMEOUT_S, Services

TARGETS = ("device", "device-tcp", "lease")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Daemon, device and lease; ended in order after the last test."""
    folder = Path(tempfile.mkdtemp(prefix="isw-"))
    try:
        with Services(folder) as services:
            # What clients are made to ask for, and to do wrong.
            services.expect_log("a client asked for an export that is not here", "clients sent .* that are not allowed")
            daemons = [services.daemon("64MiB", "--lease-ttl-s", "3600", ready=False) for _ in range(3)]
            for daemon in daemons:
                daemon.read_ready(READY_TIMEOUT_S)
            device = services.device("disk", "--map", "eager", size="32MiB", peers=daemons)
            on_tcp = ("--tcp", "127.0.0.1:0", "--backup-layout", "log")
            tcp_device = services.device("log", "--map", "eager", *on_tcp, size="32MiB", peers=daemons)
            host, port = tcp_device.get("/v1/status")["tcp"][0].split(":")
            lease = take_lease(daemons[0], SIZE_BYTES, SLAB_BYTES)
            yield Site(daemons[0], device, tcp_device, (host, int(port)), lease)
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
        uri, name = "nbd://{}:{}/log".format(*site.device_tcp), "log"
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
