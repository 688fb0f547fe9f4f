"""Server side of NBD's fixed newstyle negotiation (doc/proto.md, "Newstyle negotiation"), without any I/O.

Bytes of the client go in by feed(), bytes for the client come out of it. Nothing that a client sends can raise, grow
memory beyond HandshakeLimits, or be lost: what follows the negotiation is in Negotiated.early.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from infiniswap.nbd.protocol import (
    ALLOCATION_CONTEXT,
    ALLOCATION_CONTEXT_ID,
    CLIENT_FLAGS,
    EXPORT_NAME_ANSWER,
    EXPORT_NAME_ZEROES,
    GREETING,
    GREETING_MAGIC,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST_BYTES_MAX,
    STRING_BYTES_MAX,
    U16,
    U32,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from infiniswap.engine.binding import ConnectionFlag


class HandshakeState(Enum):
    """Where a negotiation stands."""

    NEGOTIATING = "negotiating"
    DONE = "done"
    CLOSED = "closed"  # send what feed() returned, then close the connection


@dataclass(frozen=True, slots=True)
class HandshakeLimits:
    """Bounds on what one client may make the server read, keep and answer."""

    options_max: int = 32
    payload_kept_bytes: int = 16 << 10  # more than a name and its information requests or queries can need
    payload_bytes_max: int = 64 << 10  # a longer payload is not worth reading: the client is disconnected
    names_listed_max: int = 256


DEFAULT_LIMITS = HandshakeLimits()


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a client is told about an export; handle is the owner's, for when the client has chosen it."""

    name: str
    size_bytes: int
    read_only: bool = False
    description: str = ""
    handle: object = None
    block_minimum: int = 1
    block_preferred: int = 4096
    block_maximum: int = REQUEST_BYTES_MAX

    @property
    def transmission_flags(self) -> TransmissionFlag:
        """Flags of the export, as they are without structured replies."""
        flag = TransmissionFlag
        flags = flag.HAS_FLAGS | flag.SEND_FLUSH | flag.CAN_MULTI_CONN | flag.SEND_CACHE
        if self.read_only:
            return flags | flag.READ_ONLY
        return flags | flag.SEND_FUA | flag.SEND_TRIM | flag.SEND_WRITE_ZEROES | flag.SEND_FAST_ZERO


@dataclass(frozen=True, slots=True)
class Negotiated:
    """Outcome of a negotiation: the export chosen, how to talk, and the bytes that already came behind it."""

    export: ExportInfo
    structured: bool
    allocation: bool  # base:allocation was selected for this export
    early: bytes = b""

    @property
    def flags(self) -> ConnectionFlag:
        """The same as the engine wants to hear it."""
        # Imported here because negotiation itself works, and is tested, without the compiled engine.
        from infiniswap.engine.binding import ConnectionFlag

        flags = ConnectionFlag.NONE
        if self.structured:
            flags |= ConnectionFlag.STRUCTURED
        if self.allocation:
            flags |= ConnectionFlag.ALLOCATION
        if self.export.read_only:
            flags |= ConnectionFlag.READ_ONLY
        return flags


class _RefusalError(Exception):
    """The option is answered with an error and negotiation goes on."""

    def __init__(self, reply: Reply, message: str) -> None:
        super().__init__(message)
        self.reply = reply


