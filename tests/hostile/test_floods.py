"""Floods from strangers: no lease ends by them, its pages are right, and who has a right to be served is served."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator

import pytest

from infiniswap.daemon.page_slots import LEASE_SHARE
from infiniswap.nbd.client import NbdClient
from tests.support.floods import STRANGER, Flood, descriptors
from tests.support.lease import leases_on_record, take_lease
from tests.support.rawclient import FLUSH, ClosedError, RawClient
from tests.support.services import Daemon, Device, Services
from tests.support.waiting import wait_for

MIB = 1 << 20
TTL_S = 3
SLABS = 6
KEPT = 600  # more than control has connections
OPENED = 1200
SPEECHES = {
    "silent": b"",
    "half a head": b"GET /v1/offer HTTP/1.1\r\nHost:",
    "no body": b"POST /v1/leases HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{",
}


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """For all the sockets."""
    with descriptors(4 * KEPT):
        yield


@pytest.fixture
def daemon(services: Services) -> Daemon:
    """Whose leases end soon without heartbeats."""
    return services.daemon("64MiB", "--lease-ttl-s", str(TTL_S), "--lease-grace-s", "0")


def control_of(daemon: Daemon) -> tuple[str, int]:
    """Where it is asked."""
    host, port = daemon.address.rsplit(":", 1)
    return host, int(port)


def mapped(device: Device, client: NbdClient, seed: int) -> dict[int, bytes]:
    """Random pages in each of SLABS slabs, all of them at the daemon; what was written where."""
    rng = random.Random(seed)
    written = {slab * MIB: rng.randbytes(8192) for slab in range(SLABS)}
    for offset, data in written.items():
        client.write(offset, data)
    wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == SLABS, what="mapping", timeout_s=30.0)
    for offset, data in written.items():
        client.write(offset, data)
    return written


@pytest.mark.parametrize("kind", SPEECHES)
def test_control_port(services: Services, daemon: Daemon, kind: str) -> None:
    """Twice as long as a lease lives without heartbeats: they get through, each on a new connection as well."""
    idle = take_lease(daemon, MIB, MIB)  # no page of it moves: heartbeats alone keep it
    with idle.kept():
        device = services.device("vol", "--map", "eager", peers=[daemon])
        with device.connect() as client:
            written = mapped(device, client, 1)
            with Flood(control_of(daemon), kept=KEPT, speech=SPEECHES[kind]) as flood:
                flood.rages(OPENED)
                ends_s = time.monotonic() + 2 * TTL_S
                while time.monotonic() < ends_s:
                    assert daemon.get("/v1/health")["status"] == "ok"
                    for offset, data in written.items():
                        assert client.read(offset, 8192) == data
                    time.sleep(0.05)  # else this address would be the one that opens too many
            told = daemon.get("/v1/stats")
    assert (told["leases"], told["counts"]["leases_expired"]) == (2, 0)
    assert told["connections"]["gave_way"] + told["connections"]["refused"] > OPENED - KEPT
    stats = device.get("/v1/stats")
    assert (stats["failures"]["peers_lost"], stats["failures"]["checksum_mismatches"]) == (0, 0)
    assert device.stop() == 0


def test_page_port(services: Services, daemon: Daemon) -> None:
    """Negotiations that go nowhere: a device that comes meanwhile gets its pages out and in."""
    first = services.device("other", peers=[daemon], backup=services.folder / "other.img")
    wait_for(lambda: first.get("/v1/peers")[0]["state"] == "up", what="the page port's address")
    (lease,) = leases_on_record(services, "other").values()
    with Flood((lease.host, lease.port), kept=KEPT) as flood:
        flood.rages(OPENED)
        device = services.device("vol", "--map", "eager", peers=[daemon])
        with device.connect() as client:
            written = mapped(device, client, 2)
            for offset, data in written.items():
                assert client.read(offset, 8192) == data
        assert device.get("/v1/stats")["failures"]["peers_lost"] == 0
        assert device.stop() == 0
    told = daemon.get("/v1/stats")
    assert told["connections"]["pages_gave_way"] > 0
    assert told["counts"]["leases_expired"] == 0


def test_every_page_connection_is_taken(services: Services) -> None:
    """Thirty-two leases open all the connections that they get, and the next device gets those that it needs."""
    daemon = services.daemon("64MiB", "--lease-ttl-s", "120")
    leases = [take_lease(daemon, MIB, MIB) for _ in range(32)]
    held: list[RawClient] = []
    try:
        for lease in leases:
            for _ in range(40):
                greedy = RawClient((lease.host, lease.port))
                held.append(greedy)
                try:
                    assert greedy.negotiate(lease.export).call(FLUSH).error == 0
                except (ClosedError, OSError):
                    break
        assert len(held) > 32 * LEASE_SHARE
        device = services.device("vol", "--map", "eager", peers=[daemon])
        with device.connect() as client:
            mapped(device, client, 3)
        assert daemon.get("/v1/stats")["counts"]["page_connections_refused"] > 0
        assert device.stop() == 0
    finally:
        for greedy in held:
            greedy.close()


def test_pages_renew_a_lease(daemon: Daemon) -> None:
    """A lease without a single heartbeat lives as long as its pages move, and ends when they stop."""
    lease = take_lease(daemon, 4 * MIB, MIB)
    lease.map(0)
    with lease.connect() as client:
        client.write(0, b"mine" * 1024)
        ends_s = time.monotonic() + 3 * TTL_S
        while time.monotonic() < ends_s:
            assert client.read(0, 4096) == b"mine" * 1024
            time.sleep(0.1)
        assert daemon.get("/v1/stats")["counts"]["leases_renewed_by_pages"] > 0
        wait_for(lambda: daemon.get("/v1/stats")["leases"] == 0, what="the end of the lease")


def test_one_address_does_not_take_all_leases(services: Services, daemon: Daemon) -> None:
    """Who asks for lease after lease is told to wait, and a device from elsewhere gets one at once."""
    body = {"device": "d", "device_id": "0f6a2c1e-5d5b-4a39-9a3c-6f1b7c1d2e30", "size_bytes": MIB, "slab_bytes": MIB}
    statuses = [ask_from(STRANGER, daemon, body) for _ in range(120)]
    assert statuses[0] == 201
    assert 64 <= statuses.count(201) < 120
    assert set(statuses) == {201, 429}
    device = services.device("vol", peers=[daemon])
    wait_for(lambda: device.get("/v1/peers")[0]["state"] == "up", what="a lease")
    assert daemon.get("/v1/stats")["counts"]["leases_throttled"] == statuses.count(429)
    assert device.stop() == 0


def ask_from(source: str, daemon: Daemon, body: dict[str, object]) -> int:
    """Ask for a lease from an address; the status of the answer."""
    host, port = control_of(daemon)
    connection = http.client.HTTPConnection(host, port, timeout=20.0, source_address=(source, 0))
    connection.request("POST", "/v1/leases", json.dumps(body), {"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status
