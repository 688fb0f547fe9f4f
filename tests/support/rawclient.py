"""A client that sends whatever it is told to: NBD by the literal numbers of doc/proto.md.

Written apart from infiniswap.nbd on purpose, so that one mistake cannot cancel out another.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108

REQUEST_MAGIC = 0x25609513
OPTION_MAGIC = b"IHAVEOPT"
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED = 1, 2, 3, 5, 6, 7, 8
OPT_LIST_META, OPT_SET_META = 9, 10
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = (0x80000000 + n for n in (1, 2, 3, 6, 9))
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS = 0, 1, 2, 5

Address = str | tuple[str, int]


class ClosedError(Exception):
    """The server closed the connection."""


def option(number: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """One option of the handshake; length: what its header claims, if that is to be wrong."""
    return OPTION_MAGIC + struct.pack(">II", number, len(payload) if length is None else length) + payload


def go_payload(name: bytes, infos: tuple[int, ...] = ()) -> bytes:
    """Payload of INFO and GO."""
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_payload(name: bytes, queries: tuple[bytes, ...] = (b"base:allocation",)) -> bytes:
    """Payload of LIST_META_CONTEXT and SET_META_CONTEXT."""
    head = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return head + b"".join(struct.pack(">I", len(query)) + query for query in queries)


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> bytes:
    """One request of the transmission phase."""
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length) + payload


def split_option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Option, reply and payload of each answer in data; fails when data is not a sequence of whole answers."""
    out = []
    while data:
        magic, number, reply, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        out.append((number, reply, data[20 : 20 + length]))
        data = data[20 + length :]
    return out


@dataclass(frozen=True)
class SimpleReply:
    """A simple reply and the data that came with it."""

    error: int
    cookie: int
    data: bytes = b""


@dataclass(frozen=True)
class ChunkReply:
    """One chunk of a structured reply."""

    done: bool
    kind: int
    cookie: int
    payload: bytes

    @property
    def error(self) -> int:
        """Errno of an error chunk, 0 of any other."""
        return int(struct.unpack_from(">I", self.payload)[0]) if self.kind & 0x8000 else 0


