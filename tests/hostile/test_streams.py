"""Clients that send too slowly, read too little, vanish, or do not speak NBD: others are served all the while."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

import pytest

from tests.hostile.servers import CONNECTIONS_MAX, OURS, Server
from tests.support.backups import read_range
from tests.support.rawclient import (
    BLOCK_STATUS,
    DISC,
    FLUSH,
    FUA,
    OPT_ABORT,
    OPT_GO,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    ClosedError,
    RawClient,
    go_payload,
    option,
    request,
)
from tests.support.waiting import wait_for

MIB = 1 << 20
PAGE = 4096
PROMPT_S = 5.0  # what "at once" may take on a loaded machine
PATIENCE_S = 30.0  # for an answer that must come, however loaded the machine


def test_one_byte_at_a_time(server: Server) -> None:
    """A client whose every byte comes alone is understood, in the handshake and afterwards."""
    client = RawClient(server.unix)
    with client:
        client.receive(18)
        speech = b"\0\0\0\3" + option(OPT_GO, go_payload(server.export.encode()))
        for byte in speech:
            client.send(bytes([byte]))
        while client.option_reply()[1] != 1:
            pass
        data = random.Random(5).randbytes(600)
        speech = request(WRITE, 1, PAGE - 300, 600, 0, data) + request(READ, 2, PAGE - 300, 600) + request(FLUSH, 3)
        for byte in speech:
            client.send(bytes([byte]))
        # Requests in flight may be answered in any order, and the READ may see what was before the WRITE.
        cookies = set()
        for _ in range(3):
            head = client.receive(16)
            assert head[:8] == bytes.fromhex("6744669800000000")
            cookie = int.from_bytes(head[8:], "big")
            cookies.add(cookie)
            if cookie == 2:
                client.receive(600)
        assert cookies == {1, 2, 3}
        assert client.read(PAGE - 300, 600) == data


def test_replies_taken_in_crumbs(server: Server) -> None:
    """A client that reads with a tiny buffer gets every byte of many replies, in whole replies."""
    with server.connect() as writer:
        data = random.Random(6).randbytes(MIB)
        writer.write(0, data)
    client = RawClient(server.tcp, receive_buffer_bytes=2048).negotiate(server.export)
    with client:
        for n in range(8):
            client.send(request(READ, n, n * 1000, 256 * 1024 + n))
        left = set(range(8))
        while left:
            head = b"".join(client.receive(1) for _ in range(16))
            assert head[:8] == bytes.fromhex("6744669800000000")
            n = int.from_bytes(head[8:], "big")
            left.remove(n)
            assert client.receive(256 * 1024 + n) == data[n * 1000 : n * 1000 + 256 * 1024 + n]


class Drain:
    """Takes whatever the server sends until it closes the connection, on a thread of its own."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self.ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(TimeoutError):
            self._client.receive_to_end()
            self.ended = True

    def join(self) -> bool:
        """True: the server closed the connection; False: it did not within the client's time-out."""
        self._thread.join()
        return self.ended


def fill(client: RawClient, data: bytes, limit: int) -> int:
    """Send data again and again until the server takes no more, at most limit times; returns how often it was sent."""
    client.sock.settimeout(0.5)
    for n in range(limit):
        try:
            client.send(data)
        except TimeoutError:
            return n
    return limit


@pytest.mark.parametrize("tcp", [False, True])
def test_client_that_never_reads(server: Server, tcp: bool) -> None:
    """Replies to a client that takes none are not piled up: it is no longer listened to, and others are served."""
    with server.connect() as other, server.connect(tcp=tcp) as client:
        other.write(0, b"c" * MIB)
        before = server.resident_bytes()
        sent = fill(client, b"".join(request(READ, n, 0, MIB) for n in range(1000)), 400)
        if server.ours:
            assert sent < 400, "400,000 requests were taken from a client that reads nothing"
        began = time.monotonic()
        other.write(0, b"d" * PAGE)
        assert other.read(0, PAGE) == b"d" * PAGE
        assert time.monotonic() - began < PROMPT_S
        if server.ours:
            assert server.resident_bytes() - before < 96 * MIB


