"""Requests that no well-behaved client sends: each is refused by itself, and the connection stays in step."""

from __future__ import annotations

import os
import random
import struct

import pytest

from tests.hostile.servers import OURS, Server
from tests.support.rawclient import (
    BLOCK_STATUS,
    CACHE,
    CHUNK_DATA,
    CHUNK_HOLE,
    CHUNK_STATUS,
    DF,
    EINVAL,
    ENOSPC,
    EOVERFLOW,
    EPERM,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    ClosedError,
    RawClient,
    request,
)

MIB = 1 << 20
PAGE = 4096
OUTSIDE = {EINVAL, ENOSPC}


def in_step(client: RawClient, at: int = 64 * PAGE) -> None:
    """The connection still does what it should."""
    mark = os.urandom(100)
    client.write(at, mark)
    assert client.read(at, 100) == mark


@pytest.mark.parametrize("command", [READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS])
def test_ranges_outside(server: Server, command: int) -> None:
    """A range that begins, ends or wraps around outside the export is refused and touches nothing."""
    size = server.size_bytes
    ranges = [
        (size, 1),
        (size - 1, 2),
        (size - PAGE, 2 * PAGE),
        (size + PAGE, PAGE),
        (2**64 - PAGE, 2 * PAGE),  # wraps to PAGE
        (2**64 - 1, 1),
        (2**64 - 1, 2),
        (2**63, PAGE),
        (2**63 - 1, 2),
        (2**64 - 2**31, 2**31) if command != WRITE else (2**64 - MIB, MIB),
    ]
    with server.connect(structured=True, allocation=True) as client:
        client.write(0, b"a" * 2 * PAGE)
        client.write(size - PAGE, b"z" * PAGE)
        for offset, length in ranges:
            payload = b"x" * length if command == WRITE else b""
            reply = client.call(command, offset, length, payload=payload)
            assert reply.error in OUTSIDE, f"{length} at {offset}: {reply.error}"
        assert client.read(0, 2 * PAGE) == b"a" * 2 * PAGE
        assert client.read(size - PAGE, PAGE) == b"z" * PAGE
        in_step(client)


@pytest.mark.parametrize("structured", [False, True])
def test_zero_length(server: Server, structured: bool) -> None:
    """A request of no bytes is answered once, whatever the answer, and touches nothing."""
    with server.connect(structured=structured, allocation=structured) as client:
        client.write(0, b"k" * PAGE)
        for command in (READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS):
            for offset in (0, 1, PAGE, server.size_bytes):
                assert client.call(command, offset, 0).error in {0, EINVAL, ENOSPC}
        assert client.read(0, PAGE) == b"k" * PAGE
        in_step(client)


def test_any_alignment(server: Server) -> None:
    """Writes, reads and zeroing at any byte do exactly what a flat file would."""
    rng = random.Random(7)
    area = 24 * PAGE
    base = server.slab_bytes - 12 * PAGE  # the border between two slabs lies in the middle
    model = bytearray(area)
    with server.connect(structured=True) as client, server.connect() as plain:
        client.write(base, bytes(area))
        for _ in range(400):
            at = rng.randrange(area)
            length = rng.choice([1, 2, 511, 512, PAGE - 1, PAGE, PAGE + 1, rng.randrange(1, 5 * PAGE)])
            length = min(length, area - at)
            command = rng.choice([WRITE, WRITE, WRITE_ZEROES])
            data = rng.randbytes(length) if command == WRITE else b""
            writer = rng.choice([client, plain])
            flags = rng.choice([0, FUA]) | (rng.choice([0, NO_HOLE]) if command == WRITE_ZEROES else 0)
            assert writer.call(command, base + at, length, flags, data).error == 0
            model[at : at + length] = data or bytes(length)
            at = rng.randrange(area)
            length = rng.randrange(1, area - at + 1)
            assert rng.choice([client, plain]).read(base + at, length) == model[at : at + length]
        assert client.read(base, area) == model


def test_trim_keeps_neighbours(server: Server) -> None:
    """TRIM at any byte may only touch its own range, and what it trimmed reads as zero or as before."""
    with server.connect() as client:
        for at, length in [(1, 1), (100, PAGE), (PAGE - 1, 2), (PAGE, PAGE), (5000, 3 * PAGE), (0, 8 * PAGE)]:
            client.write(0, b"n" * 8 * PAGE)
            assert client.call(TRIM, at, length).error == 0
            data = client.read(0, 8 * PAGE)
            assert data[:at] == b"n" * at
            assert data[at + length :] == b"n" * (8 * PAGE - at - length)
            assert set(data[at : at + length]) <= {0, ord("n")}


