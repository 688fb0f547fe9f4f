"""Client side of NBD: negotiation on a socket that is handed on afterwards, and a small blocking client for tools.

Negotiation is written once, as a generator that knows no I/O, and driven by asyncio or by blocking calls. It never
reads beyond its own last byte.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from infiniswap.nbd.protocol import (
    CLIENT_FLAGS,
    GREETING,
    GREETING_MAGIC,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REPLY_ERROR,
    REQUEST,
    REQUEST_BYTES_MAX,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRING_BYTES_MAX,
    U16,
    U32,
    ClientFlag,
    Command,
    CommandFlag,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)
from infiniswap.shared.host_names import look_up

Address = str | os.PathLike[str] | tuple[str, int]
"""A UNIX socket's path, or host and port."""

_REPLY_PAYLOAD_BYTES_MAX = 64 << 10
_REPLIES_MAX = 64  # answers to one GO; a server sends about four
_DISCONNECT_TIMEOUT_S = 1.0
_CLOSED = "the server closed the connection during negotiation"


class NegotiationError(Exception):
    """The server refused, or did not speak the protocol. reply: its error, where it sent one."""

    def __init__(self, message: str, reply: Reply | None = None) -> None:
        """message: one sentence."""
        super().__init__(message)
        self.reply = reply


class RequestError(OSError):
    """The server answered a request with an error, in errno; the connection goes on.

    A class of its own, because a plain OSError with ESHUTDOWN would turn into a BrokenPipeError.
    """


@dataclass(frozen=True, slots=True)
class RemoteExport:
    """What a server said of the export that it now serves on the connection."""

    size_bytes: int
    flags: TransmissionFlag
    block_minimum: int = 1
    block_preferred: int = 4096
    block_maximum: int = REQUEST_BYTES_MAX


@dataclass(frozen=True, slots=True)
class _Send:
    data: bytes


@dataclass(frozen=True, slots=True)
class _Receive:
    count: int


_Dialogue = Generator[_Send | _Receive, bytes, RemoteExport]


def _dialogue(export_name: str) -> _Dialogue:
    """The negotiation: yields what to send and how many bytes are wanted next, is sent those bytes."""
    name = export_name.encode(errors="surrogateescape")
    if len(name) > STRING_BYTES_MAX:
        raise NegotiationError(f"an export name may have {STRING_BYTES_MAX} bytes, this one has {len(name)}")
    magic, option_magic, server_flags = GREETING.unpack((yield _Receive(GREETING.size)))
    if magic != GREETING_MAGIC or option_magic != OPTION_MAGIC:
        raise NegotiationError("the server does not speak NBD's newstyle negotiation")
    if not server_flags & HandshakeFlag.FIXED_NEWSTYLE:
        raise NegotiationError("the server is too old: it has no fixed newstyle negotiation")
    client_flags = ClientFlag.FIXED_NEWSTYLE
    if server_flags & HandshakeFlag.NO_ZEROES:
        client_flags |= ClientFlag.NO_ZEROES
    payload = U32.pack(len(name)) + name + U16.pack(1) + U16.pack(Info.BLOCK_SIZE)
    header = OPTION.pack(OPTION_MAGIC, Option.GO, len(payload))
    yield _Send(CLIENT_FLAGS.pack(client_flags) + header + payload)
    return (yield from _go_replies())


def _go_replies() -> _Dialogue:
    export: tuple[int, int] | None = None
    sizes = (1, 4096, REQUEST_BYTES_MAX)
    for _ in range(_REPLIES_MAX):
        magic, option, reply, length = OPTION_REPLY.unpack((yield _Receive(OPTION_REPLY.size)))
        if magic != OPTION_REPLY_MAGIC or option != Option.GO:
            raise NegotiationError("the server answered something that was not asked")
        if length > _REPLY_PAYLOAD_BYTES_MAX:
            raise NegotiationError("the server's answer is too long")
        payload = (yield _Receive(length)) if length else b""
        if reply & REPLY_ERROR:
            raise _refused(reply, payload)
        if reply == Reply.ACK:
            if export is None or length:
                raise NegotiationError("the server accepted without describing the export")
            return RemoteExport(export[0], TransmissionFlag(export[1]), *sizes)
        if reply != Reply.INFO or length < U16.size:
            raise NegotiationError("the server sent an unknown answer")
        (kind,) = U16.unpack_from(payload)
        if kind == Info.EXPORT and length == INFO_EXPORT.size:
            export = INFO_EXPORT.unpack(payload)[1:]
        elif kind == Info.BLOCK_SIZE and length == INFO_BLOCK_SIZE.size:
            sizes = INFO_BLOCK_SIZE.unpack(payload)[1:]
        elif kind in (Info.EXPORT, Info.BLOCK_SIZE):
            raise NegotiationError("the server sent malformed information about the export")
    raise NegotiationError("the server does not come to an end")


