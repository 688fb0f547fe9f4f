"""The listener negotiates with good clients while bad ones idle, flood, vanish or drip, and always ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from infiniswap.nbd import listener as listener_module
from infiniswap.nbd.client import NegotiationError, connect
from infiniswap.nbd.handshake import ExportInfo, Negotiated
from infiniswap.nbd.listener import NbdListener
from infiniswap.nbd.sockets import open_tcp_socket, open_unix_socket
from tests.support.rawclient import OPT_ABORT, OPT_GO, OPT_LIST, OPT_STRUCTURED, go_payload, option
from tests.support.waiting import eventually

EXPORT = ExportInfo("disk", 1 << 20)
HELLO = b"\0\0\0\3"
GREETING = b"NBDMAGICIHAVEOPT\0\3"
DEADLINE_S = 20.0
PROMPT_S = 10.0  # what "at once" may take where the machine stands still now and then


class Nursery:
    """A listener on a UNIX and a TCP socket, and what it handed on."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.path = str(folder / "s")
        self.taken: list[tuple[socket.socket, Negotiated]] = []
        self.fail = False
        tcp = open_tcp_socket("127.0.0.1", 0)
        self.port: int = tcp.getsockname()[1]
        self.listener = NbdListener(
            [open_unix_socket(self.path), tcp],
            lambda name: EXPORT if name in ("", "disk") else None,
            lambda: ["disk"],
            self.take,
            open_connections=lambda: len(self.taken),
            **{"connections_max": 1000, "handshake_timeout_s": 2 * PROMPT_S, **options},
        )

    def take(self, sock: socket.socket, negotiated: Negotiated) -> None:
        """What the engine would do."""
        if self.fail:
            raise OSError(24, "no more of anything")
        self.taken.append((sock, negotiated))


@asynccontextmanager
async def nursery(folder: Path, **options: Any) -> AsyncIterator[Nursery]:
    """A running listener; its end does not wait for handshakes, and nothing may be left."""
    it = Nursery(folder, options)
    await it.listener.start()
    try:
        yield it
    finally:
        began = time.monotonic()
        await it.listener.close()
        assert time.monotonic() - began < PROMPT_S
        assert it.listener.handshakes == 0
        for sock, _ in it.taken:
            sock.close()


async def dial(it: Nursery, tcp: bool = False) -> socket.socket:
    """A client's connected socket."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
    sock.setblocking(False)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await loop.sock_connect(sock, ("127.0.0.1", it.port) if tcp else it.path)
            except BlockingIOError:  # the backlog is full just now
                await asyncio.sleep(0.01)
            except BaseException:
                sock.close()
                raise
            else:
                return sock


async def hear(sock: socket.socket, count: int | None = None) -> bytes:
    """count bytes, or all until the end."""
    loop = asyncio.get_running_loop()
    out = b""
    async with asyncio.timeout(DEADLINE_S):
        while count is None or len(out) < count:
            try:
                piece = await loop.sock_recv(sock, 65536 if count is None else count - len(out))
            except ConnectionError:
                break
            if not piece:
                break
            out += piece
    return out


async def test_hand_over(tmp_path: Path) -> None:
    """A negotiated socket is handed on clean: nothing read is lost, nothing unread is touched, options are set."""
    async with nursery(tmp_path) as it:
        for tcp in (False, True):
            it.taken.clear()
            client = await dial(it, tcp)
            await asyncio.get_running_loop().sock_sendall(
                client, HELLO + option(OPT_GO, go_payload(b"disk")) + b"early"
            )
            await eventually(lambda: len(it.taken) == 1)
            sock, negotiated = it.taken[0]
            assert negotiated.export is EXPORT
            assert negotiated.early == b"early"
            await asyncio.get_running_loop().sock_sendall(client, b"late")
            assert await hear(sock, 4) == b"late"
            assert sock.getblocking() is False
            if tcp:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            await eventually(lambda: it.listener.handshakes == 0)
            client.close()
            sock.close()


async def test_clients(tmp_path: Path) -> None:
    """Our own client gets through both doors, and is told why when it does not."""
    async with nursery(tmp_path) as it:
        for address in (it.path, ("127.0.0.1", it.port)):
            sock, export = await connect(address, "disk", DEADLINE_S)
            assert export.size_bytes == 1 << 20
            sock.close()
            with pytest.raises(NegotiationError, match="no such export"):
                await connect(address, "secret", DEADLINE_S)
        await eventually(lambda: it.listener.failed_total == 2)


async def test_gone_at_every_byte(tmp_path: Path) -> None:
    """A client that vanishes after any number of its handshake's bytes leaves nothing behind."""
    speech = HELLO + option(OPT_STRUCTURED) + option(OPT_LIST) + option(OPT_GO, go_payload(b"disk"))
    loop = asyncio.get_running_loop()
    async with nursery(tmp_path) as it:
        for count in range(len(speech)):
            for reset in (False, True):
                client = await dial(it, tcp=reset)
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(client, speech[:count])
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
        await eventually(lambda: it.listener.accepted_total == 2 * len(speech) and it.listener.handshakes == 0)
        assert it.taken == []