@pytest.mark.parametrize("running", OURS, indirect=True)
def test_stalled_client_is_disconnected(server: Server) -> None:
    """A client that takes no answer at all for the stall time-out is let go while it still holds on."""
    with server.connect() as client:
        fill(client, b"".join(request(READ, n, 0, MIB) for n in range(1000)), 20)
        wait_for(lambda: server.open_now()[0] == 0, 30.0, "the stalled client's end")


def test_slow_reader_is_answered_in_full(server: Server) -> None:
    """A client that pauses before reading finds every reply: at the limit requests wait, they do not fail."""
    count, length = 3000, 16384
    data = random.Random(8).randbytes(length)
    with server.connect() as client:
        client.write(0, data)
        failures: list[Exception] = []

        def ask() -> None:
            try:
                for n in range(count):
                    client.send(request(READ, n, 0, length))
            except Exception as error:  # noqa: BLE001 - it belongs to the test, which checks it
                failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(1.0)  # the pause; whether all was sent by then depends on the server's buffers
        seen = set()
        for _ in range(count):
            reply = client.simple_reply(length)
            assert reply.error == 0
            assert reply.data == data
            seen.add(reply.cookie)
        asking.join()
        assert not failures
        assert seen == set(range(count))


def test_writer_that_never_reads(server: Server) -> None:
    """The same for small replies: hundreds of thousands of WRITEs whose answers nobody takes."""
    with server.connect() as other, server.connect() as client:
        burst = b"".join(request(WRITE, n, (n % 64) * PAGE, 64, 0, bytes(64)) for n in range(1000))
        before = server.resident_bytes()
        fill(client, burst, 300)
        began = time.monotonic()
        assert other.read(0, PAGE)[64:] == other.read(0, PAGE)[64:]
        assert time.monotonic() - began < PROMPT_S
        if server.ours:
            assert server.resident_bytes() - before < 96 * MIB


def test_more_requests_than_fit_in_flight(server: Server) -> None:
    """Twenty thousand requests in one stream are each answered once."""
    count = 20000
    with server.connect() as client:
        sender = threading.Thread(
            target=client.send, args=(b"".join(request(READ, n, (n % 100) * PAGE, 8) for n in range(count)),)
        )
        sender.start()
        cookies = [client.simple_reply(8).cookie for _ in range(count)]
        sender.join()
        assert sorted(cookies) == list(range(count))


@pytest.mark.parametrize("end", ["disc", "half-close"])
def test_end_with_requests_in_flight(server: Server, end: str) -> None:
    """What was asked before the goodbye is answered before the connection closes."""
    count = 200
    with server.connect() as client:
        speech = b"".join(
            request(WRITE, n, n * PAGE, PAGE, FUA if n % 50 == 0 else 0, bytes([n % 256]) * PAGE)
            if n % 2
            else request(READ, n, (1000 + n) * PAGE, PAGE)
            for n in range(count)
        )

        def ask() -> None:
            client.send(speech + (request(DISC, 9999) if end == "disc" else b""))
            if end == "half-close":
                client.sock.shutdown(socket.SHUT_WR)

        asking = threading.Thread(target=ask)  # a server may want its answers taken before it takes more
        asking.start()
        seen = set()
        for _ in range(count):
            head = client.receive(16)
            assert head[:8] == bytes.fromhex("6744669800000000")
            cookie = int.from_bytes(head[8:], "big")
            seen.add(cookie)
            if cookie % 2 == 0:
                client.receive(PAGE)
        asking.join()
        assert seen == set(range(count))
        assert client.receive_to_end() == b""
    with server.connect() as client:
        for n in range(1, count, 2):
            assert client.read(n * PAGE, PAGE) == bytes([n % 256]) * PAGE


