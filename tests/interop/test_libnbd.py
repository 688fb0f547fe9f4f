"""libnbd as a client: negotiation old and new, every command, several connections."""

from __future__ import annotations

import os
import random

import nbd
import pytest

from tests.interop.target import SIZE_BYTES, SLAB_BYTES, Target
from tests.support.backups import read_range
from tests.support.pace import lighter

PAGE = 4096
ODD_RANGES = (
    (0, 1),
    (4095, 2),
    (1, 4095),
    (511, 513),
    (SLAB_BYTES - 3, 7),
    (5 * PAGE - 1, 3 * PAGE + 2),
    (77777, 300001),
)


def extents(handle: nbd.NBD, offset: int, length: int) -> list[tuple[int, int]]:
    """base:allocation of the range: (length, flags), whatever number of requests it takes, neighbours joined."""
    found: list[tuple[int, int]] = []

    def note(context: str, at: int, entries: list[int], error: object) -> int:
        assert context == nbd.CONTEXT_BASE_ALLOCATION
        found.extend(zip(entries[::2], entries[1::2], strict=True))
        return 0

    end = offset + length
    while offset < end:
        count = len(found)
        handle.block_status(end - offset, offset, note)
        got = sum(extent[0] for extent in found[count:])
        assert got > 0
        offset += got
    joined: list[tuple[int, int]] = []
    for size, flags in found:
        if joined and joined[-1][1] == flags:
            joined[-1] = (joined[-1][0] + size, flags)
        else:
            joined.append((size, flags))
    return joined


