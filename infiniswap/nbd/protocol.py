"""Numbers and layouts of the NBD protocol, as in doc/proto.md of github.com/NetworkBlockDevice/nbd.

Everything on the wire is big-endian. Names follow the document, without their NBD_ prefix.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

# ---- handshake ----
GREETING_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
OLDSTYLE_MAGIC = 0x00420281861253

GREETING = struct.Struct(">QQH")  # GREETING_MAGIC, OPTION_MAGIC, HandshakeFlag
CLIENT_FLAGS = struct.Struct(">I")  # ClientFlag
OPTION = struct.Struct(">QII")  # OPTION_MAGIC, Option, payload bytes
OPTION_REPLY = struct.Struct(">QIII")  # OPTION_REPLY_MAGIC, Option, Reply, payload bytes
EXPORT_NAME_ANSWER = struct.Struct(">QH")  # size in bytes, TransmissionFlag; then EXPORT_NAME_ZEROES zero bytes
EXPORT_NAME_ZEROES = 124
INFO_EXPORT = struct.Struct(">HQH")  # Info.EXPORT, size in bytes, TransmissionFlag
INFO_BLOCK_SIZE = struct.Struct(">HIII")  # Info.BLOCK_SIZE, minimum, preferred, maximum, all bytes
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")

STRING_BYTES_MAX = 4096  # the protocol's limit for export names, queries and messages
REQUEST_BYTES_MAX = 32 << 20  # largest payload that servers accept when nothing was said about it

# ---- transmission ----
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

REQUEST = struct.Struct(">IHHQQI")  # REQUEST_MAGIC, CommandFlag, Command, cookie, offset, length
SIMPLE_REPLY = struct.Struct(">IIQ")  # SIMPLE_REPLY_MAGIC, error, cookie
STRUCTURED_REPLY = struct.Struct(">IHHQI")  # STRUCTURED_REPLY_MAGIC, ReplyFlag, Chunk, cookie, payload bytes


class HandshakeFlag(IntFlag):
    """What the server says of itself in the greeting."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class ClientFlag(IntFlag):
    """The client's answer to the greeting."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What a client may ask for during negotiation."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


REPLY_ERROR = 1 << 31


class Reply(IntEnum):
    """The server's answers to options; those with bit 31 set are errors, whose payload is a sentence."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = REPLY_ERROR + 1
    ERR_POLICY = REPLY_ERROR + 2
    ERR_INVALID = REPLY_ERROR + 3
    ERR_PLATFORM = REPLY_ERROR + 4
    ERR_TLS_REQD = REPLY_ERROR + 5
    ERR_UNKNOWN = REPLY_ERROR + 6
    ERR_SHUTDOWN = REPLY_ERROR + 7
    ERR_BLOCK_SIZE_REQD = REPLY_ERROR + 8
    ERR_TOO_BIG = REPLY_ERROR + 9


class Info(IntEnum):
    """Kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """Requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Flags of a request."""

    NONE = 0
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class ReplyFlag(IntFlag):
    """Flags of a structured reply's chunk."""

    DONE = 1


class Chunk(IntEnum):
    """Kinds of chunks of a structured reply; those with bit 15 set are errors."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


class NbdErrno(IntEnum):
    """Errors in replies; the numbers are the protocol's own, whatever the system's errno says."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


ALLOCATION_CONTEXT = "base:allocation"
ALLOCATION_CONTEXT_ID = 1  # the engine answers BLOCK_STATUS with this id (ISW_CONTEXT_ALLOCATION)
ALLOCATION_HOLE = 1  # NBD_STATE_HOLE
ALLOCATION_ZERO = 2  # NBD_STATE_ZERO
