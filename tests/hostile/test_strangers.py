"""Strangers at a secured daemon: without a good certificate, with what they have recorded, and in floods."""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from infiniswap.identity.contexts import server_context
from infiniswap.identity.files import CA_CERT, HOST_CERT, HOST_KEY
from infiniswap.identity.identity import Identity, utc_now
from infiniswap.nbd.client import NbdClient
from tests.support.certificates import DAY, Cluster, paths
from tests.support.fault_proxy import FaultProxy
from tests.support.floods import STRANGER, Flood, descriptors
from tests.support.rawclient import OPT_GO, go_payload, option
from tests.support.secure_world import MIB, Host, SecureLease, Unchecked, World, make_world
from tests.support.services import ANSWER_TIMEOUT_S, Device, Services
from tests.support.tools import fio_arguments, tool
from tests.support.waiting import wait_for

TTL_S = 3
SLABS = 8  # of the honest device: half for pages that are looked at, half for fio
ANOTHER_STRANGER = "127.0.0.3"
ASKED = b"GET /v1/offer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HELLO = b"\0\0\0\3"  # NBD's flags of a client


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    """Who listens on the wire."""
    with FaultProxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon whose leases end soon without heartbeats."""
    with Services(tmp_path_factory.mktemp("s"), any_log=True) as services:
        options = ("--lease-ttl-s", str(TTL_S), "--lease-grace-s", "0")
        yield make_world(services.folder, services, *options)


@pytest.fixture(scope="module")
def honest(world: World, proxy: FaultProxy) -> Device:
    """A device of the cluster, whose control somebody records."""
    host, port = proxy.tap("control", world.address)
    tls = ("--tls-dir", str(world.cluster.host("web1")))
    device = world.services.device("vol", *tls, "--map", "eager", size=f"{SLABS}MiB", peers=[f"{host}:{port}"])
    with device.connect() as client:
        for slab in range(SLABS):
            client.write_zeroes(slab * MIB + 1, 1)
    wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == SLABS, what="mapping", timeout_s=30.0)
    return device


def handshakes(world: World) -> dict[str, int]:
    """What the daemon has counted of those who were not let in."""
    return dict(world.host("looker").stats()["refused"]["handshakes"])


def openssl(world: World, folder: Path | None, *arguments: str, asked: bytes = ASKED) -> bytes:
    """What openssl s_client gets, with the certificate in folder."""
    command = ["openssl", "s_client", "-connect", str(world.address), "-quiet", "-ign_eof", *arguments]
    command += ["-CAfile", str(world.cluster.folder / "node1" / CA_CERT)]
    if folder is not None:
        command += ["-cert", str(folder / HOST_CERT), "-key", str(folder / HOST_KEY)]
    return subprocess.run(command, input=asked, capture_output=True, check=False, timeout=30).stdout


def raw(world: World, content: bytes) -> bytes:
    """What somebody gets who sends this and nothing else."""
    with socket.create_connection(world.address, ANSWER_TIMEOUT_S) as sock:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return answer


def self_signed(folder: Path) -> Path:
    """Such a certificate."""
    folder.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=self", "-keyout", str(folder / HOST_KEY), "-out", str(folder / HOST_CERT)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return folder


def revoked(world: World) -> Path:
    """One that was good until now."""
    folder = world.cluster.host("thief")
    assert b"200 OK" in openssl(world, folder)
    world.cluster.revoke("thief")
    world.cluster.copy_list("node1")
    wait_for(lambda: b"200 OK" not in openssl(world, folder), what="the new list")
    return folder


KINDS: dict[str, tuple[str, Callable[[World], bytes]]] = {
    "no certificate": ("no_certificate", lambda it: openssl(it, None)),
    "TLS 1.2": ("protocol", lambda it: openssl(it, it.cluster.host("old"), "-tls1_2")),
    "expired": ("expired", lambda it: openssl(it, it.cluster.host("was", at=utc_now() - 3 * DAY, days=2))),
    "not yet valid": ("not_yet_valid", lambda it: openssl(it, it.cluster.host("will", at=utc_now() + DAY))),
    "another authority": (
        "unknown_authority",
        lambda it: openssl(it, it.cluster.host("alien", authority=it.other.authority)),
    ),
    "self-signed": ("unknown_authority", lambda it: openssl(it, self_signed(it.services.folder / "self"))),
    "revoked": ("revoked", lambda it: openssl(it, revoked(it))),
    "in the clear": ("plain", lambda it: raw(it, ASKED)),
    "like TLS": ("protocol", lambda it: raw(it, b"\x16nonsense, and more of that")),
    "silence": ("gone", lambda it: raw(it, b"")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_not_let_in(world: World, kind: str) -> None:
    """Whatever is wrong with them: no answer to what they ask, one more in the metrics of that reason, nothing lent."""
    counted, attack = KINDS[kind]
    before = handshakes(world)
    answer = attack(world)
    assert b"200 OK" not in answer
    assert b"free_bytes" not in answer
    wait_for(lambda: handshakes(world)[counted] > before[counted], what=f"it being counted as {counted}")
    changed = {why for why, count in handshakes(world).items() if count != before[why]}
    assert changed == {counted}
    if counted not in ("plain", "protocol", "gone", "no_certificate"):
        world.said("127.0.0.1 is not let in: its certificate is not taken")


def test_metrics_of_the_refused(world: World) -> None:
    """Prometheus, with a certificate of its own, hears of each reason why one was not let in, or had no right."""
    before = handshakes(world)["no_certificate"]
    openssl(world, None)
    wait_for(lambda: handshakes(world)["no_certificate"] > before, what="it being counted")
    counted = world.host("looker").stats()["refused"]
    asked = ASKED.replace(b"/v1/offer", b"/v1/metrics")
    text = openssl(world, world.cluster.host("prometheus"), asked=asked).decode()
    for kind, label in (("handshakes", "why"), ("roles", "role")):
        for name, count in counted[kind].items():
            assert f'infiniswapd_{kind}_refused_total{{{label}="{name}"}} {float(count)}' in text


@pytest.mark.parametrize("days", [-1.5, 1])
def test_a_clock_a_day_off(world: World, days: float) -> None:
    """Either end, a day early or late, is told what is wrong, and what this host's clock says."""
    name = f"clock{'late' if days < 0 else 'early'}"
    folder = world.cluster.host(name, at=utc_now() + days * DAY, days=1)
    web = Identity(paths(world.cluster.host("web9")))
    for server, client in (
        (server_context(paths(folder)), web.client("localhost")),
        (web.server(), Unchecked(folder).client("localhost")),
    ):
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            shake_hands(client, server)
        told = web.explain(caught.value) or ""
        assert "is this host's clock right? It says 20" in told
        assert ("it has expired" if days < 0 else "it is not valid yet") in told


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Within this process; the first error of either end."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(back, there, server_side=False), server.wrap_bio(there, back, server_side=True))
    for _ in range(8):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


