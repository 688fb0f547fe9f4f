"""Descriptors run out under a flood of connections: it is told in a few lines, and what counts goes on."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from infiniswap.nbd.client import NbdClient
from tests.support.lease import leases_on_record
from tests.support.services import DAEMON, READY_TIMEOUT_S, Service, Services
from tests.support.waiting import wait_for

LIMIT = 56
FLOOD = 120
FLOOD_S = 4.0
LOG_LINES_MAX = 40
FEW = ["sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh"]


@contextlib.contextmanager
def flood(*connect: Callable[[], socket.socket]) -> Iterator[None]:
    """Connections that are idle, on each port by turns; those that the server closes are not missed."""
    with contextlib.ExitStack() as stack:
        for _ in range(FLOOD):
            for one in connect:
                with contextlib.suppress(OSError):
                    stack.enter_context(one())
        yield


def to_tcp(host: str, port: int) -> Callable[[], socket.socket]:
    """Opens a connection to a TCP port."""
    return lambda: socket.create_connection((host, port), timeout=10.0)


def to_unix(path: str) -> Callable[[], socket.socket]:
    """Opens a connection to a UNIX socket."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10.0)
        sock.connect(path)
        return sock

    return connect


def answers(ask: Callable[[], object]) -> bool:
    """Whether it does, this time."""
    try:
        ask()
    except Exception:  # noqa: BLE001 - whatever a connection that was closed makes of it
        return False
    return True


def calm(service: Service) -> None:
    """It has not filled anybody's log."""
    lines = service.log.splitlines()
    assert len(lines) <= LOG_LINES_MAX, "\n".join(lines[:100])
    assert "descriptors are left" in service.log or "cannot accept" in service.log
    assert "periodic task failed" not in service.log


@pytest.mark.parametrize("port", ["control", "pages", "both"])
def test_daemon(services: Services, port: str) -> None:
    """Its lease lives, slabs are mapped, it answers; the memory monitor goes on."""
    arguments = ["--memory", "32MiB", "--headroom", "0", "--listen", "127.0.0.1:0", "--lease-ttl-s", "4"]
    daemon = services.spawn("daemon", [*FEW, *DAEMON, *arguments, "--log-level", "info"])
    daemon.read_ready(READY_TIMEOUT_S)
    address = daemon.ready.removeprefix("http://")
    host, control_port = address.rsplit(":", 1)
    device = services.device("vol", "--map", "eager", peers=[address])
    wait_for(lambda: device.get("/v1/peers")[0]["state"] == "up", what="the lease")
    ports = {
        "control": [to_tcp(host, int(control_port))],
        "pages": [to_tcp(*_page_address(services))],
    }
    chosen = [one for name, some in ports.items() if port in (name, "both") for one in some]
    with device.connect() as client:
        client.write(0, b"a" * 4096)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 1, what="mapping")
        with flood(*chosen):
            ends_s = time.monotonic() + FLOOD_S
            for slab in range(1, 8):
                client.write(slab << 20, bytes([slab]) * 4096)
            while time.monotonic() < ends_s:
                assert client.read(0, 4096) == b"a" * 4096
                time.sleep(0.05)
            if port != "pages":
                wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 8, what="mapping", timeout_s=30.0)
        assert device.get("/v1/stats")["failures"]["peers_lost"] == 0
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 8, what="mapping", timeout_s=30.0)
    calm(daemon)
    assert device.stop() == 0


def _page_address(services: Services) -> tuple[str, int]:
    (lease,) = leases_on_record(services, "vol").values()
    return lease.host, lease.port


def test_device(services: Services) -> None:
    """Its clients and its lease live on, new ones come in afterwards, and it answers all the time."""
    daemon = services.daemon()
    device = services.device("vol", "--map", "eager", peers=[daemon], prefix=FEW)
    with device.connect() as client:
        client.write(0, b"a" * 4096)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 1, what="mapping")
        with flood(to_unix(str(device.socket)), to_unix(str(device.runtime_dir / "vol.control"))):
            ends_s = time.monotonic() + FLOOD_S
            for slab in range(1, 8):
                client.write(slab << 20, bytes([slab]) * 4096)
            while time.monotonic() < ends_s:
                assert client.read(0, 4096) == b"a" * 4096
                time.sleep(0.05)
            wait_for(lambda: answers(lambda: device.get("/v1/status")), what="an answer", timeout_s=30.0)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 8, what="mapping", timeout_s=30.0)
        assert device.get("/v1/stats")["failures"]["peers_lost"] == 0
        wait_for(lambda: answers(lambda: NbdClient(device.socket, "vol", 5.0).close()), what="a new client")
    calm(device)
    assert device.stop() == 0