def _refused(reply: int, payload: bytes) -> NegotiationError:
    known = Reply(reply) if reply in Reply.__members__.values() else None
    said = "".join(c if c.isprintable() else "?" for c in payload[:200].decode(errors="replace"))
    what = known.name if known else f"error {reply:#x}"
    return NegotiationError(f"the server refused the export: {said or what}", known)


async def negotiate(sock: socket.socket, export_name: str, timeout_s: float) -> RemoteExport:
    """Choose export_name on a connected, non-blocking socket; simple replies, no metadata contexts.

    Afterwards the connection is in transmission and nothing behind the negotiation has been read. NegotiationError when
    the server refuses or talks nonsense, TimeoutError after timeout_s, OSError when the connection fails. The socket
    remains the caller's, also on failure.
    """
    async with asyncio.timeout(timeout_s):
        dialogue = _dialogue(export_name)
        step = next(dialogue)
        while True:
            try:
                received = await _take_step(sock, step)
            except ConnectionError:
                raise NegotiationError(_CLOSED) from None
            try:
                step = dialogue.send(received)
            except StopIteration as done:
                return _result(done)


async def _take_step(sock: socket.socket, step: _Send | _Receive) -> bytes:
    loop = asyncio.get_running_loop()
    if isinstance(step, _Send):
        await loop.sock_sendall(sock, step.data)
        return b""
    buffer = bytearray()
    while len(buffer) < step.count:
        piece = await loop.sock_recv(sock, step.count - len(buffer))
        if not piece:
            raise ConnectionResetError
        buffer += piece
    return bytes(buffer)


