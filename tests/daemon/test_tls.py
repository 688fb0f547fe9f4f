"""A daemon with certificates: who is let in, to what, and what those hear at either end who are not."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infiniswap.device.daemon_client import DaemonClient, HeldLease, PeerError, RefusedError, make_session
from infiniswap.identity.files import CA_CERT, HOST_CERT, HOST_KEY
from infiniswap.identity.identity import Identity, utc_now
from infiniswap.nbd.client import NbdClient, NegotiationError
from infiniswap.nbd.client import connect as nbd_connect
from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.errors import ExitCode
from tests.support.certificates import DAY, paths
from tests.support.secure_world import Unchecked, World, make_world
from tests.support.services import Services
from tests.support.waiting import eventually, wait_for

LEASE_BYTES = 4 << 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("tls")
    with Services(folder) as services:
        services.expect_log("is not let in:", "refused a ", "connections were cut off")
        yield make_world(folder, services, "--may-borrow", "web*", "--may-look", "prom", "--may-drain", "admin")


def client(session: object, address: HostPort, identity: Identity | None) -> DaemonClient:
    """As a device has it."""
    return DaemonClient(
        session,  # type: ignore[arg-type]
        address,
        device="vol",
        device_id="00000000-0000-4000-8000-000000000000",
        size_bytes=LEASE_BYTES,
        slab_bytes=1 << 20,
        timeout_s=10.0,
        clock=time.monotonic,
        identity=identity,
    )


def lease(address: HostPort, identity: Identity | None) -> HeldLease:
    """Take a lease there and give it back."""

    async def go() -> HeldLease:
        async with make_session() as session:
            daemon = client(session, address, identity)
            held = await daemon.open_lease()
            await daemon.release(held)
            return held

    return asyncio.run(go())


def offer(address: HostPort, identity: Identity | None) -> None:
    """Ask for one."""

    async def go() -> None:
        async with make_session() as session:
            await client(session, address, identity).offer()

    asyncio.run(go())


def failure(address: HostPort, identity: Identity | None) -> str:
    """What a device is told that cannot ask for an offer; one line."""
    with pytest.raises(PeerError) as caught:
        offer(address, identity)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_host_of_the_cluster_borrows(world: World) -> None:
    """With a certificate of the same authority and a name that may."""
    assert lease(world.address, Identity(paths(world.cluster.host("web1")))).lease_id


@pytest.mark.parametrize(
    ("kind", "device", "daemon"),
    [
        ("expired", "our certificate has expired", "it has expired"),
        ("early", "not yet by its clock", "it is not valid yet: is this host's clock right?"),
        ("stranger", "not of its cluster", "another authority"),
        ("self-signed", "not of its cluster", "it is self-signed"),
        ("revoked", "our certificate was revoked", "it was revoked"),
    ],
)
def test_certificates_that_are_not_taken(world: World, kind: str, device: str, daemon: str) -> None:
    """Each is told in one line at either end, what is wrong and what to do; nothing is granted."""
    cluster, other, now = world.cluster, world.other, utc_now()
    if kind == "expired":
        folder = cluster.host(kind, at=now - 3 * DAY, days=1)
    elif kind == "early":
        folder = cluster.host(kind, at=now + DAY)
    elif kind == "stranger":
        folder = cluster.host(kind, authority=other.authority)
    elif kind == "self-signed":
        folder = cluster.host(kind)
        make_self_signed(folder)
    else:
        folder = cluster.host(kind)
        cluster.revoke(kind)
        cluster.copy_list("node1")
        wait_for(lambda: "was revoked" in failure(world.address, Unchecked(folder)), what="the new list")
    assert device in failure(world.address, Unchecked(folder))
    assert "127.0.0.1 is not let in: its certificate is not taken:" in world.said(daemon)


def make_self_signed(folder: Path) -> None:
    """Such a certificate in the place of the one that is there."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "9",
    ]
    command += ["-subj", "/CN=self", "-keyout", str(folder / HOST_KEY), "-out", str(folder / HOST_CERT)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def test_the_daemon_is_checked_too(world: World, tmp_path: Path) -> None:
    """Its certificate must be of the cluster, and for the name or address that the device's user gave."""
    cluster, port = world.cluster, world.address.port
    web = Identity(paths(cluster.host("web1")))
    offer(HostPort("localhost", port), web)
    with Services(tmp_path) as services:
        services.expect_log("is not let in:")
        folder = cluster.host("node9", "node9", "10.0.0.9")
        elsewhere = parse_host_port(services.daemon("16MiB", "--tls-dir", str(folder)).address, "address")
        assert "it is not for the address 127.0.0.1" in failure(elsewhere, web)
        assert "it is for another host than localhost" in failure(HostPort("localhost", elsewhere.port), web)
        stranger = world.other.host("node8")
        foreign = parse_host_port(services.daemon("16MiB", "--tls-dir", str(stranger)).address, "address")
        assert "another authority than the one of --tls-ca" in failure(foreign, web)


def test_one_side_is_secure(world: World, tmp_path: Path) -> None:
    """One clear line at both ends, whichever side it is, and nothing goes on in the clear."""
    assert "this daemon takes TLS with a certificate of its cluster alone" in failure(world.address, None)
    world.said("127.0.0.1 is not let in: it speaks no TLS")
    with Services(tmp_path) as services:
        services.expect_log("it speaks TLS, and this program has no certificate: give this one too")
        plain = services.daemon("16MiB")
        address = parse_host_port(plain.address, "address")
        told = failure(address, Identity(paths(world.cluster.host("web1"))))
        assert "it does not speak TLS" in told
        assert "in the clear" in told
        wait_for(lambda: "it speaks TLS, and this program has no" in plain.log, what="the daemon's line")


def test_roles(world: World) -> None:
    """Who may only look gets no lease; who may borrow gives no orders; who may drain does, from anywhere."""
    hosts = {name: Identity(paths(world.cluster.host(name))) for name in ("web2", "prom", "admin", "nobody")}

    async def statuses(identity: Identity) -> list[int]:
        async with make_session() as session:
            return [
                (
                    await session.request(method, f"https://{world.address}{path}", ssl=identity.client("127.0.0.1"))
                ).status
                for method, path in (("GET", "/v1/stats"), ("POST", "/v1/leases"), ("POST", "/v1/uncordon"))
            ]

    told = {name: asyncio.run(statuses(identity)) for name, identity in hosts.items()}
    assert told == {"web2": [200, 400, 403], "prom": [200, 403, 403], "admin": [200, 403, 200], "nobody": [403] * 3}
    with pytest.raises(RefusedError, match="prom may not borrow here: no pattern of this daemon's may_borrow"):
        lease(world.address, hosts["prom"])


def test_commands(world: World) -> None:
    """'infiniswap donor' shows this host's certificate; without one it is told what is lacking."""

    def run(*arguments: str) -> tuple[int, str]:
        done = world.services.command("donor", "status", str(world.address), *arguments)
        return done.returncode, done.stdout + done.stderr

    code, said = run("--tls-dir", str(world.cluster.host("admin")))
    assert code == ExitCode.OK, said
    assert "State" in said
    code, said = run("--tls-dir", str(world.cluster.host("web4")))
    assert code == ExitCode.REFUSED
    assert "web4 may not drain here" in said
    code, said = run("--tls-dir", "none")
    assert code == ExitCode.REFUSED
    assert "takes TLS with a certificate" in said
    code, said = run("--tls-dir", str(world.other.host("web5")))
    assert code == ExitCode.REFUSED
    assert "another authority" in said


def openssl(world: World, *arguments: str, name: str | None = None) -> str:
    """What openssl s_client says of the daemon, all of it."""
    command = ["openssl", "s_client", "-connect", str(world.address)]
    command += ["-CAfile", str(world.cluster.folder / "node1" / CA_CERT), *arguments]
    if name is not None:
        folder = world.cluster.host(name)
        command += ["-cert", str(folder / HOST_CERT), "-key", str(folder / HOST_KEY)]
    asked = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    done = subprocess.run([*command, "-quiet", "-ign_eof"], input=asked, capture_output=True, check=False, timeout=30)
    return (done.stdout + done.stderr).decode(errors="replace")


def test_another_implementation(world: World) -> None:
    """openssl s_client gets an answer with a certificate, and none without one or with an older TLS."""
    assert '"status": "ok"' in openssl(world, name="web3")
    without = openssl(world)
    assert "certificate required" in without
    assert "HTTP/1.1" not in without
    assert "protocol version" in openssl(world, "-tls1_2", name="web3")


def test_renewal_and_revocation_while_it_runs(tmp_path: Path) -> None:
    """A new certificate counts for new connections; a revoked host's open stream is cut off, and it gets no other."""
    with Services(tmp_path) as services:
        services.expect_log("is not let in:", "connections were cut off")
        world = make_world(tmp_path, services)
        identity = Identity(paths(world.cluster.host("web1")))

        async def go() -> None:
            async with make_session() as session:
                daemon = client(session, world.address, identity)
                held = await daemon.open_lease()
                stream = await daemon.open_stream(held)
                first = await daemon.heartbeat(held)
                assert not first.slabs
                world.cluster.revoke("web1")
                world.cluster.copy_list("node1")
                async with asyncio.timeout(20):
                    async for _ in stream:
                        pass
                said = ""

                async def refused() -> bool:
                    nonlocal said
                    try:
                        await daemon.heartbeat(held)
                    except PeerError as error:  # the first may be the end of a connection that was open
                        said = str(error)
                    return "our certificate was revoked" in said

                await eventually(refused, what="the refusal")

        asyncio.run(go())
        before = openssl(world, "-showcerts", name="web2")
        world.cluster.host("node1")
        new = Identity(paths(world.cluster.folder / "node1")).own.serial
        wait_for(lambda: serial_of(world) == new, what="the new certificate")
        assert before


def serial_of(world: World) -> str:
    """Of the certificate that the daemon shows, in hex."""
    command = ["openssl", "s_client", "-connect", str(world.address)]
    shown = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=30).stdout
    read = ["openssl", "x509", "-noout", "-serial"]
    said = subprocess.run(read, input=shown, capture_output=True, check=True, timeout=30).stdout.decode()
    return said.strip().removeprefix("serial=").lstrip("0")


