"""Losing daemons under load: the client sees no error and no wrong byte, and daemons that come back are used again."""

from __future__ import annotations

import time

from tests.device.support import mapped, pattern
from tests.support.services import Daemon, Services
from tests.support.waiting import wait_for


def restart(services: Services, daemon: Daemon) -> Daemon:
    """A new daemon on the address of a dead one."""
    return services.daemon("64MiB", "--listen", daemon.address)


def test_no_daemon_at_the_start(services: Services) -> None:
    """The device serves at once, says so, and uses the daemon when it comes."""
    services.expect_log("cannot connect: Connection refused")
    gone = services.daemon()
    gone.stop()
    started_s = time.monotonic()
    device = services.device("vol", "--map", "eager", peers=[gone.address])
    assert time.monotonic() - started_s < 25.0
    assert f"peer {gone.address}: cannot connect" in device.log
    data = pattern(64)
    with device.connect() as client:
        client.write(0, data)
        assert client.read(0, len(data)) == data
        restart(services, gone)
        wait_for(lambda: mapped(device) == {0}, what="mapping", timeout_s=30.0)
        client.write(0, data[::-1])
        assert client.read(0, len(data)) == data[::-1]


def test_no_peers_at_all(services: Services) -> None:
    """A device without peers is a slow disk, with a warning."""
    device = services.device()
    assert "no peers are configured" in device.log
    with device.connect() as client:
        client.write(0, b"alone")
        assert client.read(0, 5) == b"alone"
