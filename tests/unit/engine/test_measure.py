"""The measuring loops read what they are told to, count each read once, and end when they are told to."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from infiniswap.engine.measure import DEPTH_MAX, StopFlag, measure_file, measure_nbd

PAGE = 4096
REQUEST = struct.Struct(">IHHQQI")
Answer = Callable[[int, int], bytes]


def page_of(cookie: int, _offset: int) -> bytes:
    """A good answer."""
    return struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(PAGE)


@contextmanager
def server(answer: Answer, asked: list[tuple[int, int]]) -> Iterator[int]:
    """An NBD server behind the returned descriptor; asked gets offset and length of each request."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        # Who leaves with answers unread resets the connection, in the middle of a read, too.
        with theirs, theirs.makefile("rb") as stream, suppress(OSError):
            while len(data := stream.read(REQUEST.size)) == REQUEST.size:
                _, _, command, cookie, offset, length = REQUEST.unpack(data)
                assert command == 0
                asked.append((offset, length))
                theirs.sendall(answer(cookie, offset))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ours.fileno()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("depth", [1, 7, DEPTH_MAX])
def test_nbd(depth: int) -> None:
    """Pages of the offsets given, in turn, each counted once; nothing is out at the end."""
    asked: list[tuple[int, int]] = []
    with server(page_of, asked) as fd:
        measured = measure_nbd(fd, [0, 8192, 4096], depth, 0.1, StopFlag())
        again = measure_nbd(fd, [0], depth, 0.01, StopFlag())  # the connection is as good as before
    assert measured.reads > depth
    assert measured.reads + again.reads == len(asked)
    assert int(measured.histogram.sum()) == measured.reads
    assert asked[:4] == [(0, PAGE), (8192, PAGE), (4096, PAGE), (0, PAGE)]
    assert measured.elapsed_s >= 0.1


def an_error(cookie: int, _offset: int) -> bytes:
    """EIO."""
    return struct.pack(">IIQ", 0x67446698, 5, cookie)


def no_reply(cookie: int, _offset: int) -> bytes:
    """Another magic."""
    return struct.pack(">IIQ", 0x12345678, 0, cookie) + bytes(PAGE)


def a_reply_to_nothing(_cookie: int, _offset: int) -> bytes:
    """Of a request that was never sent."""
    return struct.pack(">IIQ", 0x67446698, 0, 999) + bytes(PAGE)


def a_second_reply(cookie: int, offset: int) -> bytes:
    """Twice the same."""
    return page_of(cookie, offset) * 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (an_error, errno.EIO),
        (no_reply, errno.EPROTO),
        (a_reply_to_nothing, errno.EPROTO),
        (a_second_reply, errno.EPROTO),
    ],
)
def test_a_server_that_fails(answer: Answer, code: int) -> None:
    """It is said what was wrong, and nothing is measured."""
    with server(answer, []) as fd, pytest.raises(OSError) as caught:
        measure_nbd(fd, [0], 2, 5.0, StopFlag())
    assert caught.value.errno == code


def test_a_server_that_goes() -> None:
    """A closed connection is an error, not an end."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(OSError):
        measure_nbd(ours.fileno(), [0], 1, 5.0, StopFlag())


def test_a_stop_from_elsewhere(tmp_path: Path) -> None:
    """Another thread ends both loops long before their time."""
    stop = StopFlag()
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    begun_s = time.monotonic()
    threading.Timer(0.1, stop.set).start()
    with server(page_of, []) as fd, path.open("rb") as file:
        measure_nbd(fd, [0], 4, 60.0, stop)
        measure_file(file.fileno(), [0], 4, 60.0, stop)
    assert time.monotonic() - begun_s < 30


@pytest.mark.parametrize("depth", [1, 32])
def test_file(tmp_path: Path, depth: int) -> None:
    """Each read counts once, and comes from the places given."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(8 * PAGE))
    with path.open("rb") as file:
        measured = measure_file(file.fileno(), [7 * PAGE, 0], depth, 0.05, StopFlag())
    assert measured.reads > depth
    assert int(measured.histogram.sum()) == measured.reads


def test_beyond_the_end(tmp_path: Path) -> None:
    """A read that is not whole is an error."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file, pytest.raises(OSError) as caught:
        measure_file(file.fileno(), [PAGE], 2, 1.0, StopFlag())
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("depth", [0, DEPTH_MAX + 1])
def test_a_depth_that_is_none(tmp_path: Path, depth: int) -> None:
    """Outside its limits nothing is begun."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file, pytest.raises(OSError) as caught:
        measure_file(file.fileno(), [0], depth, 0.1, StopFlag())
    assert caught.value.errno == errno.EINVAL
