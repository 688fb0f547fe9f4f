"""The server's negotiation answers every option as NBD's doc/proto.md says, and survives what breaks other servers."""

from __future__ import annotations

import struct

import pytest

from infiniswap.nbd.handshake import ExportInfo, HandshakeLimits, HandshakeState, ServerHandshake
from infiniswap.nbd.protocol import TransmissionFlag
from tests.support.rawclient import (
    ERR_INVALID,
    ERR_TOO_BIG,
    ERR_UNKNOWN,
    ERR_UNSUP,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META,
    OPT_SET_META,
    OPT_STARTTLS,
    OPT_STRUCTURED,
    REP_ACK,
    REP_INFO,
    REP_META,
    REP_SERVER,
    go_payload,
    meta_payload,
    option,
    split_option_replies,
)

FIXED = b"\0\0\0\1"
NO_ZEROES = b"\0\0\0\3"
EXPORTS = {
    "": ExportInfo("a", 10 << 20, description="the first"),
    "a": ExportInfo("a", 10 << 20, description="the first"),
    "b": ExportInfo("b", 5000, read_only=True),
    "x" * 300: ExportInfo("x" * 300, 1),
    "y" * 4096: ExportInfo("y" * 4096, 2),
    "schön": ExportInfo("schön", 3, block_minimum=512, block_preferred=65536, block_maximum=1 << 20),
}


def fresh(client_flags: bytes = NO_ZEROES, **limits: int) -> ServerHandshake:
    """A negotiation whose greeting is over."""
    handshake = ServerHandshake(EXPORTS.get, lambda: ["a", "b", "schön"], limits=HandshakeLimits(**limits))
    assert handshake.greeting() == b"NBDMAGICIHAVEOPT\0\3"
    assert handshake.feed(client_flags) == b""
    return handshake


def ask(handshake: ServerHandshake, number: int, payload: bytes = b"") -> list[tuple[int, bytes]]:
    """Answers to one option, each with its reply and payload; each must name the option."""
    answers = split_option_replies(handshake.feed(option(number, payload)))
    assert all(answered == number for answered, _, _ in answers)
    return [(reply, data) for _, reply, data in answers]


def final(handshake: ServerHandshake, number: int, payload: bytes = b"") -> int:
    """The last answer to an option."""
    return ask(handshake, number, payload)[-1][0]


def still_in_step(handshake: ServerHandshake) -> None:
    """The negotiation goes on and can come to its end."""
    assert handshake.state is HandshakeState.NEGOTIATING
    assert final(handshake, OPT_GO, go_payload(b"b")) == REP_ACK
    assert handshake.result.export.name == "b"


def test_go() -> None:
    """GO describes the export, ends the negotiation, and what came behind it is kept to the byte."""
    handshake = fresh()
    out = handshake.feed(option(OPT_GO, go_payload(b"a")) + b"request")
    assert handshake.state is HandshakeState.DONE
    info = struct.pack(">HQH", 0, 10 << 20, int(EXPORTS["a"].transmission_flags))
    assert split_option_replies(out) == [(OPT_GO, REP_INFO, info), (OPT_GO, REP_ACK, b"")]
    result = handshake.result
    assert (result.export.name, result.structured, result.allocation, result.early) == ("a", False, False, b"request")
    assert handshake.feed(b" and more") == b""
    assert handshake.result.early == b"request and more"


def test_info_requests() -> None:
    """Information that is asked for is given once, unknown kinds are ignored, the block sizes are the export's."""
    handshake = fresh()
    answers = ask(handshake, OPT_INFO, go_payload("schön".encode(), (3, 1, 2, 77, 65535, 3)))
    assert [reply for reply, _ in answers] == [REP_INFO] * 3 + [REP_ACK]
    assert struct.pack(">HIII", 3, 512, 65536, 1 << 20) in [data for _, data in answers]
    assert b"\0\1" + "schön".encode() in [data for _, data in answers]
    answers = ask(handshake, OPT_INFO, go_payload(b"", (1, 2)))
    assert b"\0\1a" in [data for _, data in answers]  # the default export under its own name
    assert b"\0\2the first" in [data for _, data in answers]
    still_in_step(handshake)