class _Fields:
    """Reads the fields of an option's payload; a field that goes beyond its end is a refusal."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def number(self, layout: struct.Struct) -> int:
        self._need(layout.size)
        (value,) = layout.unpack_from(self._payload, self._at)
        self._at += layout.size
        return int(value)

    def string(self, what: str) -> bytes:
        length = self.number(U32)
        if length > STRING_BYTES_MAX:
            raise _RefusalError(Reply.ERR_INVALID, f"{what} is longer than {STRING_BYTES_MAX} bytes")
        self._need(length)
        value = self._payload[self._at : self._at + length]
        self._at += length
        return value

    def _need(self, count: int) -> None:
        if count > len(self._payload) - self._at:
            raise _RefusalError(Reply.ERR_INVALID, "a field goes beyond the option's end")

    def end(self) -> None:
        if self._at != len(self._payload):
            raise _RefusalError(Reply.ERR_INVALID, "the option is longer than its fields")


def _decode_name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _RefusalError(Reply.ERR_INVALID, "the export name is not UTF-8") from None
    if "\0" in name:
        raise _RefusalError(Reply.ERR_INVALID, "the export name contains a zero byte")
    return name


_TAKING_DATA = {Option.EXPORT_NAME, Option.INFO, Option.GO, Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT}
_KNOWN_CLIENT_FLAGS = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)


class ServerHandshake:
    """One client's negotiation. Not thread-safe."""

    def __init__(
        self,
        exports: Callable[[str], ExportInfo | None],
        names: Callable[[], list[str]],
        *,
        limits: HandshakeLimits = DEFAULT_LIMITS,
    ) -> None:
        """exports: the export of a name ("" asks for the default one) or None; names: what LIST shows."""
        self._exports = exports
        self._names = names
        self._limits = limits
        self.fault = ""  # of the client, for which it is dropped
        self._state = HandshakeState.NEGOTIATING
        self._buffer = bytearray()
        self._client_flags: ClientFlag | None = None
        self._options = 0
        self._option: tuple[int, int] | None = None  # number and length of the option whose payload is awaited
        self._drain_bytes = 0  # payload of that option still to be thrown away
        self._structured = False
        self._allocation_for: str | None = None  # the export for which base:allocation is selected
        self._export: ExportInfo | None = None

    @property
    def state(self) -> HandshakeState:
        """Where the negotiation stands."""
        return self._state

    @property
    def result(self) -> Negotiated:
        """The outcome; ValueError unless the state is DONE."""
        if self._export is None:
            raise ValueError("nothing is negotiated yet")
        allocation = self._structured and self._allocation_for == self._export.name
        return Negotiated(self._export, self._structured, allocation, bytes(self._buffer))

    def greeting(self) -> bytes:
        """What the server sends first."""
        flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        return GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, flags)

    def feed(self, data: bytes) -> bytes:
        """Take what the client sent, in pieces of any size; returns what is to be sent to it. Never raises."""
        self._buffer += data
        out = bytearray()
        while self._is(HandshakeState.NEGOTIATING) and self._step(out):
            pass
        if self._is(HandshakeState.CLOSED):
            self._buffer.clear()
        return bytes(out)

    def _drop(self, fault: str) -> None:
        """End it for what the client did."""
        self._state = HandshakeState.CLOSED
        self.fault = fault

    def _is(self, state: HandshakeState) -> bool:
        return self._state is state

    def _step(self, out: bytearray) -> bool:
        """Use up one item of the buffer; False when it is not complete yet."""
        if self._drain_bytes:
            gone = min(self._drain_bytes, len(self._buffer))
            del self._buffer[:gone]
            self._drain_bytes -= gone
            if self._drain_bytes:
                return False
        if self._client_flags is None:
            return self._take_client_flags()
        if self._option is None:
            return self._take_option_header(out)
        return self._take_payload(out)

    def _take_client_flags(self) -> bool:
        raw = self._take(CLIENT_FLAGS.size)
        if raw is None:
            return False
        (flags,) = CLIENT_FLAGS.unpack(raw)
        if flags & ~_KNOWN_CLIENT_FLAGS:  # proto.md: the server must drop a client whose flags it does not know
            self._drop("its flags are unknown")
        self._client_flags = ClientFlag(flags & _KNOWN_CLIENT_FLAGS)
        return True

    def _take_option_header(self, out: bytearray) -> bool:
        raw = self._take(OPTION.size)
        if raw is None:
            return False
        magic, option, length = OPTION.unpack(raw)
        self._options += 1
        if magic != OPTION_MAGIC:
            self._drop("what it said is no option")
        elif self._options > self._limits.options_max:
            self._drop(f"it sent more than {self._limits.options_max} options")
        elif length > self._limits.payload_bytes_max:
            self._drop(f"an option has more than {self._limits.payload_bytes_max} bytes")
            if option != Option.EXPORT_NAME:
                out += _reply(option, Reply.ERR_TOO_BIG, b"the option is too long")
        else:
            self._option = (option, length)
            if option not in _TAKING_DATA or length > self._limits.payload_kept_bytes:
                self._drain_bytes = length
        return True

    def _take_payload(self, out: bytearray) -> bool:
        assert self._option is not None
        assert self._client_flags is not None
        option, length = self._option
        kept = option in _TAKING_DATA and length <= self._limits.payload_kept_bytes
        payload = self._take(length) if kept else b""
        if payload is None:
            return False
        self._option = None
        if option == Option.EXPORT_NAME:
            self._export_name(payload if kept else None, out)
        elif not self._client_flags & ClientFlag.FIXED_NEWSTYLE:
            self._drop("it is too old for any option but EXPORT_NAME")  # and would not understand an answer
        elif option in _TAKING_DATA and not kept:
            self._forget_contexts(option)
            out += _reply(option, Reply.ERR_TOO_BIG, b"the option is too long")
        else:
            try:
                out += self._answer(option, length, payload)
            except _RefusalError as refusal:
                out += _reply(option, refusal.reply, str(refusal).encode())
        return True

    def _take(self, count: int) -> bytes | None:
        if len(self._buffer) < count:
            return None
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    # ---- options ----

    def _answer(self, option: int, length: int, payload: bytes) -> bytes:
        if option == Option.ABORT:
            self._state = HandshakeState.CLOSED
            return _reply(option, Reply.ACK)
        if option in (Option.INFO, Option.GO):
            return self._info(option, payload)
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            self._forget_contexts(option)
            return self._meta_context(option, payload)
        if option in (Option.LIST, Option.STRUCTURED_REPLY, Option.STARTTLS) and length:
            raise _RefusalError(Reply.ERR_INVALID, "this option takes no data")
        if option == Option.LIST:
            return self._list()
        if option == Option.STRUCTURED_REPLY:
            self._structured = True
            return _reply(option, Reply.ACK)
        if option == Option.STARTTLS:
            # Nothing negotiated is forgotten: as TLS is refused, the client goes on in the same plain session.
            raise _RefusalError(Reply.ERR_UNSUP, "this server has no TLS")
        raise _RefusalError(Reply.ERR_UNSUP, "unknown option")

    def _export_name(self, raw: bytes | None, out: bytearray) -> None:
        """The old way to choose: it has no error reply, so whatever is wrong ends the connection."""
        self._state = HandshakeState.CLOSED
        if raw is None or len(raw) > STRING_BYTES_MAX:
            return
        try:
            export = self._exports(_decode_name(raw))
        except _RefusalError:
            return
        if export is None:
            return
        out += EXPORT_NAME_ANSWER.pack(export.size_bytes, self._transmission_flags(export))
        if self._client_flags is not None and not self._client_flags & ClientFlag.NO_ZEROES:
            out += bytes(EXPORT_NAME_ZEROES)
        self._finish(export)

    def _list(self) -> bytes:
        names = self._names()
        if len(names) > self._limits.names_listed_max:
            raise _RefusalError(Reply.ERR_TOO_BIG, "there are too many exports to list")
        out = bytearray()
        for name in names:
            raw = name.encode()
            out += _reply(Option.LIST, Reply.SERVER, U32.pack(len(raw)) + raw)
        return bytes(out + _reply(Option.LIST, Reply.ACK))

    def _info(self, option: int, payload: bytes) -> bytes:
        fields = _Fields(payload)
        name = _decode_name(fields.string("the export name"))
        wanted = {fields.number(U16) for _ in range(fields.number(U16))}
        fields.end()
        export = self._find(name)
        flags = self._transmission_flags(export)
        out = bytearray(_reply(option, Reply.INFO, INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, flags)))
        if Info.BLOCK_SIZE in wanted:
            sizes = (export.block_minimum, export.block_preferred, export.block_maximum)
            out += _reply(option, Reply.INFO, INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))
        if Info.NAME in wanted:
            out += _reply(option, Reply.INFO, U16.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted and export.description:
            out += _reply(option, Reply.INFO, U16.pack(Info.DESCRIPTION) + export.description.encode())
        out += _reply(option, Reply.ACK)
        if option == Option.GO:
            self._finish(export)
        return bytes(out)

    def _meta_context(self, option: int, payload: bytes) -> bytes:
        fields = _Fields(payload)
        name = _decode_name(fields.string("the export name"))
        queries = [fields.string("a query") for _ in range(fields.number(U32))]
        fields.end()
        if not self._structured:
            raise _RefusalError(Reply.ERR_INVALID, "structured replies must be negotiated first")
        export = self._find(name)
        setting = option == Option.SET_META_CONTEXT
        matches = ALLOCATION_CONTEXT.encode() in queries or (not setting and (not queries or b"base:" in queries))
        out = b""
        if matches:
            context_id = ALLOCATION_CONTEXT_ID if setting else 0
            out = _reply(option, Reply.META_CONTEXT, U32.pack(context_id) + ALLOCATION_CONTEXT.encode())
            if setting:
                self._allocation_for = export.name
        return out + _reply(option, Reply.ACK)

    def _forget_contexts(self, option: int) -> None:
        if option == Option.SET_META_CONTEXT:  # proto.md: it replaces what was set before even when it fails
            self._allocation_for = None

    def _find(self, name: str) -> ExportInfo:
        export = self._exports(name)
        if export is None:
            raise _RefusalError(Reply.ERR_UNKNOWN, "no such export")
        return export

    def _transmission_flags(self, export: ExportInfo) -> int:
        flags = export.transmission_flags
        return int(flags | TransmissionFlag.SEND_DF if self._structured else flags)

    def _finish(self, export: ExportInfo) -> None:
        self._export = export
        self._state = HandshakeState.DONE


def _reply(option: int, reply: Reply, payload: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(payload)) + payload