def deeds(stats: Mapping[str, Any]) -> dict[str, int]:
    """All that the daemon has counted but what it does by itself, such as looking at its host's memory."""
    return {name: count for name, count in stats["counts"].items() if not name.startswith("host_")}


def test_control_that_was_recorded(world: World, honest: Device, proxy: FaultProxy) -> None:
    """All that a device has said to its daemon, said again: no request comes of it, each is counted."""
    wait_for(lambda: len([size for size in proxy.recorded("control") if size > 1000]) >= 2, what="connections")
    numbers = [number for number, size in enumerate(proxy.recorded("control")) if size > 1000][:3]
    looker = world.host("looker")
    before, refused = looker.stats(), handshakes(world)
    for number in numbers:
        answer = proxy.replay("control", number)
        assert answer[:1] in (b"\x16", b"\x15"), "a handshake or an alert of TLS, and then the end"
        assert b"HTTP/1.1" not in answer
    assert sum(handshakes(world).values()) >= sum(refused.values()) + len(numbers)
    after = looker.stats()
    assert (after["leases"], after["slabs"]) == (before["leases"], before["slabs"])
    assert deeds(after) == deeds(before)
    assert honest.get("/v1/stats")["failures"]["peers_lost"] == 0


def test_pages_that_were_recorded(world: World, proxy: FaultProxy) -> None:
    """A page connection said again, or with a guessed ticket, opens nothing: what was written since stays."""
    host = world.host("web2")
    lease = host.lease()
    host.of(lease, "PUT", "/slabs/0")
    with beating(host, lease):
        with NbdClient(proxy.tap("pages", lease.pages), host.ticket(lease), ANSWER_TIMEOUT_S) as client:
            client.write(0, b"old!" * 1024)
        with host.connect(lease) as client:
            client.write(0, b"new!" * 1024)
        assert proxy.recorded("pages")[0] > 4096
        failed = host.stats()["connections"]["pages_failed"]
        answer = proxy.replay("pages", 0)
        assert answer.startswith(b"NBDMAGIC")
        assert b"new!" not in answer
        guess = HELLO + option(OPT_GO, go_payload(b"ticket-" + b"A" * 43))
        with socket.create_connection(lease.pages, ANSWER_TIMEOUT_S) as sock:
            sock.sendall(guess)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        wait_for(lambda: host.stats()["connections"]["pages_failed"] >= failed + 2, what="both being counted")
        with host.connect(lease) as client:
            assert client.read(0, 4096) == b"new!" * 1024
        assert host.of(lease, "DELETE").status == HTTPStatus.OK