def test_info_of_two_go_of_a_third() -> None:
    """INFO(a), INFO(b), GO(c): each is answered for its own export and the last one counts."""
    handshake = fresh()
    assert ask(handshake, OPT_INFO, go_payload(b"a"))[0][1][2:10] == struct.pack(">Q", 10 << 20)
    assert ask(handshake, OPT_INFO, go_payload(b"b"))[0][1][2:10] == struct.pack(">Q", 5000)
    assert ask(handshake, OPT_INFO, go_payload(b"nothing")) == [(ERR_UNKNOWN, b"no such export")]
    assert final(handshake, OPT_GO, go_payload(b"nothing")) == ERR_UNKNOWN
    assert final(handshake, OPT_GO, go_payload(b"y" * 4096)) == REP_ACK
    assert handshake.result.export.size_bytes == 2


def test_transmission_flags() -> None:
    """Flags are what the engine can do; DF only with structured replies, nothing that writes on a read-only export."""
    for structured in (False, True):
        for name, read_only in (("a", False), ("b", True)):
            handshake = fresh()
            if structured:
                assert final(handshake, OPT_STRUCTURED) == REP_ACK
            (_, info), _ = ask(handshake, OPT_GO, go_payload(name.encode()))
            flags = TransmissionFlag(struct.unpack(">HQH", info)[2])
            assert bool(flags & TransmissionFlag.SEND_DF) == structured
            assert bool(flags & TransmissionFlag.READ_ONLY) == read_only
            assert flags & TransmissionFlag.CAN_MULTI_CONN
            assert flags & TransmissionFlag.SEND_FLUSH
            assert bool(flags & TransmissionFlag.SEND_WRITE_ZEROES) != read_only
            assert bool(flags & TransmissionFlag.SEND_TRIM) != read_only
            # One rotational swap area turns the read-ahead by address (VMA) off for the whole host.
            assert not flags & TransmissionFlag.ROTATIONAL


@pytest.mark.parametrize("flags", [FIXED, NO_ZEROES, b"\0\0\0\0"])
def test_export_name(flags: bytes) -> None:
    """EXPORT_NAME works for the oldest clients; 124 zeroes follow unless they were negotiated away."""
    handshake = fresh(flags)
    out = handshake.feed(option(OPT_EXPORT_NAME, b"a") + b"early")
    zeroes = 0 if flags == NO_ZEROES else 124
    assert out == struct.pack(">QH", 10 << 20, int(EXPORTS["a"].transmission_flags)) + bytes(zeroes)
    assert handshake.state is HandshakeState.DONE
    assert handshake.result.early == b"early"


@pytest.mark.parametrize("name", [b"nothing", b"\xff\xfe", b"a\0", b"y" * 4097, b"y" * 60000])
def test_export_name_refused(name: bytes) -> None:
    """EXPORT_NAME has no error reply: a wrong name closes the connection without a byte."""
    handshake = fresh()
    assert handshake.feed(option(OPT_EXPORT_NAME, name)) == b""
    assert handshake.state is HandshakeState.CLOSED


@pytest.mark.parametrize("length", [257, 300, 4095, 4096])
def test_long_names(length: int) -> None:
    """Names up to the protocol's 4096 bytes are looked up like any other, in every option that takes one."""
    name = b"x" * 300 if length == 300 else b"y" * length
    known = name.decode() in EXPORTS
    for number in (OPT_INFO, OPT_GO):
        assert final(fresh(), number, go_payload(name)) == (REP_ACK if known else ERR_UNKNOWN)
    handshake = fresh()
    handshake.feed(option(OPT_EXPORT_NAME, name))
    assert handshake.state is (HandshakeState.DONE if known else HandshakeState.CLOSED)


