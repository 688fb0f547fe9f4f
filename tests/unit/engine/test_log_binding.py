"""A log as tools have it: made, written, read, found again, and refused where there is none."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from infiniswap.engine.log_binding import Log, LogFlag, NoLogError, format_log, holds_log, log_file_bytes
from tests.support.places import places

PAGE = 4096
SIZE = 1 << 20
PAGES = SIZE // PAGE


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file with an empty log for SIZE."""
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.truncate(fd, log_file_bytes(SIZE))
    format_log(fd, SIZE)
    yield fd
    os.close(fd)


def page(number: int) -> bytes:
    """Content of one."""
    return bytes([number & 255 or 1]) * PAGE


def test_a_new_one_is_empty(fd: int) -> None:
    """Nothing has a place, everything reads as zeroes, and it says how large it is."""
    log = Log(fd)
    info = log.info()
    assert (info.size_bytes, info.file_bytes, info.live_pages) == (SIZE, log_file_bytes(SIZE), 0)
    assert len(info.id) == 32
    assert 0 < info.free_segments <= info.segments
    assert list(log.extents()) == []
    assert log.read(0, 8 * PAGE) == bytes(8 * PAGE)
    log.close()
    assert holds_log(fd)


def test_what_was_written_is_found_again(fd: int) -> None:
    """After a sync and an opening, also with buffers that are no bytes; what nobody wrote is zeroes; extents tell."""
    log = Log(fd)
    log.write(3 * PAGE, page(3) + page(4))
    with mmap.mmap(-1, PAGE) as buffer:
        buffer[:] = page(9)
        log.write(9 * PAGE, buffer)
    log.write(3 * PAGE, page(5))
    log.sync()
    log.close()
    again = Log(fd, LogFlag.READ_ONLY)
    assert again.read(3 * PAGE, 2 * PAGE) == page(5) + page(4)
    assert again.read(8 * PAGE, 3 * PAGE) == bytes(PAGE) + page(9) + bytes(PAGE)
    assert list(again.extents()) == [(3 * PAGE, 5 * PAGE), (9 * PAGE, 10 * PAGE)]
    assert again.info().live_pages == 3
    with pytest.raises(OSError) as caught:
        again.write(0, page(1))
    assert caught.value.errno == errno.EROFS
    again.close()


def test_limits(fd: int) -> None:
    """Beyond the end, within a page or after its end nothing is read or written."""
    log = Log(fd)
    for offset, length in ((SIZE, PAGE), (SIZE - PAGE, 2 * PAGE), (1, PAGE), (0, 100), (0, 0)):
        with pytest.raises(OSError):
            log.read(offset, length)
        with pytest.raises(OSError):
            log.write(offset, bytes(length))
    log.close()
    log.close()
    for call in (log.info, log.sync, lambda: list(log.extents()), lambda: log.read(0, PAGE)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_what_is_no_log(tmp_path: Path) -> None:
    """Zeroes hold none; a size that no device has has none; a file that is too short is not written beyond."""
    path = tmp_path / "file"
    path.write_bytes(bytes(log_file_bytes(SIZE)))
    with path.open("r+b") as file:
        assert not holds_log(file.fileno())
        with pytest.raises(NoLogError) as caught:
            Log(file.fileno())
    assert caught.value.errno == errno.EMEDIUMTYPE
    for size in (0, 1, PAGE + 1):
        with pytest.raises(OSError):
            log_file_bytes(size)


def test_a_damaged_one_is_said_to_be(fd: int) -> None:
    """Both superblocks changed: it still looks like one, and cannot be opened; not even a traceback's worth is lost."""
    for block in (0, 1):
        os.pwrite(fd, b"x", block * PAGE + 100)
    with pytest.raises(NoLogError):
        Log(fd)
    assert holds_log(fd)
    assert log_file_bytes(SIZE) > SIZE * 3 // 2


def test_pages_are_where_its_chunks_say(fd: int, tmp_path: Path) -> None:
    """Rewritten until it was cleaned over and over, each page stands where a reader that knows no map finds it."""
    log, draw, model = Log(fd), Random(3), dict[int, bytes]()
    for turn in range(8):
        for _ in range(4 * PAGES):
            # Every fourth page is written in the first turn alone: so it lives on among dead ones, and is moved.
            number = draw.randrange(PAGES)
            if turn and number % 4 == 0:
                continue
            model[number] = draw.randbytes(PAGE)
            log.write(number * PAGE, model[number])
        log.sync()
        found, content = places(tmp_path / "log", SIZE), (tmp_path / "log").read_bytes()
        assert found.keys() == model.keys()
        wrong = [number for number, at in found.items() if content[at : at + PAGE] != model[number]]
        assert wrong == [], f"after turn {turn}"
    assert log.info().cleaned_segments > 0
    log.close()


def test_maps_have_their_room_from_the_beginning(fd: int) -> None:
    """Also in a sparse file: two superblocks and two maps of a block each, and nothing else."""
    assert 4 * PAGE <= os.fstat(fd).st_blocks * 512 < SIZE