@contextmanager
def beating(host: Host, lease: SecureLease) -> Iterator[list[int]]:
    """Heartbeats of a lease meanwhile, each on a connection of its own; their answers."""
    over = threading.Event()
    statuses: list[int] = []

    def beat() -> None:
        while not over.wait(TTL_S / 15):
            try:
                statuses.append(host.of(lease, "POST", "/heartbeat", {}).status)
            except (OSError, http.client.HTTPException):
                statuses.append(0)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield statuses
    finally:
        over.set()
        thread.join()


def client_hello(cluster: Cluster) -> bytes:
    """The beginning of a handshake that goes no further."""
    there = ssl.MemoryBIO()
    end = Identity(paths(cluster.host("looker"))).client("localhost").wrap_bio(ssl.MemoryBIO(), there)
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    return there.read()


def test_floods(world: World, honest: Device, tmp_path: Path) -> None:
    """Twice as long as a lease lives: heartbeats are answered, pages are right, fio verifies what it writes meanwhile.

    Silence, handshakes that stop, requests in the clear and guessed tickets, all at once.
    """
    host = world.host("web3")
    lease = host.lease(MIB)
    control, pages = (world.address.host, world.address.port), lease.pages
    guess = HELLO + option(OPT_GO, go_payload(b"ticket-" + b"A" * 43))
    floods = [
        Flood(control, kept=200),
        Flood(control, kept=200, speech=client_hello(world.cluster), source=ANOTHER_STRANGER),
        Flood(control, kept=100, speech=ASKED),
        Flood(pages, kept=200, speech=guess, source=STRANGER),
    ]
    rng = random.Random(4)
    written = {slab * MIB: rng.randbytes(8192) for slab in range(SLABS // 2, SLABS)}
    fio = fio_arguments(honest.uri, SLABS // 2 * MIB, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--randseed=3")
    told: list[str] = []
    work = threading.Thread(target=lambda: told.append(tool(*fio, folder=tmp_path)))
    with descriptors(4096), honest.connect() as client, beating(host, lease) as statuses:
        for offset, data in written.items():
            client.write(offset, data)
        with floods[0], floods[1], floods[2], floods[3]:
            work.start()
            ends_s = time.monotonic() + 2 * TTL_S
            for flood in floods:
                flood.rages(300)
            while time.monotonic() < ends_s or work.is_alive():
                for offset, data in written.items():
                    assert client.read(offset, 8192) == data
                time.sleep(0.02)
            work.join()
            stats = host.stats()
    assert told, "fio has failed"
    assert "err= 0" in told[0]
    assert statuses
    assert set(statuses) == {HTTPStatus.OK}
    assert stats["counts"]["leases_expired"] == 0
    refused = stats["refused"]["handshakes"]
    assert refused["slow"] + refused["full"] + refused["gone"] > 0
    assert refused["plain"] > 0
    assert stats["connections"]["pages_gave_way"] + stats["connections"]["pages_failed"] > 100
    failures = honest.get("/v1/stats")["failures"]
    assert (failures["peers_lost"], failures["checksum_mismatches"], failures["lost_pages"]) == (0, 0, 0)
    assert host.of(lease, "DELETE").status == HTTPStatus.OK