@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
def test_lost_in_the_middle_of_a_write(server: Server, how: str) -> None:
    """A client that vanishes in the middle of a WRITE leaves every page old or new, and none beyond what it sent."""
    pages, sent = 16, 5 * PAGE + 123
    for _ in range(5):
        with server.connect() as client:
            client.write(0, b"o" * pages * PAGE)
        client = server.connect(tcp=True)
        client.send(request(WRITE, 1, 0, pages * PAGE) + b"n" * sent)
        if how == "reset":
            client.reset()
        else:
            if how == "half-close":
                client.sock.shutdown(socket.SHUT_WR)
                said = client.receive_to_end()  # nothing, or that the request has failed
                assert said == b"" or (len(said) == 16 and said[4:8] != bytes(4))
            client.close()
        server.settle()
        with server.connect() as client:
            data = client.read(0, pages * PAGE)
        for page in range(pages):
            found = data[page * PAGE : (page + 1) * PAGE]
            assert found in (b"o" * PAGE, b"n" * PAGE), f"page {page} is torn"
            assert page < sent // PAGE or found == b"o" * PAGE


def test_end_at_every_byte(server: Server) -> None:
    """However far into handshake, request or payload a client gets before it vanishes, its connection is let go."""
    handshake = b"\0\0\0\3" + option(OPT_GO, go_payload(server.export.encode()))
    speech = handshake + request(WRITE, 1, 0, 40, 0, bytes(40)) + request(READ, 2, 0, PAGE) + request(FLUSH, 3)[:-1]
    for tcp in (False, True):
        for count in range(len(speech) + 1):
            client = RawClient(server.tcp if tcp else server.unix)
            with contextlib.suppress(ClosedError):
                client.send(speech[:count])
            client.close()
    server.settle()


def test_requests_right_behind_the_handshake(server: Server) -> None:
    """Requests sent in one piece with the handshake are not lost."""
    with server.connect() as client:
        client.write(0, b"e" * PAGE)
    with RawClient(server.unix) as client:
        many = b"".join(request(READ, n, 0, 4) for n in range(400))
        client.send(b"\0\0\0\3" + option(OPT_GO, go_payload(server.export.encode())) + many + request(DISC, 0))
        client.receive(18)
        while client.option_reply()[1] != 1:
            pass
        assert sorted(client.simple_reply(4).cookie for _ in range(400)) == list(range(400))
        assert client.receive_to_end() == b""


def test_reset_with_many_requests_in_flight(server: Server) -> None:
    """Connections reset under a deep queue are let go, again and again."""
    for n in range(30):
        client = server.connect(tcp=True)
        speech = b"".join(request(READ, i, i * MIB, MIB) for i in range(60))
        speech += b"".join(request(WRITE, i, i * PAGE, PAGE, 0, bytes(PAGE)) for i in range(60))
        with contextlib.suppress(TimeoutError, ClosedError):
            client.sock.settimeout(0.05)
            client.send(speech)
        client.sock.settimeout(PATIENCE_S)
        if n % 2:
            client.receive(100)
        client.reset()
    server.settle()


def test_two_connections_and_flush(server: Server) -> None:
    """What one connection wrote and had acknowledged, FLUSH on another makes permanent, and the other reads."""
    rng = random.Random(9)
    with server.connect() as one, server.connect(tcp=True) as two:
        for round_number in range(10):
            at, data = rng.randrange(0, 8 * MIB), rng.randbytes(rng.randrange(1, 20000))
            one.write(at, data)
            assert two.call(FLUSH).error == 0
            assert two.read(at, len(data)) == data
            if server.backup is not None:
                found = read_range(server.backup, at, len(data))
                assert found == data, f"round {round_number}: not on the backup after FLUSH"


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("1603010200010001fc0303") + bytes(500),
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "zeroes": bytes(100000),
    "ones": b"\xff" * 100000,
    "random": random.Random(11).randbytes(100000),
    "old": b"NBDMAGIC" + bytes(200),
    "abort": b"\0\0\0\3" + option(OPT_ABORT) + b"\xff" * 1000,
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("tcp", [False, True])
def test_garbage_on_the_port(server: Server, name: str, tcp: bool) -> None:
    """Whoever does not speak NBD gets the greeting, little more, and is let go."""
    with RawClient(server.tcp if tcp else server.unix) as client:
        with contextlib.suppress(ClosedError):
            client.send(GARBAGE[name])
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_WR)
        assert len(client.receive_to_end()) < 4096


