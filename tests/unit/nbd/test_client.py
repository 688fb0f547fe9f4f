"""The client side negotiates with real servers, waits no longer than it was told, and believes no nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infiniswap.nbd.client import NbdClient, NegotiationError, RequestError, connect, negotiate
from infiniswap.nbd.protocol import Reply, TransmissionFlag
from tests.support.waiting import wait_for

GREETING = b"NBDMAGICIHAVEOPT\0\3"
MIB = 1 << 20
PROMPT_S = 15.0  # what a deadline far below it may take where the machine stands still now and then
PATIENT_S = 20.0  # for an answer that comes


def reply(kind: int, payload: bytes = b"", number: int = 7, magic: int = 0x3E889045565A9) -> bytes:
    """An answer to GO."""
    return struct.pack(">QIII", magic, number, kind, len(payload)) + payload


INFO = reply(3, struct.pack(">HQH", 0, 4096, 1))
ACK = reply(1)


@contextmanager
def nbdkit(folder: Path, *arguments: str) -> Iterator[str]:
    """A real server; yields its socket's path."""
    path = folder / "nbdkit.sock"
    process = subprocess.Popen(["nbdkit", "-f", "-U", str(path), *arguments])
    try:
        with socket.socket(socket.AF_UNIX) as probe:  # the path is there before anybody listens
            wait_for(lambda: process.poll() is not None or probe.connect_ex(str(path)) == 0, what="nbdkit")
        assert process.poll() is None
        yield str(path)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def impostor(folder: Path, speech: bytes, then: Callable[[socket.socket], None] | None = None) -> Iterator[str]:
    """A server that says speech whatever it hears, then does something or waits for the client to go."""
    path = str(folder / "impostor.sock")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = listening.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(speech)
                if then is not None:
                    then(client)
                while client.recv(65536):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        Path(path).unlink()


def test_blocking_client(tmp_path: Path) -> None:
    """Reads, writes, zeroing and flushes of any size do what they say, against a server that is not ours."""
    rng = random.Random(1)
    with nbdkit(tmp_path, "memory", "100M") as path, NbdClient(path, "") as client:
        assert client.size_bytes == 100 * MIB
        assert client.export.flags & TransmissionFlag.CAN_MULTI_CONN
        model = bytearray(200000)
        for _ in range(50):
            at, data = rng.randrange(150000), rng.randbytes(rng.randrange(50000))
            client.write(at, data, fua=rng.random() < 0.2)
            model[at : at + len(data)] = data
        client.write_zeroes(1000, 5000)
        model[1000:6000] = bytes(5000)
        client.flush()
        assert client.read(0, len(model)) == model
        client.trim(0, 4096)
        assert client.read(4096, 10) == model[4096:4106]
        assert client.read(0, 0) == b""
        client.write(0, b"")
        big = rng.randbytes(MIB) * 70  # more than one request may carry
        client.write(5, big)
        assert client.read(5, len(big)) == big


def test_ranges_are_checked(tmp_path: Path) -> None:
    """A range outside the export is the caller's mistake and never reaches the server."""
    with nbdkit(tmp_path, "memory", "1M") as path, NbdClient(path, "") as client:
        for offset, length in [(MIB, 1), (-1, 1), (0, MIB + 1), (MIB - 1, 2)]:
            with pytest.raises(ValueError, match="outside the export"):
                client.read(offset, length)
        assert client.read(MIB - 1, 1) == b"\0"


def test_errors_of_the_server(tmp_path: Path) -> None:
    """An error answer is told with its errno, and the connection goes on."""
    with nbdkit(tmp_path, "--filter=error", "memory", "1M", "error-pwrite-rate=100%", "error=ENOSPC") as path:
        with NbdClient(path, "") as client:
            with pytest.raises(RequestError, match="WRITE of 3 bytes at 7") as caught:
                client.write(7, b"abc")
            assert caught.value.errno == errno.ENOSPC
            assert client.read(0, 4) == bytes(4)


def test_lost_slab_is_a_request_error(tmp_path: Path) -> None:
    """ESHUTDOWN, the answer for a slab that is not mapped, is an error answer and not a broken connection."""

    def answer(client: socket.socket) -> None:
        heard = b""
        while len(heard) < 4 + 16 + 8 + 28:  # client flags, option, its payload, request
            heard += client.recv(65536)
        client.sendall(struct.pack(">II", 0x67446698, 108) + heard[-20:-12])

    with impostor(tmp_path, GREETING + INFO + ACK, answer) as path, NbdClient(path, "", PATIENT_S) as client:
        with pytest.raises(RequestError) as caught:
            client.read(0, 1)
        assert caught.value.errno == errno.ESHUTDOWN
        assert not isinstance(caught.value, ConnectionError)


async def test_connect_tells_size_and_flags(tmp_path: Path) -> None:
    """The asynchronous client tells what the server said, and leaves every byte behind the handshake unread."""
    with nbdkit(tmp_path, "-r", "memory", "1234567") as path:
        sock, export = await connect(path, "", 10.0)
        assert export.size_bytes == 1234567
        assert export.flags & TransmissionFlag.READ_ONLY
        assert export.block_maximum > 0
        sock.close()
    with impostor(tmp_path, GREETING + INFO + ACK + b"behind") as path:
        sock, export = await connect(path, "x", 10.0)
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"behind"
        sock.close()


