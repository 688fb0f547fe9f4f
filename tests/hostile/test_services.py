"""The daemon and the device as they are installed: hostile handshakes on their NBD ports, garbage on every port."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infiniswap.shared.device_client import fetch
from tests.support.lease import take_lease
from tests.support.rawclient import (
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_SET_META,
    OPT_STARTTLS,
    OPT_STRUCTURED,
    READ,
    Address,
    ClosedError,
    RawClient,
    go_payload,
    meta_payload,
    option,
    request,
)
from tests.support.services import Daemon, Device, Services

MIB = 1 << 20
IDLE_CLIENTS = 1000
STOP_S = 10.0


@dataclass
class Target:
    """A running service, where it speaks NBD, and what it serves."""

    service: Daemon | Device
    nbd: list[Address]
    other: list[Address]  # its other ports
    export: str

    def serves(self) -> None:
        """Good clients are served on every door, and the control API answers."""
        for address in self.nbd:
            with RawClient(address).negotiate(self.export) as client:
                mark = random.randbytes(1000)
                client.write(4000, mark)
                assert client.read(4000, 1000) == mark
        assert self.service.get("/v1/health" if isinstance(self.service, Daemon) else "/v1/status")


@pytest.fixture(params=["daemon", "device"])
def target(request: pytest.FixtureRequest, services: Services) -> Target:
    """Either service, with memory behind what it serves."""
    daemon = services.daemon()
    host, port = daemon.address.split(":")
    if request.param == "daemon":
        lease = take_lease(daemon, 4 * MIB, MIB)
        return Target(daemon, [(lease.host, lease.port)], [(host, int(port))], lease.export)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        tcp: tuple[str, int] = free.getsockname()
    device = services.device("vol", "--tcp", f"127.0.0.1:{tcp[1]}", "--map", "eager", peers=[daemon])
    control = str(services.runtime_dir / "vol.control")
    return Target(device, [str(device.socket), tcp], [control], "vol")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for a thousand sockets, where the default limit has less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * IDLE_CLIENTS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def handshakes(export: bytes) -> dict[str, bytes]:
    """What breaks other servers, to be sent behind the client flags."""
    speeches = {
        "flood": option(OPT_INFO, go_payload(export)) * 1000,
        "unknown": option(99, option(OPT_ABORT) * 100) + option(OPT_LIST),
        "starttls": option(OPT_STARTTLS) + bytes.fromhex("160301") + bytes(500),
        "starttls with data": option(OPT_STARTTLS, option(OPT_STRUCTURED)) + option(OPT_ABORT),
        "two infos": option(OPT_INFO, go_payload(b"a")) + option(OPT_INFO, go_payload(b"b")) + option(OPT_GO, b""),
        "context of another": option(OPT_STRUCTURED) + option(OPT_SET_META, meta_payload(b"other")),
        "far too much": option(OPT_GO, go_payload(export) + bytes(60000)),
        "queries": option(OPT_STRUCTURED) + option(OPT_SET_META, go_payload(export)[:-2] + b"\xff" * 8),
    }
    for length in (0xFFFFFFFF, 0, 1, 4096, 4097):
        for number in (OPT_EXPORT_NAME, OPT_LIST, OPT_INFO, OPT_GO, OPT_SET_META, 77):
            speeches[f"option {number} of {length}"] = option(number, bytes(min(length, 5000)), length=length)
        name_length = struct.pack(">I", length)
        speeches[f"name of {length}"] = option(OPT_GO, name_length + bytes(6)) + option(OPT_INFO, name_length)
    for length in (257, 1000, 4096):
        speeches[f"long name {length}"] = option(OPT_GO, go_payload(b"n" * length))
        speeches[f"long export name {length}"] = option(OPT_EXPORT_NAME, b"n" * length)
    return speeches


def test_handshakes_that_break_others(target: Target) -> None:
    """After each of them, on each door, the connection is let go and good clients are served."""
    for address in target.nbd:
        for name, speech in handshakes(target.export.encode()).items():
            with RawClient(address, timeout_s=15.0) as client:
                with contextlib.suppress(ClosedError):
                    client.send(b"\0\0\0\3" + speech)
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_WR)
                assert len(client.receive_to_end()) < 20000, name
    target.serves()


def test_gone_at_every_byte(target: Target) -> None:
    """A client that vanishes after any number of bytes leaves nothing that keeps others out."""
    speech = b"\0\0\0\3" + option(OPT_GO, go_payload(target.export.encode())) + request(READ, 1, 0, 4096)
    for address in target.nbd:
        for count in range(len(speech) + 1):
            with RawClient(address) as client:
                with contextlib.suppress(ClosedError):
                    client.send(speech[:count])
                if isinstance(address, tuple) and count % 2:
                    client.reset()
    target.serves()


GARBAGE = {
    "zeroes": bytes(200000),
    "random": random.Random(4).randbytes(200000),
    "http": b"DELETE /v1/../../%00 HTTP/9.9\r\nContent-Length: -1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless header": b"GET / HTTP/1.1\r\nX: " + b"x" * 300000,
    "nbd": b"\0\0\0\3" + option(OPT_LIST),
}


def test_garbage_on_every_port(target: Target) -> None:
    """Garbage on NBD and control ports is answered with little, the service goes on and logs no traceback."""
    for name, garbage in GARBAGE.items():
        for address in target.nbd + target.other:
            with RawClient(address) as client:
                with contextlib.suppress(ClosedError):
                    client.send(garbage)
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_WR)
                said = client.receive_to_end()
                # What HTTP answers may quote the line that it did not understand.
                assert len(said) < (4 * len(garbage) + 4096 if address in target.other else 4096), name
        target.serves()


@pytest.mark.usefixtures("many_descriptors")
def test_thousand_idle_clients_and_sigterm(target: Target) -> None:
    """A thousand clients that say nothing keep nobody out, and SIGTERM with them open ends the service at once."""
    idle: list[RawClient] = []
    try:
        idle.extend(RawClient(target.nbd[n % len(target.nbd)]) for n in range(IDLE_CLIENTS))
        target.serves()
        began = time.monotonic()
        assert target.service.stop() == 0
        assert time.monotonic() - began < STOP_S
    finally:
        for client in idle:
            client.close()


@pytest.mark.usefixtures("many_descriptors")
def test_sigterm_in_the_middle_of_handshakes(target: Target) -> None:
    """The same with clients that stopped at every point of their handshake."""
    speech = b"\0\0\0\3" + option(OPT_STRUCTURED) + option(OPT_GO, go_payload(target.export.encode()))
    halfway: list[RawClient] = []
    try:
        for count in range(len(speech)):
            halfway.append(RawClient(target.nbd[count % len(target.nbd)]))
            halfway[-1].send(speech[:count])
        began = time.monotonic()
        assert target.service.stop() == 0
        assert time.monotonic() - began < STOP_S
        for client in halfway:
            client.receive_to_end()
    finally:
        for client in halfway:
            client.close()


def test_nothing_listed_by_a_daemon(services: Services) -> None:
    """LIST shows no export of a daemon, in one connection or another; the device lists its one."""
    daemon = services.daemon()
    lease = take_lease(daemon, MIB, MIB)
    with RawClient((lease.host, lease.port)) as client:
        client.greet()
        assert client.ask(OPT_LIST) == (1, [])
    device = services.device("vol")
    with RawClient(str(device.socket)) as client:
        client.greet()
        assert client.ask(OPT_LIST) == (1, [(2, b"\0\0\0\3vol")])
    assert fetch("vol", "/v1/status", Path(services.runtime_dir))