@pytest.mark.parametrize("command", [4242, 8, 9, 255, 65535])
def test_unknown_command(server: Server, command: int) -> None:
    """A command that does not exist is refused without a payload being expected."""
    with server.connect() as client:
        assert client.call(command, 0, PAGE).error == EINVAL
        assert client.call(command, 2**64 - 1, 2**32 - 1).error == EINVAL
        in_step(client)


@pytest.mark.parametrize("command", [READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES])
def test_unknown_flags(server: Server, command: int) -> None:
    """A flag that is not documented for the command is refused; a refused WRITE's payload is skipped."""
    with server.connect() as client:
        client.write(0, b"f" * PAGE)
        for flags in (1 << 15, 1 << 7, REQ_ONE, 0xFFFE):
            length = 0 if command == FLUSH else 512
            payload = b"x" * length if command == WRITE else b""
            assert client.call(command, 0, length, flags, payload).error == EINVAL, hex(flags)
        assert client.read(0, PAGE) == b"f" * PAGE
        in_step(client)


def test_fua_on_read(server: Server) -> None:
    """FUA on commands that write nothing is let pass: clients are known to set it."""
    with server.connect() as client:
        client.write(0, b"r" * PAGE)
        reply = client.call(READ, 0, PAGE, FUA)
        assert (reply.error, reply.data) == (0, b"r" * PAGE)
        assert client.call(CACHE, 0, PAGE, FUA).error == 0


def test_do_not_fragment(server: Server) -> None:
    """DF gives one chunk of data, also across the border of two slabs; without structured replies it is refused."""
    at, length = server.slab_bytes - 32768, 65536
    data = random.Random(1).randbytes(length)
    with server.connect(structured=True) as client:
        client.write(at, data)
        client.send(request(READ, 99, at, length, DF))
        content = [chunk for chunk in client.chunks() if chunk.kind in (CHUNK_DATA, CHUNK_HOLE)]
        assert [chunk.kind for chunk in content] == [CHUNK_DATA]
        assert content[0].payload == struct.pack(">Q", at) + data
    with server.connect() as client:
        assert client.call(READ, 0, PAGE, DF).error == EINVAL
        in_step(client)


def test_block_status_of_everything(server: Server) -> None:
    """BLOCK_STATUS of 2^32-1 bytes: extents that add up to no more than was asked, each longer than nothing."""
    with server.connect(allocation=True) as client:
        client.write(0, b"s" * PAGE)
        for offset, flags in [(0, 0), (0, REQ_ONE), (server.size_bytes - (2**32 - 1), 0), (7, 0)]:
            length = 2**32 - 1
            client.send(request(BLOCK_STATUS, 5, offset, length, flags))
            chunks = [chunk for chunk in client.chunks() if chunk.kind == CHUNK_STATUS]
            assert len(chunks) == 1
            words = struct.unpack(f">{len(chunks[0].payload) // 4}I", chunks[0].payload)
            lengths = words[1::2]
            assert lengths
            assert all(lengths)
            # The last extent may be longer than what was asked, unless only one was wanted.
            assert sum(lengths[:-1]) < length
            if flags & REQ_ONE:
                assert len(lengths) == 1
                assert lengths[0] <= length
        assert client.call(BLOCK_STATUS, server.size_bytes - MIB, 2**32 - 1).error == EINVAL
        in_step(client)


def test_block_status_not_negotiated(server: Server) -> None:
    """BLOCK_STATUS is refused when no context was selected, with and without structured replies."""
    for structured in (False, True):
        with server.connect(structured=structured) as client:
            assert client.call(BLOCK_STATUS, 0, PAGE).error == EINVAL
            in_step(client)


@pytest.mark.parametrize("no_hole", [0, NO_HOLE])
def test_write_zeroes_of_much(server: Server, no_hole: int) -> None:
    """WRITE_ZEROES beyond 64 MiB is done to its end, not cut short."""
    length = server.front_bytes - 2 * PAGE
    assert length > 64 * MIB
    spots = [0, PAGE, 32 * MIB, 64 * MIB - 3, 64 * MIB, 64 * MIB + PAGE, length, length + PAGE]
    with server.connect() as client:
        for spot in spots:
            client.write(spot, b"m" * PAGE)
        assert client.call(WRITE_ZEROES, PAGE, length, no_hole).error == 0
        assert client.read(0, PAGE) == b"m" * PAGE
        assert client.read(length + PAGE, PAGE) == b"m" * PAGE
        for spot in spots[1:-1]:
            assert client.read(spot, PAGE) == bytes(PAGE), spot


