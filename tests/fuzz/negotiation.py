"""Negotiation from both sides: what a stranger sends to our server, and what a stranger answers to our client."""

from __future__ import annotations

import struct

from infiniswap.nbd.client import NegotiationError, _dialogue, _Receive
from infiniswap.nbd.handshake import DEFAULT_LIMITS, ExportInfo, HandshakeState, ServerHandshake
from infiniswap.nbd.protocol import GREETING, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY, OPTION_REPLY_MAGIC, Reply
from tests.support.rawclient import go_payload, meta_payload, option, split_option_replies

EXPORT = ExportInfo("disk", 1 << 30, description="d" * 100)
ANSWER_BYTES_MAX = 1000  # to one option: a name, a description, four headers
TURNS_MAX = 200  # of a client's negotiation: a greeting, and the most answers to one GO twice over


def server(data: bytes) -> None:
    """A stream cut as its first byte says is answered as the whole: nothing raises, grows or loses a byte."""
    if not data:
        return
    piece, stream = data[0] or 1, data[1:]
    cut, whole = _server(), _server()
    answers = b"".join(cut.feed(stream[at : at + piece]) for at in range(0, len(stream), piece))
    assert answers == whole.feed(stream), "cutting the stream elsewhere changes the answers"
    assert cut.state is whole.state
    assert len(answers) <= DEFAULT_LIMITS.options_max * ANSWER_BYTES_MAX
    if cut.state is HandshakeState.DONE:
        assert stream.endswith(cut.result.early)
        assert cut.result == whole.result
    else:
        split_option_replies(answers)
    if cut.state is HandshakeState.NEGOTIATING:
        assert len(cut._buffer) < 16 + DEFAULT_LIMITS.payload_kept_bytes


def _server() -> ServerHandshake:
    return ServerHandshake(lambda name: EXPORT if name in ("", "disk") else None, lambda: ["disk"])


def server_seeds() -> list[bytes]:
    """Each option as a good client sends it, and the classic bad lengths."""
    flags = b"\0\0\0\3"
    good = [
        option(7, go_payload(b"disk", (0, 1, 2, 3))),
        option(6, go_payload(b"", ())),
        option(3, b""),
        option(2, b""),
    ]
    good += [
        option(10, meta_payload(b"disk", (b"base:allocation",))),
        option(9, meta_payload(b"disk", ())),
        option(8, b""),
    ]
    bad = [option(7, struct.pack(">I", 0xFFFFFFFF) + b"disk"), option(1, b"x" * 4097), option(99, b"abc")]
    return [b"\x07" + flags + one for one in good + bad] + [b"\x01" + flags + b"".join(good[1:] + bad[:1] + good[:1])]


def client(data: bytes) -> None:
    """Whatever a server answers, the client ends after a bounded number of turns: an export or a NegotiationError."""
    dialogue = _dialogue("disk")
    at, answer = 0, None
    try:
        for _ in range(TURNS_MAX):
            step = next(dialogue) if answer is None else dialogue.send(answer)
            if isinstance(step, _Receive):
                answer = data[at : at + step.count]
                at += step.count
                if len(answer) < step.count:
                    return  # the stream ends: the socket's reader raises
            else:
                answer = b""
    except NegotiationError as error:
        assert "\n" not in str(error), "one line, for the user"
        return
    except StopIteration as ended:
        assert ended.value.size_bytes >= 0
        return
    raise AssertionError(f"no end after {TURNS_MAX} turns")


def client_seeds() -> list[bytes]:
    """A server that serves, one that refuses, one of the old kind."""
    greeting = GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, 3)

    def reply(kind: int, payload: bytes) -> bytes:
        return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, 7, kind, len(payload)) + payload

    export = reply(Reply.INFO, struct.pack(">HQH", 0, 1 << 30, 0x16D))
    sizes = reply(Reply.INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20))
    return [
        greeting + export + sizes + reply(Reply.ACK, b""),
        greeting + reply(0x80000006, b"unknown export"),
        GREETING.pack(GREETING_MAGIC, 0x00420281861253, 0) + bytes(152),
    ]