class RawClient:
    """One connection. Every wait ends after timeout_s with TimeoutError."""

    def __init__(self, address: Address, timeout_s: float = 20.0, receive_buffer_bytes: int = 0) -> None:
        """Connect; nothing is sent or read."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(timeout_s)
        self._connect(address, time.monotonic() + timeout_s)
        if family == socket.AF_INET:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.structured = False
        self.size_bytes = 0
        self.transmission_flags = 0
        self._cookie = 0

    def _connect(self, address: Address, deadline_s: float) -> None:
        while True:
            try:
                self.sock.connect(address)
            except BlockingIOError:  # a UNIX socket's backlog is full just now
                assert time.monotonic() < deadline_s, "the server does not accept"
                time.sleep(0.005)
            else:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close without a word."""
        self.sock.close()

    def reset(self) -> None:
        """Close with a RST (TCP), whatever is still in flight."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of data; ClosedError when the server is gone."""
        try:
            self.sock.sendall(data)
        except ConnectionError as error:
            raise ClosedError from error

    def receive(self, count: int) -> bytes:
        """Exactly count bytes; ClosedError when the stream ends before."""
        out = bytearray()
        while len(out) < count:
            try:
                piece = self.sock.recv(count - len(out))
            except ConnectionError as error:
                raise ClosedError(f"after {len(out)} of {count} bytes") from error
            if not piece:
                raise ClosedError(f"after {len(out)} of {count} bytes")
            out += piece
        return bytes(out)

    def receive_to_end(self, limit: int = 64 << 20) -> bytes:
        """What comes until the server closes the connection; fails beyond limit bytes."""
        out = bytearray()
        while True:
            try:
                piece = self.sock.recv(1 << 16)
            except ConnectionError:
                return bytes(out)
            if not piece:
                return bytes(out)
            out += piece
            assert len(out) <= limit, "the server does not stop sending"

    # ---- handshake ----

    def greet(self, client_flags: int = 3) -> None:
        """Take the greeting and send client flags (1 fixed newstyle, 2 no zeroes)."""
        greeting = self.receive(18)
        assert greeting[:16] == b"NBDMAGICIHAVEOPT"
        assert greeting[16:] == b"\0\3"
        self.send(struct.pack(">I", client_flags))

    def option_reply(self) -> tuple[int, int, bytes]:
        """Option, reply and payload of the next answer."""
        magic, number, reply, length = struct.unpack(">QIII", self.receive(20))
        assert magic == 0x3E889045565A9
        assert length <= 1 << 20
        return number, reply, self.receive(length)

    def ask(self, number: int, payload: bytes = b"") -> tuple[int, list[tuple[int, bytes]]]:
        """Send an option; returns its final answer (ACK or an error) and the answers before it."""
        self.send(option(number, payload))
        before: list[tuple[int, bytes]] = []
        while True:
            answered, reply, data = self.option_reply()
            assert answered == number
            if reply == REP_ACK or reply & 0x80000000:
                return reply, before
            before.append((reply, data))

    def negotiate(self, name: str, *, structured: bool = False, allocation: bool = False) -> Self:
        """The whole handshake up to transmission."""
        self.greet()
        if structured or allocation:
            assert self.ask(OPT_STRUCTURED)[0] == REP_ACK
            self.structured = True
        if allocation:
            final, contexts = self.ask(OPT_SET_META, meta_payload(name.encode()))
            assert final == REP_ACK
            assert len(contexts) == 1
        final, infos = self.ask(OPT_GO, go_payload(name.encode()))
        assert final == REP_ACK, hex(final)
        for _, info in infos:
            if info[:2] == b"\0\0":
                self.size_bytes, self.transmission_flags = struct.unpack(">QH", info[2:])
        return self

    # ---- transmission ----

    def simple_reply(self, read_bytes: int = 0) -> SimpleReply:
        """The next reply, a simple one; read_bytes: data that follows it if it is no error."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698, hex(magic)
        return SimpleReply(error, cookie, self.receive(read_bytes) if read_bytes and not error else b"")

    def chunk(self) -> ChunkReply:
        """The next chunk of a structured reply."""
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
        assert magic == 0x668E33EF, hex(magic)
        assert length <= (64 << 20)
        return ChunkReply(bool(flags & 1), kind, cookie, self.receive(length))

    def chunks(self) -> list[ChunkReply]:
        """All chunks of one structured reply, when no other is in flight."""
        out = [self.chunk()]
        while not out[-1].done:
            out.append(self.chunk())
            assert out[-1].cookie == out[0].cookie
        return out

    def call(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> SimpleReply:
        """One request and its reply, data put together; any error is in the reply."""
        self._cookie += 1
        self.send(request(command, self._cookie, offset, length, flags, payload))
        return self.answer(command, self._cookie, offset, length)

    def answer(self, command: int, cookie: int, offset: int, length: int) -> SimpleReply:
        """The reply to the one request in flight, whichever kind of reply it has to be."""
        if self.structured and command in (READ, BLOCK_STATUS):
            chunks = self.chunks()
            assert chunks[0].cookie == cookie
            error = next((chunk.error for chunk in chunks if chunk.error), 0)
            if command == BLOCK_STATUS:
                return SimpleReply(error, cookie, b"".join(c.payload for c in chunks if c.kind == CHUNK_STATUS))
            return SimpleReply(error, cookie, b"" if error else assemble(chunks, offset, length))
        reply = self.simple_reply(length if command == READ else 0)
        assert reply.cookie == cookie
        return reply

    def read(self, offset: int, length: int) -> bytes:
        """Data at offset, which must be given without an error."""
        reply = self.call(READ, offset, length)
        assert reply.error == 0, f"READ of {length} at {offset}: error {reply.error}"
        return reply.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write data at offset, which must succeed."""
        reply = self.call(WRITE, offset, len(data), flags, data)
        assert reply.error == 0, f"WRITE of {len(data)} at {offset}: error {reply.error}"


def assemble(chunks: list[ChunkReply], offset: int, length: int) -> bytes:
    """Data of a structured READ: every byte given exactly once."""
    out = bytearray(length)
    covered = 0
    for chunk in chunks:
        if chunk.kind == CHUNK_NONE:
            assert not chunk.payload
            continue
        (at,) = struct.unpack_from(">Q", chunk.payload)
        if chunk.kind == CHUNK_DATA:
            data = chunk.payload[8:]
        else:
            assert chunk.kind == CHUNK_HOLE
            data = bytes(struct.unpack(">I", chunk.payload[8:])[0])
        assert data
        assert offset <= at <= at + len(data) <= offset + length
        out[at - offset : at - offset + len(data)] = data
        covered += len(data)
    assert covered == length, f"{covered} of {length} bytes given"
    return bytes(out)