@pytest.mark.parametrize("number", [OPT_INFO, OPT_GO, OPT_LIST_META, OPT_SET_META])
@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFFFFF, 4097, 4096, 2, 1])
def test_name_length_beyond_the_option(number: int, claimed: int) -> None:
    """A name that claims more bytes than the option has, or more than a name may have, is refused in step."""
    handshake = fresh()
    assert final(handshake, OPT_STRUCTURED) == REP_ACK
    assert final(handshake, number, struct.pack(">I", claimed) + b"a") == ERR_INVALID
    still_in_step(handshake)


@pytest.mark.parametrize("number", [OPT_INFO, OPT_GO, OPT_LIST_META, OPT_SET_META])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5])
def test_option_too_short(number: int, length: int) -> None:
    """An option whose payload ends before its fields do is refused in step."""
    handshake = fresh()
    assert final(handshake, number, bytes(length)) == ERR_INVALID
    still_in_step(handshake)


@pytest.mark.parametrize("number", [OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_GO, OPT_SET_META, 99])
@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, 65537])
def test_option_too_long_to_read(number: int, length: int) -> None:
    """An option of more than 64 KiB closes the connection before its payload is waited for."""
    handshake = fresh()
    out = handshake.feed(option(number, length=length) + bytes(100))
    assert handshake.state is HandshakeState.CLOSED
    assert out == b"" or split_option_replies(out)[0][1] == ERR_TOO_BIG


@pytest.mark.parametrize("number", [OPT_INFO, OPT_GO, OPT_LIST_META, OPT_SET_META])
@pytest.mark.parametrize("length", [10, 4096, 16384, 16385, 65536])
def test_payload_far_larger_than_the_name(number: int, length: int) -> None:
    """Bytes behind an option's last field are refused, whatever their number, and skipped to the byte."""
    payload = go_payload(b"a") if number in (OPT_INFO, OPT_GO) else meta_payload(b"a")
    handshake = fresh()
    assert final(handshake, OPT_STRUCTURED) == REP_ACK
    assert final(handshake, number, payload.ljust(len(payload) + 1 if length == 10 else length, b"\0")) in {
        ERR_INVALID,
        ERR_TOO_BIG,
    }
    still_in_step(handshake)