def test_huge_zeroing_and_trimming(server: Server) -> None:
    """TRIM and WRITE_ZEROES of 2^32-1 bytes are answered once: done, or refused where nothing is mapped."""
    with server.connect() as client:
        for command in (TRIM, WRITE_ZEROES):
            client.write(PAGE, b"h" * PAGE)
            reply = client.call(command, 0, 2**32 - 1)
            if command == WRITE_ZEROES:
                assert client.read(PAGE, PAGE) == (b"h" * PAGE if reply.error else bytes(PAGE))
        in_step(client)


def test_write_longer_than_allowed(server: Server) -> None:
    """A WRITE beyond the limit is not kept: its payload is skipped, or the connection ends."""
    length = server.request_bytes_max + PAGE
    client = server.connect()
    with client:
        client.write(0, b"o" * PAGE)
        try:
            reply = client.call(WRITE, 0, length, payload=bytes(length))
        except ClosedError:
            pass
        else:
            assert reply.error in {EINVAL, EOVERFLOW, 12}
            assert client.read(0, PAGE) == b"o" * PAGE
            in_step(client)
    with server.connect() as client:
        assert client.read(0, PAGE) == b"o" * PAGE


def test_write_of_four_gigabytes_announced(server: Server) -> None:
    """A WRITE that announces 2^32-1 bytes costs the server no memory, sent or not."""
    before = server.resident_bytes()
    with server.connect() as client, server.connect() as idle:
        idle.send(request(WRITE, 1, 0, 2**32 - 1))
        client.send(request(WRITE, 1, 0, 2**32 - 1))
        try:
            for _ in range(24):
                client.send(bytes(2 * MIB))
        except ClosedError:
            pass
        assert server.resident_bytes() - before < (64 if server.ours else 160) * MIB


def test_read_longer_than_allowed(server: Server) -> None:
    """A READ beyond the limit is refused or served, and the stream stays in step."""
    for structured in (False, True):
        with server.connect(structured=structured) as client:
            for length in (server.request_bytes_max + 1, 2**32 - 1):
                reply = client.call(READ, 0, length)
                assert reply.error in {EINVAL, EOVERFLOW, 12}
            in_step(client)


def test_largest_requests(server: Server) -> None:
    """READ and WRITE of exactly the limit work, unaligned and across slabs."""
    length = 32 * MIB
    data = random.Random(3).randbytes(MIB) * 32
    with server.connect() as client:
        client.write(4097, data)
        assert client.read(4097, length) == data
    with server.connect(structured=True) as client:
        assert client.read(4097, length) == data


def test_flush_with_range(server: Server) -> None:
    """FLUSH with an offset or length is answered once, by an error or by flushing."""
    with server.connect() as client:
        for offset, length in [(0, 1), (1, 0), (2**64 - 1, 2**32 - 1)]:
            assert client.call(FLUSH, offset, length).error in {0, EINVAL}
        in_step(client)


def test_duplicate_cookies(server: Server) -> None:
    """Cookies are the client's affair: requests in flight with the same one are each answered."""
    with server.connect() as client:
        for page in range(32):
            client.write(page * PAGE, bytes([page]) * PAGE)
        client.send(b"".join(request(READ, 0xDEAD, page * PAGE, PAGE) for page in range(32)))
        seen = []
        for _ in range(32):
            reply = client.simple_reply(PAGE)
            assert (reply.error, reply.cookie) == (0, 0xDEAD)
            assert reply.data == reply.data[:1] * PAGE
            seen.append(reply.data[0])
        assert sorted(seen) == list(range(32))
        for cookie in (0, 2**64 - 1):
            client.send(request(READ, cookie, 0, 1))
            assert client.simple_reply(1).cookie == cookie


@pytest.mark.parametrize("running", OURS, indirect=True)
def test_read_only(server: Server) -> None:
    """Nothing that changes data passes on a read-only export, and payloads are skipped."""
    with server.connect() as writer, RawClient(server.unix).negotiate("disk-ro") as client:
        assert client.transmission_flags & 2
        writer.write(0, b"w" * PAGE)
        for command in (WRITE, TRIM, WRITE_ZEROES):
            payload = b"x" * PAGE if command == WRITE else b""
            assert client.call(command, 0, PAGE, payload=payload).error == EPERM
        assert client.read(0, PAGE) == b"w" * PAGE
        assert client.call(FLUSH).error == 0
