"""A secured daemon and hosts of its cluster that go too far: stolen tokens and tickets, and more than their part."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import pytest

from infiniswap.daemon.service import MemoryService
from infiniswap.device.daemon_client import DaemonClient, DistrustedError, make_session
from infiniswap.identity.identity import Identity, utc_now
from infiniswap.nbd.client import NbdClient, NegotiationError
from infiniswap.shared.address import parse_host_port
from tests.support.certificates import Cluster, paths
from tests.support.daemon_api import daemon_config
from tests.support.holders import end_holder
from tests.support.secure_world import DEVICE_ID, MIB, Host, SecureLease, World, make_world
from tests.support.services import ANSWER_TIMEOUT_S, Services
from tests.support.waiting import wait_for

QUOTAS = ("--quota", "small* leases=2 memory=3MiB connections=2", "--quota", "* leases=8")
CALLS: tuple[tuple[str, str, object], ...] = (
    ("GET", "", None),
    ("POST", "/heartbeat", {}),
    ("PUT", "/slabs/0", None),
    ("PUT", "/slabs/1", None),
    ("DELETE", "/slabs/0", None),
    ("POST", "/tickets", {}),
    ("GET", "/stream", None),
    ("POST", "/rdma", {}),
    ("DELETE", "/rdma", None),
    ("DELETE", "", None),
)


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of who keeps the daemon's memory."""
    path = tmp_path_factory.mktemp("h") / "holder"
    yield path
    end_holder(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, holder: Path) -> Iterator[World]:
    """One for all tests, which give back what they take."""
    with Services(tmp_path_factory.mktemp("secure"), any_log=True) as services:
        yield make_world(services.folder, services, "--keep-memory", str(holder), *QUOTAS, "--log-level", "info")


def counts(world: World) -> dict[str, int]:
    """What the daemon has counted."""
    return dict(world.host("looker").stats()["counts"])


def test_a_stolen_token(world: World, holder: Path) -> None:
    """With another host's certificate it gets 403 for everything, after a restart as well, and changes nothing."""
    owner, thief = world.host("web1"), world.host("web2")
    lease = owner.lease()
    owner.of(lease, "PUT", "/slabs/0")
    with owner.connect(lease) as client:
        client.write(0, b"mine" * 1024)
    assert "by web1" in world.said(f"lease {lease.lease_id}: device vol")
    for turn in range(2):
        before = counts(world)["leases_of_others"]
        for call in CALLS:
            answer = thief.of(lease, *call)
            assert answer.status == HTTPStatus.FORBIDDEN, (call, answer)
            assert "taken with another host's certificate" in answer.error
        assert counts(world)["leases_of_others"] == before + len(CALLS)
        beat = owner.of(lease, "POST", "/heartbeat", {})
        assert (beat.status, beat.content["slabs"]) == (HTTPStatus.OK, [0])
        with owner.connect(lease) as client:
            assert client.read(0, 4096) == b"mine" * 1024
        if turn == 0:
            world.daemon.kill()
            address = ("--listen", str(owner.address))
            world.daemon = world.services.daemon(
                "64MiB", *world.tls, "--keep-memory", str(holder), *QUOTAS, "--log-level", "info", *address
            )
    assert owner.of(lease, "DELETE").status == HTTPStatus.OK


def refused(lease: SecureLease, name: str) -> bool:
    """Whether a name opens nothing at the page port."""
    try:
        NbdClient(lease.pages, name, ANSWER_TIMEOUT_S).close()
    except (NegotiationError, OSError):
        return True
    return False


def test_more_than_its_part(world: World) -> None:
    """Leases, memory and connections of one host are bounded together, and others get theirs meanwhile."""
    small, big = world.host("small1"), world.host("big")
    before = counts(world)["over_quota"]
    one, two = small.lease(), small.lease()
    third = small.ask_for_lease()
    assert third.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert third.error == "small1 may have 2 leases here, and has them"
    mapped = [small.of(lease, "PUT", f"/slabs/{slab}") for lease in (one, two) for slab in (0, 1)]
    assert [answer.status for answer in mapped] == [200, 200, 200, HTTPStatus.INSUFFICIENT_STORAGE]
    assert mapped[2].content["free_bytes"] == 0
    assert "small1 may hold 3MiB" in mapped[3].error
    with small.connect(one) as first, small.connect(two):
        first.write(0, b"x" * 4096)
        with pytest.raises((NegotiationError, OSError)), small.connect(two) as further:
            further.read(0, 4096)
        lease = big.lease()
        assert big.of(lease, "PUT", "/slabs/0").status == HTTPStatus.OK
        with big.connect(lease) as client:
            client.write(0, b"y" * 4096)
    assert counts(world)["over_quota"] == before + 3
    assert small.of(one, "DELETE").status == HTTPStatus.OK
    small.of(small.lease(), "DELETE")
    small.of(two, "DELETE")
    big.of(lease, "DELETE")


