"""Slab memory is zero once cleared, goes back to the host, and is refused in one clear line when there is none."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.daemon.arena import Arena, free_huge_bytes, huge_page_bytes, punch_hole
from infiniswap.shared.errors import ExitCode, UserError

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    """8 MiB of ordinary pages."""
    made = Arena(8 * MIB)
    yield made
    made.close()


def read(arena: Arena, offset: int, length: int) -> bytes:
    """What the arena holds there."""
    return ctypes.string_at(arena.address + offset, length)


def test_memory_is_taken_on_touch_and_given_back_when_cleared(arena: Arena) -> None:
    """Only touched pages occupy the host; clearing zeroes exactly the block and frees its pages."""
    assert arena.occupied_bytes() == 0
    ctypes.memset(arena.address, 0xAA, 4 * MIB)
    assert arena.occupied_bytes() == 4 * MIB
    arena.clear(MIB, 2 * MIB)
    assert arena.occupied_bytes() == 2 * MIB
    assert read(arena, MIB, 2 * MIB) == bytes(2 * MIB)
    assert read(arena, 0, MIB) == read(arena, 3 * MIB, MIB) == b"\xaa" * MIB


def test_populating_brings_pages_in_and_changes_none(arena: Arena) -> None:
    """Exactly the block's pages are there afterwards; those that were there before keep their content."""
    ctypes.memset(arena.address + MIB, 0xAA, 4096)
    arena.populate(MIB, 2 * MIB)
    assert arena.occupied_bytes() == 2 * MIB
    assert read(arena, MIB, 2 * MIB) == b"\xaa" * 4096 + bytes(2 * MIB - 4096)


def test_populating_on_old_kernels(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.14 there is no such advice; another way has the same effect."""
    monkeypatch.setattr("infiniswap.daemon.arena._MADV_POPULATE_WRITE", 9999)
    ctypes.memset(arena.address, 0xAA, 4096)
    arena.populate(0, MIB)
    assert arena.occupied_bytes() == MIB
    assert read(arena, 0, MIB) == b"\xaa" * 4096 + bytes(MIB - 4096)


def test_populating_what_is_not_there(arena: Arena) -> None:
    """Pages that cannot be had are an OSError, not a crash."""
    with pytest.raises(OSError, match="populating") as failure:
        arena.populate(1 << 40, MIB)
    assert failure.value.errno == errno.ENOMEM


def test_clearing_works_where_holes_cannot_be_punched(caplog: pytest.LogCaptureFixture) -> None:
    """A kernel that refuses to punch still never leaves old data behind."""

    def refuse(fd: int, offset: int, length: int) -> None:
        del fd, offset, length
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    arena = Arena(2 * MIB, punch=refuse)
    try:
        ctypes.memset(arena.address, 0xAA, 2 * MIB)
        with caplog.at_level(logging.WARNING):
            arena.clear(0, MIB)
        assert read(arena, 0, MIB) == bytes(MIB)
        assert read(arena, MIB, MIB) == b"\xaa" * MIB
    finally:
        arena.close()
    assert "zeroing it by hand" in caplog.text


def test_the_file_cannot_be_shrunk_under_the_mapping(arena: Arena) -> None:
    """Whoever gets the descriptor cannot turn the daemon's memory into a SIGBUS."""
    for size in (0, MIB, 9 * MIB):
        with pytest.raises(OSError) as failure:
            os.ftruncate(arena.fd, size)
        assert failure.value.errno == errno.EPERM
    assert fcntl.fcntl(arena.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_closing_frees_everything() -> None:
    """After close() the descriptor is gone; closing again is harmless."""
    arena = Arena(MIB)
    fd = arena.fd
    arena.close()
    arena.close()
    with pytest.raises(OSError) as failure:
        os.fstat(fd)
    assert failure.value.errno == errno.EBADF


def test_punching_what_is_no_file_tells_why() -> None:
    """The errno of fallocate reaches the caller."""
    with pytest.raises(OSError, match="punching 4096 bytes") as failure:
        punch_hole(-1, 0, 4096)
    assert failure.value.errno == errno.EBADF


@pytest.mark.parametrize("size", [0, 4096, MIB + 4096, MIB - 1])
def test_sizes_that_are_no_multiple(size: int) -> None:
    """The user hears which multiple is wanted."""
    with pytest.raises(UserError, match="positive multiple of 1048576"):
        Arena(size)


def test_more_than_the_address_space() -> None:
    """A mapping that cannot be made is one line, not a traceback."""
    with pytest.raises(UserError, match="cannot take") as failure:
        Arena(1 << 59)
    assert failure.value.code is ExitCode.RESOURCES


def test_huge_pages_are_used_or_refused_clearly() -> None:
    """With free huge pages the arena lies in them and is zero when cleared; without, the message says what to do."""
    size = huge_page_bytes()
    free = int(Path(f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/free_hugepages").read_text())
    if free < 2:
        with pytest.raises(UserError, match=r"sysctl vm\.nr_hugepages=\d+' or start without --huge-pages") as failure:
            Arena((free + 2) * size, huge_pages=True)
        assert failure.value.code is ExitCode.RESOURCES
        return
    arena = Arena(2 * size, huge_pages=True)
    try:
        assert arena.allocator.minimum_bytes == size
        ctypes.memset(arena.address, 0xAA, 2 * size)
        arena.clear(size, size)
        assert read(arena, size, size) == bytes(size)
        assert read(arena, 0, size) == b"\xaa" * size
    finally:
        arena.close()


def test_the_smallest_fitting_huge_page_is_chosen(tmp_path: Path) -> None:
    """Pages below 1 MiB or above 1 GiB cannot carry a slab; of the others the smallest wastes least."""
    for kilobytes in (64, 1048576, 2048, 16777216):
        (tmp_path / f"hugepages-{kilobytes}kB").mkdir()
    assert huge_page_bytes(tmp_path) == 2 * MIB
    (tmp_path / "hugepages-2048kB" / "free_hugepages").write_text("5\n")
    assert free_huge_bytes(tmp_path) == 10 * MIB
    (tmp_path / "hugepages-2048kB" / "free_hugepages").write_text("many\n")
    with pytest.raises(UserError, match="cannot be counted"):
        free_huge_bytes(tmp_path)


def test_a_kernel_without_huge_pages(tmp_path: Path) -> None:
    """The user hears to leave the option away."""
    with pytest.raises(UserError, match="start without --huge-pages"):
        huge_page_bytes(tmp_path / "none")