@pytest.mark.parametrize("behind", [0, 10])
def test_wrong_request_magic(server: Server, behind: int) -> None:
    """Out of step there is no way back: what came before is answered, nothing after is, the connection ends."""
    with server.connect() as client:
        client.write(0, b"g" * PAGE)
        good = b"".join(request(READ, n, 0, 16) for n in range(behind))
        bad = bytearray(request(WRITE, 77, 0, PAGE, 0, b"x" * PAGE))
        bad[0] ^= 0xFF
        client.send(good + bytes(bad) + request(WRITE, 78, 0, PAGE, 0, b"y" * PAGE))
        answers = client.receive_to_end()
        assert len(answers) <= behind * 32
        assert len(answers) % 32 == 0
    with server.connect() as client:
        assert client.read(0, PAGE) == b"g" * PAGE


def test_random_requests(server: Server) -> None:
    """Requests with random commands, flags, ranges and payloads, in pieces of any size, never harm the server."""
    for seed in range(60):
        rng = random.Random(seed)
        client = server.connect(structured=seed % 2 == 1, allocation=seed % 4 == 3, tcp=seed % 3 == 0)
        speech = bytearray()
        for n in range(40):
            command = rng.choice([READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, 5, BLOCK_STATUS, rng.randrange(65536)])
            if command == BLOCK_STATUS and server.kind == "nbdkit":
                command = FLUSH  # of nbdkit 1.32 some end it, by an assertion of its own
            flags = rng.choice([0, 0, 0, 1 << rng.randrange(16), rng.randrange(65536)])
            edge = rng.choice([0, PAGE, server.slab_bytes, server.front_bytes, server.size_bytes, 2**32, 2**63, 2**64])
            offset = (edge + rng.choice([0, 1, -1, PAGE, -PAGE, rng.randrange(-(2**20), 2**20)])) % 2**64
            length = rng.choice([0, 1, PAGE, rng.randrange(70000), 2**31, 2**32 - 1])
            if command == READ and length > 2**20:
                length = 2**20
            if command == WRITE:
                length = min(length, 70000)
            speech += request(command, n, offset, length, flags, rng.randbytes(length) if command == WRITE else b"")
        with client:
            drain = Drain(client)
            with contextlib.suppress(ClosedError, TimeoutError):
                while speech:
                    size = rng.choice([1, 27, 28, 29, 4096, len(speech)])
                    client.send(bytes(speech[:size]))
                    del speech[:size]
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR if seed % 5 else socket.SHUT_RDWR)
            assert drain.join(), f"seed {seed}: the connection does not end"
    server.settle()


@pytest.mark.parametrize("running", OURS, indirect=True)
def test_connection_limit(server: Server) -> None:
    """At the limit a further client is turned away at once, those inside are served, and a place left is free."""
    inside = [server.connect() for _ in range(CONNECTIONS_MAX)]
    try:
        with RawClient(server.unix) as client:
            assert client.receive_to_end() == b""
        assert len(inside[0].read(0, PAGE)) == PAGE
        assert len(inside[-1].read(0, PAGE)) == PAGE
        inside.pop().close()
        wait_for(lambda: server.open_now()[0] < CONNECTIONS_MAX, PROMPT_S, "a free place")
        inside.append(server.connect())
    finally:
        for client in inside:
            client.close()


@pytest.mark.parametrize("running", OURS, indirect=True)
def test_idle_clients_do_not_keep_others_out(server: Server) -> None:
    """Many clients that say nothing: a new one is served within seconds, and the time of the others runs out."""
    idle = [RawClient(server.tcp) for _ in range(60)] + [RawClient(server.unix) for _ in range(60)]
    try:
        began = time.monotonic()
        with server.connect() as client:
            assert len(client.read(0, PAGE)) == PAGE
        assert time.monotonic() - began < 2 * PROMPT_S
        for client in idle:
            assert client.receive_to_end() in (b"", b"NBDMAGICIHAVEOPT\0\3")
    finally:
        for client in idle:
            client.close()