def test_bench(world: World) -> None:
    """'infiniswap bench' measures a secured daemon as any other, with this host's certificate, and gives all back."""
    tls = ("--tls-dir", str(world.cluster.host("meter")))
    options = ("--memory", "16MiB", "--seconds", "0.1", "--disk", "none", "--transport", "tcp", "--json")
    done = world.services.command("bench", "--peer", str(world.address), *options, *tls, timeout_s=60.0)
    assert done.returncode == 0, done.stderr
    assert [place["way"] for place in json.loads(done.stdout)["places"]] == ["TCP"]
    assert world.host("looker").stats()["leases"] == 0


def test_a_donor_that_is_revoked(world: World) -> None:
    """A connected device lets go of it by itself within seconds, its pages move on, and no byte is wrong."""
    folder = world.cluster.host("bad")
    bad = world.services.daemon("16MiB", "--tls-dir", str(folder))
    tls = ("--tls-dir", str(world.cluster.host("web3")))
    device = world.services.device("vol", *tls, "--map", "eager", size="4MiB", peers=[bad])
    spy = Host(parse_host_port(bad.address, "address"), world.host("spy").identity)  # who does not know the new list
    assert spy.stats()["engine"]["connections"] >= 0
    content = random.Random(5).randbytes(4 * MIB)
    with device.connect() as client:
        client.write(0, content)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 4, what="mapping")
        client.write(0, content)
        added = world.services.command("peer", "add", "vol", str(world.address))
        assert added.returncode == 0, added.stderr
        wait_for(lambda: device.get("/v1/peers")[1]["state"] == "up", what="the other peer")
        world.cluster.revoke("bad")
        world.cluster.copy_list("web3")
        began_s = time.monotonic()
        wait_for(lambda: device.get("/v1/peers")[0]["state"] != "up", what="its end", timeout_s=15.0)
        assert time.monotonic() - began_s < 15.0, "the lease would have lived for 60 s, and by its pages for ever"
        assert client.read(0, len(content)) == content
        client.write(0, content)
        wait_for(lambda: device.get("/v1/peers")[1]["slabs"] == 4, what="the slabs being elsewhere", timeout_s=30.0)
        assert client.read(0, len(content)) == content
    first = device.get("/v1/peers")[0]
    assert first["slabs"] == 0
    assert "revoked" in first["last_error"]
    assert spy.stats()["engine"]["connections"] == 0
    assert device.get("/v1/stats")["failures"]["lost_pages"] == 0
    assert device.stop() == 0


async def test_what_ends_while_it_is_open(tmp_path: Path) -> None:
    """A certificate that expires after the handshake, and a ticket after ten seconds: by the clocks of both ends."""
    cluster = Cluster.make(tmp_path)
    config = daemon_config(tls_dir=cluster.host("node1"))
    offset_s = 0.0
    identity = Identity(paths(cluster.host("web1")), lambda: utc_now() + timedelta(seconds=offset_s))
    service = MemoryService(config, clock=lambda: time.monotonic() + offset_s)
    await service.start()
    try:
        host = Host(service.http_address, identity)
        lease = await asyncio.to_thread(host.lease)
        early, late = [await asyncio.to_thread(host.ticket, lease) for _ in range(2)]
        assert not await asyncio.to_thread(refused, lease, early)
        async with make_session() as session:
            client = DaemonClient(
                session,
                service.http_address,
                device="vol",
                device_id=DEVICE_ID,
                size_bytes=4 * MIB,
                slab_bytes=MIB,
                timeout_s=ANSWER_TIMEOUT_S,
                clock=time.monotonic,
                identity=identity,
            )
            held = await client.open_lease()
            await client.heartbeat(held)
            offset_s = 10.0
            assert await asyncio.to_thread(refused, lease, late)
            offset_s = 366 * 86400.0
            with pytest.raises(DistrustedError, match="its certificate has expired"):
                await client.heartbeat(held)
    finally:
        await service.close()