async def connect(address: Address, export_name: str, timeout_s: float) -> tuple[socket.socket, RemoteExport]:
    """Connect to address and negotiate, both within timeout_s; errors as negotiate(), and no socket is left open."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    async with asyncio.timeout_at(end_s):
        if isinstance(address, tuple):
            targets: list[tuple[int, Any]] = list(await look_up(*address))
        else:
            targets = [(socket.AF_UNIX, os.fspath(address))]
        failure: OSError = OSError(errno.EADDRNOTAVAIL, "no address found")
        for left, (family, target) in zip(range(len(targets), 0, -1), targets, strict=True):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                # One address that takes no packets must not cost the time of those behind it.
                async with asyncio.timeout((end_s - loop.time()) / left):
                    await loop.sock_connect(sock, target)
            except OSError as error:  # TimeoutError is one too
                sock.close()
                failure = error
                continue
            except BaseException:
                sock.close()
                raise
            try:
                _set_options(sock)
                return sock, await negotiate(sock, export_name, timeout_s)
            except BaseException:
                sock.close()
                raise
        raise failure


def _result(done: StopIteration) -> RemoteExport:
    result = done.value
    assert isinstance(result, RemoteExport)
    return result


def _set_options(sock: socket.socket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@dataclass
class _Deadline:
    """A point in time until which one operation may take."""

    timeout_s: float
    _end_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._end_s = time.monotonic() + self.timeout_s

    def left_s(self) -> float:
        left = self._end_s - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the server did not answer within {self.timeout_s:g} s")
        return left


class NbdClient:
    """A blocking client with one request at a time, for tools, recovery and tests; not for the data path."""

    def __init__(self, address: Address, export_name: str, timeout_s: float = 10.0) -> None:
        """Connect and negotiate within timeout_s, which is also the deadline of every later request.

        NegotiationError, TimeoutError or OSError as negotiate(). Requests raise RequestError when the server answers
        with an error; after any other OSError (TimeoutError, ConnectionError) the connection is of no more use.
        """
        self._timeout_s = timeout_s
        self._cookie = 0
        deadline = _Deadline(timeout_s)
        if isinstance(address, tuple):
            self._sock = socket.create_connection(address, timeout=deadline.left_s())
        else:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not isinstance(address, tuple):
                self._sock.settimeout(deadline.left_s())
                self._sock.connect(os.fspath(address))
            _set_options(self._sock)
            self.export = self._negotiate(export_name, deadline)
        except BaseException:
            self._sock.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Size of the export."""
        return self.export.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """The export's bytes from offset on; any length, any alignment."""
        out = bytearray()
        for start, count in self._pieces(offset, length):
            out += self._request(Command.READ, start, count, want_bytes=count)
        return bytes(out)

    def write(self, offset: int, data: bytes | bytearray | memoryview, *, fua: bool = False) -> None:
        """Write data at offset; with fua it is on stable storage on return."""
        view = memoryview(data).cast("B")
        flags = CommandFlag.FUA if fua else CommandFlag.NONE
        for start, count in self._pieces(offset, len(view)):
            self._request(Command.WRITE, start, count, flags, view[start - offset : start - offset + count])

    def trim(self, offset: int, length: int) -> None:
        """Say that these bytes are not needed any more."""
        self._request(Command.TRIM, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make these bytes read as zero."""
        self._request(Command.WRITE_ZEROES, offset, length)

    def flush(self) -> None:
        """Return when everything written before is on stable storage."""
        self._request(Command.FLUSH, 0, 0)

    def close(self) -> None:
        """Say goodbye and close; never raises."""
        try:
            self._sock.settimeout(_DISCONNECT_TIMEOUT_S)
            self._sock.sendall(REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))
        except OSError:
            pass  # the server is gone, which is what closing is about
        finally:
            self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _negotiate(self, export_name: str, deadline: _Deadline) -> RemoteExport:
        dialogue = _dialogue(export_name)
        step = next(dialogue)
        try:
            while True:
                if isinstance(step, _Send):
                    self._send(step.data, deadline)
                    step = dialogue.send(b"")
                else:
                    step = dialogue.send(bytes(self._receive(step.count, deadline)))
        except StopIteration as done:
            return _result(done)
        except ConnectionError:
            raise NegotiationError(_CLOSED) from None

    def _pieces(self, offset: int, length: int) -> Generator[tuple[int, int], None, None]:
        """Cut a range into what one request may carry."""
        step = min(max(self.export.block_maximum, 1), REQUEST_BYTES_MAX)
        for start in range(offset, offset + length, step):
            yield start, min(step, offset + length - start)

    def _request(
        self,
        command: Command,
        offset: int,
        length: int,
        flags: CommandFlag = CommandFlag.NONE,
        payload: memoryview | bytes = b"",
        *,
        want_bytes: int = 0,
    ) -> bytearray:
        if offset < 0 or length < 0 or offset + length > self.export.size_bytes:
            raise ValueError(f"{length} bytes at {offset} lie outside the export of {self.export.size_bytes} bytes")
        deadline = _Deadline(self._timeout_s)
        self._cookie += 1
        self._send(REQUEST.pack(REQUEST_MAGIC, flags, command, self._cookie, offset, length), deadline)
        if len(payload):
            self._send(payload, deadline)
        magic, error, cookie = SIMPLE_REPLY.unpack(self._receive(SIMPLE_REPLY.size, deadline))
        if magic != SIMPLE_REPLY_MAGIC or cookie != self._cookie:
            raise ConnectionError(errno.EPROTO, "the server's answer does not belong to the request")
        if error:
            raise RequestError(error, f"{command.name} of {length} bytes at {offset}: {os.strerror(error)}")
        return self._receive(want_bytes, deadline)

    def _send(self, data: bytes | memoryview, deadline: _Deadline) -> None:
        self._sock.settimeout(deadline.left_s())  # sendall treats it as the limit of the whole call
        self._sock.sendall(data)

    def _receive(self, count: int, deadline: _Deadline) -> bytearray:
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            self._sock.settimeout(deadline.left_s())
            got = self._sock.recv_into(view)
            if not got:
                raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
            view = view[got:]
        return buffer