def test_a_sniffed_ticket_opens_nothing(world: World) -> None:
    """The second time, and neither does the name of the lease's export; a ticket of one lease opens that one alone."""
    identity = Identity(paths(world.cluster.host("web6")))

    async def go() -> None:
        async with make_session() as session:
            daemon = client(session, world.address, identity)
            held = await daemon.open_lease()
            ticket = await daemon.export_name(held)
            assert ticket.startswith("ticket-")
            sock, export = await nbd_connect(held.address, ticket, 10.0)
            with sock:
                assert export.size_bytes == LEASE_BYTES
                for name in (ticket, held.export, "", f"ticket-{held.token}", held.token):
                    with pytest.raises(NegotiationError):
                        await nbd_connect(held.address, name, 10.0)
            await daemon.release(held)

    world.services.expect_log("a client asked for an export that is not here")
    asyncio.run(go())


def test_a_device_with_tickets(tmp_path: Path) -> None:
    """It writes and reads remote pages, a kill and a new start take them up, and NBD tools get in by donor export."""
    with Services(tmp_path) as services:
        services.expect_log("a client asked for an export that is not here")
        world = make_world(tmp_path, services)
        folder, tls = world.cluster.host("node2"), "--tls-dir"
        options = (tls, str(folder), "--map", "eager", "--recovery-timeout-s", "20")
        device = services.device("vol", *options, peers=[world.daemon])
        wait_for(lambda: device.get("/v1/peers")[0]["state"] == "up", what="the peer")
        content = bytes(range(256)) * 4096
        with device.connect() as nbd:
            nbd.write(0, content)
        wait_for(lambda: device.get("/v1/peers")[0]["slabs"] == 1, what="a slab at the peer")
        with device.connect() as nbd:
            nbd.write(0, content)
        device.kill()
        device = services.device("vol", *options, peers=[world.daemon])
        wait_for(lambda: device.get("/v1/peers")[0]["slabs"] == 1, what="the slab from before")
        with device.connect() as nbd:
            assert nbd.read(0, len(content)) == content
        asked = services.command("donor", "export", world.daemon.address, "vol", tls, str(folder))
        assert asked.returncode == ExitCode.OK, asked.stderr
        place = urlsplit(asked.stdout.strip())
        assert place.hostname is not None
        assert place.port is not None
        name = place.path.removeprefix("/")
        with NbdClient((place.hostname, place.port), name, 10.0) as tool:
            assert tool.read(0, len(content)) == content
        with pytest.raises(NegotiationError):
            NbdClient((place.hostname, place.port), name, 10.0)
