"""No sequence of bytes makes the server's negotiation raise, answer or keep without bound, or lose a byte."""

from __future__ import annotations

import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.nbd.handshake import DEFAULT_LIMITS, ExportInfo, HandshakeState, ServerHandshake
from tests.support.rawclient import go_payload, meta_payload, option, split_option_replies

EXPORT = ExportInfo("disk", 1 << 30, description="d" * 100)
ANSWER_BYTES_MAX = 1000  # to one option: a name, a description, four headers

_lengths = st.sampled_from([0, 1, 4, 5, 4096, 4097, 16384, 16385, 65536, 65537, 0x7FFFFFFF, 0xFFFFFFFF])
_names = st.sampled_from([b"disk", b"", b"other", b"\xff", b"d" * 4096, b"d" * 4097, b"disk\0"])
_payloads = st.one_of(
    st.binary(max_size=64),
    st.builds(go_payload, _names, st.lists(st.integers(0, 65535), max_size=5).map(tuple)),
    st.builds(
        meta_payload, _names, st.lists(st.sampled_from([b"base:allocation", b"base:", b"x"]), max_size=3).map(tuple)
    ),
    st.builds(lambda length, rest: struct.pack(">I", length) + rest, _lengths, st.binary(max_size=40)),
)
_numbers = st.one_of(st.sampled_from([1, 2, 3, 5, 6, 6, 7, 8, 8, 9, 10, 10, 11]), st.integers(0, 0xFFFFFFFF))
_options = st.one_of(
    st.builds(option, _numbers, _payloads),
    st.builds(lambda number, payload, length: option(number, payload, length=length), _numbers, _payloads, _lengths),
)
_speeches = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda flags, options, rest: flags + b"".join(options) + rest,
        st.sampled_from([b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\2", b"\0\0\0\3", b"\0\0\0\7"]),
        st.lists(_options, max_size=40),
        st.binary(max_size=50),
    ),
)


def exports(name: str) -> ExportInfo | None:
    """One export, which is also the default."""
    return EXPORT if name in ("", "disk") else None


def run(speech: bytes, cuts: list[int]) -> tuple[bytes, ServerHandshake]:
    """What a whole speech, cut in places, is answered with."""
    handshake = ServerHandshake(exports, lambda: ["disk"])
    out = bytearray()
    places = sorted({cut % (len(speech) + 1) for cut in cuts} | {0, len(speech)})
    for begin, end in itertools.pairwise(places):
        out += handshake.feed(speech[begin:end])
    return bytes(out), handshake


@settings(deadline=None, max_examples=400)
@given(_speeches, st.lists(st.integers(0, 1 << 20), max_size=10))
def test_any_bytes(speech: bytes, cuts: list[int]) -> None:
    """Nothing raises, answers are whole and bounded, and cutting the stream elsewhere changes nothing."""
    out, handshake = run(speech, cuts)
    again, whole = run(speech, [])
    assert out == again
    assert handshake.state is whole.state
    assert len(out) <= DEFAULT_LIMITS.options_max * ANSWER_BYTES_MAX
    assert len(handshake._buffer) <= max(len(speech), DEFAULT_LIMITS.payload_kept_bytes)
    if handshake.state is HandshakeState.DONE:
        assert speech.endswith(handshake.result.early)
        assert handshake.result == whole.result
        assert handshake.result.export is EXPORT
    elif handshake.state is HandshakeState.NEGOTIATING:
        # Only an option that is not complete yet is kept, and of one that is thrown away nothing at all.
        assert len(handshake._buffer) < 16 + DEFAULT_LIMITS.payload_kept_bytes
    if handshake.state is not HandshakeState.DONE:
        split_option_replies(out)


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=64), st.integers(1, 2000))
def test_endless_streams(pattern: bytes, pieces: int) -> None:
    """A client that never stops sending is closed or kept waiting in bounded memory, whatever it repeats."""
    handshake = ServerHandshake(exports, lambda: ["disk"])
    out = 0
    for _ in range(pieces):
        out += len(handshake.feed(pattern * 8))
        if handshake.state is not HandshakeState.NEGOTIATING:
            break
        assert len(handshake._buffer) < 16 + DEFAULT_LIMITS.payload_kept_bytes
    assert out <= DEFAULT_LIMITS.options_max * ANSWER_BYTES_MAX