@pytest.mark.parametrize("number", [0, 4, 11, 12, 99, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("length", [0, 1, 16, 4097, 65536])
def test_unknown_option(number: int, length: int) -> None:
    """An unknown option is refused and its payload, which may look like options, is skipped."""
    handshake = fresh()
    payload = (option(OPT_ABORT) * (length // 16 + 1))[:length]
    assert final(handshake, number, payload) == ERR_UNSUP
    still_in_step(handshake)


@pytest.mark.parametrize("number", [OPT_LIST, OPT_STRUCTURED, OPT_STARTTLS])
def test_payload_where_none_belongs(number: int) -> None:
    """Options without data are refused when they carry some, and have no effect."""
    handshake = fresh()
    assert final(handshake, number, b"data") == ERR_INVALID
    still_in_step(handshake)
    assert not handshake.result.structured


def test_list() -> None:
    """LIST names what it is given to name, then acknowledges."""
    names = [struct.pack(">I", len(name)) + name for name in (b"a", b"b", "schön".encode())]
    assert ask(fresh(), OPT_LIST) == [(REP_SERVER, name) for name in names] + [(REP_ACK, b"")]
    hidden = ServerHandshake(EXPORTS.get, list)
    hidden.feed(NO_ZEROES)
    assert ask(hidden, OPT_LIST) == [(REP_ACK, b"")]


def test_list_is_bounded() -> None:
    """More exports than may be listed are not listed at all."""
    handshake = fresh(names_listed_max=2)
    assert final(handshake, OPT_LIST) == ERR_TOO_BIG
    still_in_step(handshake)


def test_abort() -> None:
    """ABORT is acknowledged, then the connection ends, and nothing behind it is looked at."""
    for payload in (b"", b"good-bye"):
        handshake = fresh()
        out = handshake.feed(option(OPT_ABORT, payload) + option(OPT_GO, go_payload(b"a")))
        assert split_option_replies(out) == [(OPT_ABORT, REP_ACK, b"")]
        assert handshake.state is HandshakeState.CLOSED
        assert handshake.feed(option(OPT_LIST)) == b""


def test_starttls() -> None:
    """STARTTLS is refused as unsupported; the plain session goes on, and what follows in the same packet is plain."""
    handshake = fresh()
    assert final(handshake, OPT_STRUCTURED) == REP_ACK
    out = handshake.feed(option(OPT_STARTTLS) + option(OPT_LIST))
    assert [reply for _, reply, _ in split_option_replies(out)] == [ERR_UNSUP, *[REP_SERVER] * 3, REP_ACK]
    assert final(handshake, OPT_STARTTLS) == ERR_UNSUP
    still_in_step(handshake)
    assert handshake.result.structured  # TLS never began, so the client's own view of the session holds


def test_starttls_leaves_nothing_behind() -> None:
    """A client that begins TLS although it was refused is cut off at its first record."""
    handshake = fresh()
    assert final(handshake, OPT_STARTTLS) == ERR_UNSUP
    assert handshake.feed(bytes.fromhex("16030102000100") + bytes(100)) == b""
    assert handshake.state is HandshakeState.CLOSED


def test_option_flood() -> None:
    """The 32nd option is answered, the 33rd closes the connection."""
    for last, state in ((32, HandshakeState.DONE), (33, HandshakeState.CLOSED)):
        handshake = fresh()
        for _ in range(last - 1):
            assert final(handshake, OPT_INFO, go_payload(b"a")) == REP_ACK
        handshake.feed(option(OPT_GO, go_payload(b"a")))
        assert handshake.state is state
    handshake = fresh()
    assert len(handshake.feed(option(99) * 100000)) < 32 * 64
    assert handshake.state is HandshakeState.CLOSED


@pytest.mark.parametrize("magic", [b"IHAVEOPS", b"NBDMAGIC", bytes(8), b"GET / HT"])
def test_wrong_option_magic(magic: bytes) -> None:
    """A stream that is out of step, or not NBD, is closed without an answer."""
    handshake = fresh()
    assert handshake.feed(magic + bytes(8)) == b""
    assert handshake.state is HandshakeState.CLOSED


@pytest.mark.parametrize("flags", [b"\0\0\0\4", b"\xff\xff\xff\xff", b"GET ", b"\x16\3\1\2"])
def test_unknown_client_flags(flags: bytes) -> None:
    """A client with flags that do not exist is closed, as the protocol demands."""
    assert fresh(flags).state is HandshakeState.CLOSED


def test_options_of_an_unfixed_client() -> None:
    """A client that did not negotiate fixed newstyle understands no option replies, so it gets none."""
    handshake = fresh(b"\0\0\0\0")
    assert handshake.feed(option(OPT_LIST)) == b""
    assert handshake.state is HandshakeState.CLOSED


def test_one_byte_at_a_time() -> None:
    """However the stream is cut, the answers and the outcome are the same."""
    speech = NO_ZEROES + option(OPT_STRUCTURED) + option(99, b"junk") + option(OPT_SET_META, meta_payload(b"a"))
    speech += option(OPT_LIST) + option(OPT_GO, go_payload(b"a", (3, 1))) + b"early"
    outcomes = []
    for step in (1, 2, 3, 7, 16, 17, 1000):
        handshake = ServerHandshake(EXPORTS.get, lambda: ["a"])
        out = b"".join(handshake.feed(speech[at : at + step]) for at in range(0, len(speech), step))
        outcomes.append((out, handshake.result))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0][1].allocation
    assert outcomes[0][1].early == b"early"


def test_structured_replies() -> None:
    """Structured replies are negotiated once or twice, and told in the result."""
    handshake = fresh()
    assert ask(handshake, OPT_STRUCTURED) == [(REP_ACK, b"")]
    assert ask(handshake, OPT_STRUCTURED) == [(REP_ACK, b"")]
    still_in_step(handshake)
    assert handshake.result.structured
    assert not handshake.result.allocation


def test_set_meta_context() -> None:
    """base:allocation is selected with its id and counts for the export that GO then takes."""
    handshake = fresh()
    assert final(handshake, OPT_STRUCTURED) == REP_ACK
    queries = (b"unknown:thing", b"base:other", b"base:", b"nonsense", b"", b"base:allocation")
    answers = ask(handshake, OPT_SET_META, meta_payload(b"b", queries))
    assert answers == [(REP_META, b"\0\0\0\1base:allocation"), (REP_ACK, b"")]
    still_in_step(handshake)
    assert handshake.result.allocation


@pytest.mark.parametrize(
    "then",
    [
        option(OPT_SET_META, meta_payload(b"b", ())),
        option(OPT_SET_META, meta_payload(b"b", (b"base:",))),
        option(OPT_SET_META, meta_payload(b"a")),
        option(OPT_SET_META, meta_payload(b"nothing")),
        option(OPT_SET_META, meta_payload(b"b") + b"surplus"),
        option(OPT_SET_META, b""),
        option(OPT_SET_META, bytes(20000)),
    ],
)
def test_set_meta_context_replaces(then: bytes) -> None:
    """A later SET_META_CONTEXT, also one that fails or is for another export, leaves nothing of the earlier one."""
    handshake = fresh()
    assert final(handshake, OPT_STRUCTURED) == REP_ACK
    assert final(handshake, OPT_SET_META, meta_payload(b"b")) == REP_ACK
    handshake.feed(then)
    still_in_step(handshake)
    assert not handshake.result.allocation


def test_list_meta_context() -> None:
    """LIST_META_CONTEXT shows base:allocation to no query, its own name or the namespace, and selects nothing."""
    handshake = fresh()
    assert final(handshake, OPT_LIST_META, meta_payload(b"b")) == ERR_INVALID  # not without structured replies
    assert final(handshake, OPT_SET_META, meta_payload(b"b")) == ERR_INVALID
    assert final(handshake, OPT_STRUCTURED) == REP_ACK
    shown = [(REP_META, b"\0\0\0\0base:allocation"), (REP_ACK, b"")]
    for queries in ((), (b"base:",), (b"base:allocation",), (b"x:y", b"base:allocation")):
        assert ask(handshake, OPT_LIST_META, meta_payload(b"b", queries)) == shown
    assert ask(handshake, OPT_LIST_META, meta_payload(b"b", (b"x:y", b"base:x", b""))) == [(REP_ACK, b"")]
    assert final(handshake, OPT_LIST_META, meta_payload(b"nothing")) == ERR_UNKNOWN
    still_in_step(handshake)
    assert not handshake.result.allocation


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack(">I", 1) + b"a" + struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 1) + b"a" + struct.pack(">II", 1, 0xFFFFFFFF) + b"base:allocation",
        struct.pack(">I", 1) + b"a" + struct.pack(">II", 1, 16) + b"base:allocation",
        struct.pack(">I", 1) + b"a" + struct.pack(">II", 2, 15) + b"base:allocation",
        struct.pack(">I", 1) + b"a" + struct.pack(">II", 1, 4097) + bytes(4097),
        struct.pack(">I", 1) + b"a",
        struct.pack(">I", 1) + b"\xff" + struct.pack(">I", 0),
    ],
)
def test_malformed_queries(payload: bytes) -> None:
    """Queries that reach beyond the option, or do not come in the number announced, are refused in step."""
    for number in (OPT_LIST_META, OPT_SET_META):
        handshake = fresh()
        assert final(handshake, OPT_STRUCTURED) == REP_ACK
        assert final(handshake, number, payload) == ERR_INVALID
        still_in_step(handshake)


def test_result_before_the_end() -> None:
    """There is no outcome before there is one."""
    with pytest.raises(ValueError, match="nothing is negotiated"):
        _ = fresh().result
