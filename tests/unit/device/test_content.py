"""What a backup holds is copied, compared and written out page by page, and what cannot be read is said."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from infiniswap.device.content import (
    CHUNK_BYTES,
    Extents,
    WithoutLost,
    WithoutUnreadable,
    compare,
    copy,
    data_bytes,
    write_out,
)
from infiniswap.shared.errors import ExitCode, UserError

PAGE = 4096
SIZE = 4 * CHUNK_BYTES + 3 * PAGE


class Memory:
    """Content in memory, with the extents that it is told."""

    def __init__(self, data: bytes, extents: list[tuple[int, int]] | None = None) -> None:
        self.data = bytearray(data)
        self.size_bytes = len(data)
        self.told = [(0, len(data))] if extents is None else extents
        self.bad: int | None = None
        self.writes: list[tuple[int, int]] = []
        self.synced = False

    def extents(self) -> Extents:
        """As told."""
        return iter(self.told)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """EIO where it is bad."""
        if self.bad is not None and offset <= self.bad < offset + len(buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        assert offset % PAGE == len(buffer) % PAGE == 0
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, buffer: memoryview, offset: int) -> None:
        """Remembers where."""
        self.writes.append((offset, len(buffer)))
        self.data[offset : offset + len(buffer)] = buffer

    def sync(self) -> None:
        """Remembers that."""
        self.synced = True

    def close(self) -> None:
        """Nothing."""


@pytest.fixture
def source() -> Memory:
    """Data in two places, one of which begins within a page."""
    data = bytearray(SIZE)
    data[PAGE : 2 * CHUNK_BYTES] = os.urandom(2 * CHUNK_BYTES - PAGE)
    data[-PAGE:] = b"e" * PAGE
    return Memory(bytes(data), [(PAGE + 100, 2 * CHUNK_BYTES + PAGE), (SIZE - PAGE, SIZE)])


def test_copied_without_its_zeroes(source: Memory) -> None:
    """What extents tell is copied and synced, zeroes are not; the progress comes to all there was."""
    ours = source
    ours.data[PAGE : PAGE + 100] = bytes(100)  # of the page that an extent begins in
    theirs = Memory(bytes(SIZE))
    done: list[int] = []
    copy(ours, theirs, done.append)
    assert theirs.data == ours.data
    assert theirs.synced
    assert sum(done) >= data_bytes(ours)
    assert max(length for _, length in theirs.writes) <= CHUNK_BYTES
    assert not any(offset >= 2 * CHUNK_BYTES + PAGE and offset < SIZE - PAGE for offset, _ in theirs.writes)
    compare(ours, theirs, done.append)


def test_zeroes_too_where_anything_may_be(source: Memory) -> None:
    """A target that was full of something else is the same all over afterwards."""
    ours, theirs = source, Memory(b"x" * SIZE)
    copy(ours, theirs, lambda _: None, zeroes=True)
    assert theirs.data == ours.data


@pytest.mark.parametrize("at", [PAGE + 200, SIZE - 1, 3 * CHUNK_BYTES])
def test_differences_are_found(source: Memory, at: int) -> None:
    """One byte, in the data or where the source says that nothing is."""
    ours, theirs = source, Memory(bytes(SIZE))
    copy(ours, theirs, lambda _: None)
    theirs.data[at] ^= 1
    theirs.told = [(0, SIZE)]
    with pytest.raises(UserError, match="read back is another one") as caught:
        compare(ours, theirs, lambda _: None)
    assert caught.value.code == ExitCode.FAILED


def test_what_cannot_be_read_is_said(source: Memory) -> None:
    """Which of the two, and where."""
    ours, theirs = source, Memory(bytes(SIZE))
    ours.bad = CHUNK_BYTES
    with pytest.raises(
        UserError, match=r"the backup cannot be read within the .* bytes at .*: Input/output error; with --damaged"
    ):
        copy(ours, theirs, lambda _: None)
    ours.bad, theirs.bad = None, SIZE - 1
    copy(ours, theirs, lambda _: None)
    with pytest.raises(UserError, match="the copy cannot be read"):
        compare(ours, theirs, lambda _: None)


def test_unreadable_pages_are_zeroes_where_that_is_wanted(source: Memory) -> None:
    """They alone, and they are told; one that is unreadable only when it is read back is a copy that is not right."""
    theirs = Memory(bytes(SIZE))
    source.bad = CHUNK_BYTES + PAGE
    forgiving = WithoutUnreadable(source)
    copy(forgiving, theirs, lambda _: None)
    assert list(forgiving.unreadable) == [CHUNK_BYTES // PAGE + 1]
    wanted = bytearray(source.data)
    wanted[source.bad : source.bad + PAGE] = bytes(PAGE)
    wanted[PAGE : PAGE + 100] = source.data[PAGE : PAGE + 100]
    assert theirs.data == wanted
    compare(forgiving, theirs, lambda _: None)
    source.bad = CHUNK_BYTES + 5 * PAGE
    with pytest.raises(UserError, match="read back is another one"):
        compare(forgiving, theirs, lambda _: None)


def test_lost_pages_are_zeroes(source: Memory, tmp_path: Path) -> None:
    """Instead of what is left of them, also at the edges of a chunk; the others are as they are."""
    ours = source
    last = SIZE // PAGE - 1
    lost = np.array([1, CHUNK_BYTES // PAGE - 1, CHUNK_BYTES // PAGE, last])
    path = tmp_path / "out"
    with path.open("wb") as file:
        write_out(WithoutLost(ours, lost), file.fileno(), lambda _: None)
    wanted = bytearray(ours.data)
    for page in lost:
        wanted[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    assert path.read_bytes() == wanted
    assert wanted != ours.data