CLOSED = "closed the connection"
NONSENSE = {  # what the server says, and what is to be said of it
    "nothing": (b"", CLOSED),
    "http": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak NBD"),
    "oldstyle": (b"NBDMAGIC" + struct.pack(">Q", 0x420281861253) + bytes(136), "does not speak NBD"),
    "not fixed": (b"NBDMAGICIHAVEOPT\0\0", "too old"),
    "other option": (GREETING + reply(1, number=6), "not asked"),
    "other magic": (GREETING + reply(1, magic=5), "not asked"),
    "ack first": (GREETING + ACK, "without describing"),
    "ack with data": (GREETING + INFO + reply(1, b"data"), "without describing"),
    "endless": (GREETING + INFO * 100, "not come to an end"),
    "long": (GREETING + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 0xFFFFFFFF) + bytes(1000), "too long"),
    "short info": (GREETING + reply(3, b"\0"), "unknown answer"),
    "malformed export": (GREETING + reply(3, b"\0\0" + bytes(3)) + ACK, "malformed"),
    "malformed sizes": (GREETING + INFO + reply(3, b"\0\3" + bytes(3)) + ACK, "malformed"),
    "unknown answer": (GREETING + INFO + reply(99) + ACK, "unknown answer"),
    "error": (GREETING + reply(0x80000006, b"no \x1b[31msuch\n thing"), r"refused the export: no \?\[31msuch\? thing"),
    "unknown error": (GREETING + reply(0x80001234), "refused the export: error 0x80001234"),
}


async def attempt(path: str, timeout_s: float, blocking: bool) -> None:
    """Negotiate with either client, which is expected to fail."""
    if blocking:
        await asyncio.to_thread(NbdClient, path, "disk", timeout_s)
    else:
        await connect(path, "disk", timeout_s)


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense(tmp_path: Path, name: str) -> None:
    """Whatever a server says instead of NBD is an error in one printable line, in both clients."""

    def end(client: socket.socket) -> None:
        client.shutdown(socket.SHUT_WR)

    for blocking in (False, True):
        speech, told = NONSENSE[name]
        with impostor(tmp_path, speech, end) as path:
            with pytest.raises(NegotiationError, match=told) as caught:
                await attempt(path, PATIENT_S, blocking)
        assert str(caught.value).isprintable()
        assert caught.value.reply == (Reply.ERR_UNKNOWN if name == "error" else None)


@pytest.mark.parametrize("speech", [b"", GREETING[:10], GREETING, GREETING + INFO, GREETING + INFO + ACK[:-1]])
async def test_deadline(tmp_path: Path, speech: bytes) -> None:
    """A server that stops in the middle is waited for no longer than was said."""
    for blocking in (False, True):
        with impostor(tmp_path, speech) as path:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await attempt(path, 0.2, blocking)
            assert 0.1 < time.monotonic() - began < PROMPT_S


def test_deadline_of_a_drip(tmp_path: Path) -> None:
    """A server that sends a byte now and then does not prolong the deadline."""

    def drip(client: socket.socket) -> None:
        for byte in INFO * 50:
            client.sendall(bytes([byte]))
            time.sleep(0.02)

    with impostor(tmp_path, GREETING, drip) as path:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            NbdClient(path, "disk", 0.3)
        assert time.monotonic() - began < PROMPT_S


def test_deadline_of_requests(tmp_path: Path) -> None:
    """Requests have the deadline too: a server that reads nothing, or answers nothing, is given up."""
    with impostor(tmp_path, GREETING + INFO.replace(struct.pack(">Q", 4096), struct.pack(">Q", 1 << 40)) + ACK) as path:
        client = NbdClient(path, "disk", PATIENT_S)
        client._timeout_s = 0.3
        with pytest.raises(TimeoutError):
            client.flush()
        client.close()


@pytest.mark.parametrize(
    "answer", [struct.pack(">IIQ", 0x67446698, 0, 77), struct.pack(">IIQ", 0x668E33EF, 0, 1), b"short"]
)
def test_nonsense_in_answers(tmp_path: Path, answer: bytes) -> None:
    """An answer that belongs to no request ends the use of the connection."""

    def say(client: socket.socket) -> None:
        client.sendall(answer)
        client.shutdown(socket.SHUT_WR)

    with impostor(tmp_path, GREETING + INFO + ACK, say) as path, NbdClient(path, "", PATIENT_S) as client:
        with pytest.raises(ConnectionError):
            client.read(0, 10)


async def test_nobody_there(tmp_path: Path) -> None:
    """Where nobody listens the error is the system's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (str(tmp_path / "none"), ("127.0.0.1", port)):
        with pytest.raises(OSError):
            await connect(address, "", 5.0)
        with pytest.raises(OSError):
            NbdClient(address, "", 5.0)


async def test_socket_stays_the_callers() -> None:
    """negotiate() closes nothing, also when it fails."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(GREETING + reply(0x80000006))
        with pytest.raises(NegotiationError, match="ERR_UNKNOWN"):
            await negotiate(ours, "disk", PATIENT_S)
        assert ours.fileno() >= 0
        assert theirs.recv(100).startswith(b"\0\0\0\3IHAVEOPT\0\0\0\7")


def test_names(tmp_path: Path) -> None:
    """A name that is too long is refused before anything is sent."""
    with nbdkit(tmp_path, "memory", "1M") as path, pytest.raises(NegotiationError, match="4096"):
        NbdClient(path, "n" * 4097)


def test_closing_twice_and_after_the_server(tmp_path: Path) -> None:
    """close() never raises, whoever was first."""

    def leave(client: socket.socket) -> None:
        client.recv(4 + 16 + 8, socket.MSG_WAITALL)
        client.close()

    with impostor(tmp_path, GREETING + INFO + ACK, leave) as path:
        client = NbdClient(path, "", PATIENT_S)
        with pytest.raises(ConnectionError):
            client.read(0, 1)
        client.close()
        client.close()