def test_what_is_offered(target: Target) -> None:
    """Every command and property that the README promises is negotiated with the newest client there is."""
    handle = target.connect()
    assert handle.get_protocol() == "newstyle-fixed"
    assert handle.get_size() == SIZE_BYTES
    assert handle.get_structured_replies_negotiated()
    assert handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    offered = [handle.can_flush(), handle.can_fua(), handle.can_trim(), handle.can_zero(), handle.can_fast_zero()]
    assert all([*offered, handle.can_cache(), handle.can_df(), handle.can_multi_conn()])
    assert not handle.is_read_only()
    assert handle.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert handle.get_block_size(nbd.SIZE_PREFERRED) == PAGE
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) >= 32 << 20
    handle.shutdown()


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
def test_like_a_file_in_memory(target: Target, structured: bool) -> None:
    """Hundreds of writes, zeroings, trims and reads of any offset and length give what the same calls on bytes give."""
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    target.connect_handle(handle)
    assert handle.get_structured_replies_negotiated() == structured
    draw = random.Random(11)
    expected = bytearray(SIZE_BYTES)
    span = 3 * SLAB_BYTES
    for turn in range(lighter(400, least=100)):
        length = draw.choice((1, 511, 512, 4095, PAGE, 4097, 3 * PAGE, 70000, 300001))
        offset = draw.randrange(0, span - length)
        if draw.random() < 0.4:
            offset -= offset % PAGE
        kind = draw.randrange(5)
        flags = nbd.CMD_FLAG_FUA if turn % 16 == 0 else 0
        if kind <= 1:
            data = draw.randbytes(length)
            handle.pwrite(data, offset, flags)
            expected[offset : offset + length] = data
        elif kind == 2:
            handle.zero(length, offset, flags | (nbd.CMD_FLAG_NO_HOLE if turn % 2 else 0))
            expected[offset : offset + length] = bytes(length)
        elif kind == 3:  # only whole pages: what TRIM makes of the rest is the server's choice
            first, last = -(-offset // PAGE) * PAGE, (offset + length) // PAGE * PAGE
            if last > first:
                handle.trim(last - first, first, flags)
                expected[first:last] = bytes(last - first)
        else:
            handle.cache(length, offset)
        offset = max(0, offset - draw.randrange(2 * PAGE))
        length = min(length + draw.randrange(4 * PAGE), span - offset)
        assert handle.pread(length, offset) == expected[offset : offset + length]
    handle.flush()
    assert handle.pread(span, 0) == expected[:span]
    handle.shutdown()


def test_chunks_of_a_read(target: Target) -> None:
    """A large structured READ arrives in chunks that cover it exactly once; one that may not be cut comes whole."""
    handle = target.connect()
    content = os.urandom(2 << 20)
    handle.pwrite(content, SLAB_BYTES - 100)
    pieces: list[tuple[int, bytes]] = []

    def take(data: bytes, offset: int, kind: int, error: object) -> int:
        assert kind in (nbd.READ_DATA, nbd.READ_HOLE)
        pieces.append((offset, bytes(data)))
        return 0

    handle.pread_structured(len(content), SLAB_BYTES - 100, take)
    pieces.sort()
    assert b"".join(data for _, data in pieces) == content
    at = SLAB_BYTES - 100
    for offset, data in pieces:
        assert offset == at
        at += len(data)
    pieces.clear()
    handle.pread_structured(128 << 10, SLAB_BYTES, take, flags=nbd.CMD_FLAG_DF)
    assert pieces == [(SLAB_BYTES, content[100 : 100 + (128 << 10)])]
    handle.shutdown()


def test_largest_requests(target: Target) -> None:
    """One READ and one WRITE of the largest block size that the server names work."""
    handle = target.connect()
    most = min(handle.get_block_size(nbd.SIZE_MAXIMUM), SIZE_BYTES)
    content = os.urandom(1 << 20) * (most >> 20)
    handle.pwrite(content, 0)
    assert handle.pread(most, 0) == content
    handle.shutdown()


def test_allocation_of_pages(target: Target) -> None:
    """base:allocation on the device tells what was written and what was not or was trimmed; never data as a hole."""
    handle = target.connect()
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    total = extents(handle, 0, SIZE_BYTES)
    handle.pwrite(b"x" * 3 * PAGE, 10 * PAGE)
    handle.pwrite(b"y", SLAB_BYTES + 5 * PAGE + 17)
    after = extents(handle, 0, SIZE_BYTES)
    if target.device is None:
        # A lease's slabs are memory: all of it is there, so nothing may be called a hole.
        assert total == after == [(SIZE_BYTES, 0)]
    else:
        assert total == [(SIZE_BYTES, hole)]
        rest = SIZE_BYTES - SLAB_BYTES - 6 * PAGE
        gap = SLAB_BYTES + 5 * PAGE - 13 * PAGE
        assert after == [(10 * PAGE, hole), (3 * PAGE, 0), (gap, hole), (PAGE, 0), (rest, hole)]
        handle.trim(2 * PAGE, 11 * PAGE)
        assert extents(handle, 0, 16 * PAGE) == [(10 * PAGE, hole), (PAGE, 0), (5 * PAGE, hole)]
        # The first extent begins where it was asked from, inside a page too.
        assert extents(handle, 10 * PAGE + 100, 2 * PAGE) == [(PAGE - 100, 0), (PAGE + 100, hole)]
    handle.shutdown()


def test_several_connections(target: Target) -> None:
    """What one connection was answered is there for all others at once, and a FLUSH on any covers all."""
    handles = [target.connect() for _ in range(4)]
    draw = random.Random(5)
    for _ in range(lighter(200, least=50)):
        offset, data = draw.randrange(SIZE_BYTES - 9000), draw.randbytes(draw.randrange(1, 9000))
        writer, reader = draw.sample(handles, 2)
        writer.pwrite(data, offset)
        assert reader.pread(len(data), offset) == data
    if target.device is None:
        handles[0].flush()
    else:
        mark = draw.randbytes(PAGE)
        handles[1].pwrite(mark, 7 * PAGE)
        handles[2].flush()
        assert read_range(target.device.backup, 7 * PAGE, PAGE) == mark
    for handle in handles:
        handle.shutdown()


def test_fua(target: Target) -> None:
    """A FUA write, zeroing or trim is on the device's backup when it is answered, without any FLUSH."""
    handle = target.connect()
    for turn, (offset, length) in enumerate(ODD_RANGES):
        data = random.Random(turn).randbytes(length)
        handle.pwrite(data, offset, nbd.CMD_FLAG_FUA)
        assert handle.pread(length, offset) == data
        if target.device is not None:
            backup = target.device.backup
            assert read_range(backup, offset, length) == data
            handle.zero(length, offset, nbd.CMD_FLAG_FUA)
            assert read_range(backup, offset, length) == bytes(length)
            handle.pwrite(data, offset, nbd.CMD_FLAG_FUA)
            first = -(-offset // PAGE) * PAGE
            whole = max(0, (offset + length) // PAGE * PAGE - first)
            if whole:
                handle.trim(whole, first, nbd.CMD_FLAG_FUA)
                assert read_range(backup, first, whole) == bytes(whole)
    handle.shutdown()


def test_deep_queue(target: Target) -> None:
    """Hundreds of requests in flight on one connection are all answered, each with its own data."""
    handle = target.connect()
    count = 600
    for index in range(count):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(index.to_bytes(4, "big") * 1024)), index * PAGE)
    _settle(handle)
    reads = {}
    for index in range(count):
        buffer = nbd.Buffer(PAGE)
        reads[handle.aio_pread(buffer, index * PAGE)] = (index, buffer)
    _settle(handle)
    for index, buffer in reads.values():
        assert buffer.to_bytearray() == index.to_bytes(4, "big") * 1024
    handle.shutdown()


def _settle(handle: nbd.NBD) -> None:
    while handle.aio_in_flight():
        assert handle.poll(20000) == 1, "no answer within 20 s"
        while handle.aio_in_flight() and (cookie := handle.aio_peek_command_completed()) > 0:
            assert handle.aio_command_completed(cookie)
    while True:  # what has completed with nothing left in flight
        try:
            cookie = handle.aio_peek_command_completed()
        except nbd.Error:
            return
        if cookie <= 0:
            return
        assert handle.aio_command_completed(cookie)


@pytest.mark.parametrize("no_zeroes", [True, False])
def test_export_name(target: Target, no_zeroes: bool) -> None:
    """A client that knows only EXPORT_NAME gets in, with and without the 124 zero bytes of old."""
    handle = nbd.NBD()
    handle.set_handshake_flags(nbd.HANDSHAKE_FLAG_NO_ZEROES if no_zeroes else 0)
    target.connect_handle(handle)
    assert handle.get_protocol() == "newstyle"
    assert not handle.get_structured_replies_negotiated()
    handle.pwrite(b"old" * 100, 1000)
    assert handle.pread(300, 1000) == b"old" * 100
    assert handle.get_size() == SIZE_BYTES
    handle.shutdown()


def test_options_one_after_another(target: Target) -> None:
    """LIST, INFO of one export, INFO of none, then GO: each is answered for itself; a lease is in nobody's list."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    target.connect_handle(handle)
    names: list[str] = []
    handle.opt_list(lambda *export: names.append(export[0]))
    assert names == ([] if target.device is None else [target.name])
    contexts: list[str] = []
    handle.opt_list_meta_context(contexts.append)
    assert contexts == [nbd.CONTEXT_BASE_ALLOCATION]
    handle.opt_info()
    assert handle.get_size() == SIZE_BYTES
    handle.set_export_name("there is no such export")
    with pytest.raises(nbd.Error):
        handle.opt_info()
    handle.set_export_name(target.name)
    handle.opt_go()
    assert handle.pread(10, 0) == bytes(10)
    handle.shutdown()


def test_abort(target: Target) -> None:
    """A client that looks and leaves with ABORT is let go in order."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    target.connect_handle(handle)
    handle.opt_info()
    handle.opt_abort()
    assert handle.aio_is_closed()