async def test_deadline(tmp_path: Path) -> None:
    """The handshake's deadline counts from its beginning: silence and dripping end alike."""
    loop = asyncio.get_running_loop()
    async with nursery(tmp_path, handshake_timeout_s=0.5) as it:
        silent, dripping = await dial(it), await dial(it)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in HELLO + option(99, bytes(2000)):
                await loop.sock_sendall(dripping, bytes([byte]))
                await asyncio.sleep(0.01)
        assert await hear(silent) == GREETING
        assert (await hear(dripping)).startswith(GREETING)
        assert 0.4 < time.monotonic() - began < PROMPT_S
        assert it.listener.failed_total == 2
        silent.close()
        dripping.close()


async def test_client_that_takes_no_answers(tmp_path: Path) -> None:
    """A client that asks and does not read is bound by the same deadline."""
    async with nursery(tmp_path, handshake_timeout_s=0.5) as it:
        client = await dial(it)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.get_running_loop().sock_sendall(client, HELLO + option(OPT_LIST) * 31)
        await eventually(lambda: it.listener.handshakes == 0)
        client.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for a thousand sockets, where the default limit has less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_thousand_idle_connections(tmp_path: Path) -> None:
    """A thousand clients that say nothing: a good one is served, negotiations stay bounded, the end is prompt."""
    loop = asyncio.get_running_loop()
    async with nursery(tmp_path, handshakes_max=64, handshake_timeout_s=2 * PROMPT_S) as it:
        idle: list[socket.socket] = []
        most = 0
        for n in range(1000):
            idle.append(await dial(it, tcp=n % 2 == 0))
            most = max(most, it.listener.handshakes)
        client = await dial(it)
        await loop.sock_sendall(client, HELLO + option(OPT_GO, go_payload(b"disk")))
        assert (await hear(client, 18)) == GREETING
        await eventually(lambda: len(it.taken) == 1)
        assert most <= 64
        assert it.listener.handshakes <= 64
        client.close()
    for sock in idle:
        assert await hear(sock) in (b"", GREETING)
        sock.close()
    with pytest.raises(FileNotFoundError):
        await dial(it)


async def test_connection_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the limit new clients are closed at once, with one line in the log for all; below it they are served."""
    async with nursery(tmp_path, connections_max=2) as it:
        inside = [(await connect(it.path, "disk", DEADLINE_S))[0] for _ in range(2)]
        with caplog.at_level(logging.WARNING):
            for _ in range(50):
                with pytest.raises((NegotiationError, OSError)):
                    await connect(it.path, "disk", DEADLINE_S)
        assert it.listener.refused_total == 50
        assert [record.message for record in caplog.records] == ["a new connection was closed: 2 are open"]
        it.taken.pop()[0].close()
        inside.append((await connect(it.path, "disk", DEADLINE_S))[0])
        for sock in inside:
            sock.close()


async def test_a_part_is_kept_for_this_host(tmp_path: Path) -> None:
    """Clients over TCP take three quarters at most; those on the UNIX socket take what is left."""
    async with nursery(tmp_path, connections_max=8) as it:
        inside = [(await connect(("127.0.0.1", it.port), "disk", DEADLINE_S))[0] for _ in range(6)]
        with pytest.raises((NegotiationError, OSError)):
            await connect(("127.0.0.1", it.port), "disk", DEADLINE_S)
        inside += [(await connect(it.path, "disk", DEADLINE_S))[0] for _ in range(2)]
        with pytest.raises((NegotiationError, OSError)):
            await connect(it.path, "disk", DEADLINE_S)
        assert (len(it.taken), it.listener.refused_total) == (8, 2)
        for sock in inside:
            sock.close()


async def test_limit_reached_meanwhile(tmp_path: Path) -> None:
    """The limit also holds for clients that began to negotiate when there was room."""
    loop = asyncio.get_running_loop()
    async with nursery(tmp_path, connections_max=1) as it:
        clients = [await dial(it) for _ in range(3)]
        for client in clients:
            assert await hear(client, 18) == GREETING
        for client in clients:
            await loop.sock_sendall(client, HELLO + option(OPT_GO, go_payload(b"disk")))
        await eventually(lambda: it.listener.handshakes == 0)
        assert len(it.taken) == 1
        assert it.listener.refused_total == 2
        for client in clients:
            client.close()


async def test_failing_hand_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that the engine does not take is closed and told in the log; the next one is served."""
    async with nursery(tmp_path) as it:
        it.fail = True
        with caplog.at_level(logging.ERROR):
            sock, _ = await connect(it.path, "disk", DEADLINE_S)
            assert await hear(sock) == b""
            sock.close()
        assert "could not be handed on" in caplog.text
        it.fail = False
        sock, _ = await connect(it.path, "disk", DEADLINE_S)
        sock.close()
        assert len(it.taken) == 1


async def test_nothing_secret_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Export names are secrets on a daemon: none is logged, whatever is asked or goes wrong."""
    async with nursery(tmp_path, handshake_timeout_s=0.3) as it:
        loop = asyncio.get_running_loop()
        with caplog.at_level(logging.DEBUG):
            for it.fail in (False, True):
                for name in ("disk", "lease-secret"):
                    with contextlib.suppress(NegotiationError, OSError):
                        (await connect(it.path, name, DEADLINE_S))[0].close()
                    client = await dial(it)
                    await loop.sock_sendall(client, HELLO + option(OPT_GO, go_payload(name.encode()))[:-1])
                    await hear(client)
                    client.close()
    assert "secret" not in caplog.text
    assert "disk" not in caplog.text


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (struct.pack(">I", 1 << 7), "a client was dropped: its flags are unknown"),
        (HELLO + b"GET / HTTP/1.1\r\n\r\n", "a client was dropped: what it said is no option"),
        (HELLO + option(OPT_LIST) * 40, "a client was dropped: it sent more than 32 options"),
        (HELLO + option(OPT_LIST)[:-4] + b"\x7f\0\0\0", "a client was dropped: an option has more than 65536 bytes"),
        (HELLO[:3], "a client was dropped: its negotiation took more than 0.1 s"),
        (HELLO + option(OPT_GO, go_payload(b"gone")), "a client asked for an export that is not here"),
    ],
)
async def test_dropped_clients_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: bytes, told: str
) -> None:
    """Why a client is dropped or refused stands in the log, once however many do the same."""
    loop = asyncio.get_running_loop()
    async with nursery(tmp_path, handshake_timeout_s=0.1 if len(said) < 4 else 2 * PROMPT_S) as it:
        for _ in range(5):
            client = await dial(it)
            with contextlib.suppress(ConnectionError):  # a deadline may be over before
                await loop.sock_sendall(client, said)
            dropped = told.startswith("a client was dropped")
            await hear(client, None if dropped else len(GREETING) + 20)  # else an answer of 20 bytes at least
            client.close()
            await eventually(lambda: it.listener.handshakes == 0)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [told]


async def test_broken_protocol_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the data path counts against clients stands in the log: once, with how much it was since the last look."""
    monkeypatch.setattr(listener_module, "WATCH_INTERVAL_S", 0.01)
    counted, looks = [7], [0]

    def look() -> int:
        looks[0] += 1
        return counted[0]

    async with nursery(tmp_path, protocol_errors=look):
        for errors in (7, 10, 15, 15):  # what was there before is not news
            counted[0], looks[0] = errors, 0
            await eventually(lambda: looks[0] > 1)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["clients sent 3 requests that are none, or that are not allowed"]


async def test_a_client_that_leaves_is_none_of_our_business(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who looks for an open port, or aborts in order, is not worth a line."""
    loop = asyncio.get_running_loop()
    async with nursery(tmp_path) as it:
        for said in (b"", HELLO, HELLO + option(OPT_ABORT)):
            client = await dial(it)
            await loop.sock_sendall(client, said)
            client.close()
            await eventually(lambda: it.listener.handshakes == 0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_abort_is_acknowledged(tmp_path: Path) -> None:
    """ABORT's acknowledgement arrives before the connection closes."""
    async with nursery(tmp_path) as it:
        client = await dial(it, tcp=True)
        await asyncio.get_running_loop().sock_sendall(client, HELLO + option(OPT_ABORT))
        assert await hear(client) == GREETING + struct.pack(">QIII", 0x3E889045565A9, OPT_ABORT, 1, 0)
        client.close()


async def test_out_of_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When accept fails for want of descriptors the listener waits and goes on, without spinning."""
    attempts = 0
    accept = socket.socket.accept

    def scarce(sock: socket.socket) -> tuple[socket.socket, object]:
        nonlocal attempts
        attempts += 1
        if attempts <= 3:
            raise OSError(24, "Too many open files")
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    async with nursery(tmp_path) as it:
        sock, _ = await connect(it.path, "disk", DEADLINE_S)
        sock.close()
        assert len(it.taken) == 1
        assert attempts < 20


async def test_an_address_that_opens_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed unseen beyond its rate and counted, clients on the UNIX socket are not; later it is served again."""
    monkeypatch.setattr(listener_module, "ADDRESS_BURST", 3)
    monkeypatch.setattr(listener_module, "ADDRESS_PER_S", 20.0)
    async with nursery(tmp_path) as it:
        socks = [await dial(it, tcp=True) for _ in range(12)]
        await eventually(lambda: it.listener.accepted_total == 12)
        assert it.listener.flooded_total > 0
        assert it.listener.handshakes == 12 - it.listener.flooded_total
        local = [await dial(it) for _ in range(12)]
        assert [await hear(sock, len(GREETING)) for sock in local] == [GREETING] * 12
        async with asyncio.timeout(DEADLINE_S):
            while True:
                late = await dial(it, tcp=True)
                served = await hear(late, len(GREETING)) == GREETING
                late.close()
                if served:
                    break
        for sock in (*socks, *local):
            sock.close()
