"""The demo's data: a real data set in one file, copied into a device, read back and compared."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import sysconfig
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol, Self, TypeVar

from infiniswap.shared.errors import ExitCode, UserError

PAGE_BYTES = 4096
CHUNK_BYTES = 512 << 10
CONNECTIONS = 4
WINDOW = 2 * CONNECTIONS  # chunks under way at once; bounds the memory that a slow reader of the results takes

Result = TypeVar("Result")
Progress = Callable[[int], None]
"""Called with the number of bytes that have been done since the last call, from one thread at a time."""


class Client(Protocol):
    """What the copying needs of an NBD client."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the device."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write data at offset."""

    def close(self) -> None:
        """Disconnect."""


def library_folders() -> list[Path]:
    """Folders of the running Python's own library, without one that lies in another of them."""
    paths = sysconfig.get_paths()
    found = sorted({Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")})
    return [path for path in found if path.is_dir() and not any(other in path.parents for other in found)]


def _files(source: Path) -> Iterator[Path]:
    """Regular files at or below source, in a fixed order; what cannot be listed is left out."""
    if source.is_file():
        yield source
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _add(tar: tarfile.TarFile, path: Path, name: str, limit_bytes: int) -> bool:
    """Add one file unless it would carry the archive beyond limit_bytes or cannot be opened."""
    try:
        with path.open("rb") as stream:
            info = tar.gettarinfo(arcname=name, fileobj=stream)
            # A header may take three blocks (long names), the archive's end up to one record.
            if tar.offset + info.size + 4 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE > limit_bytes:
                return False
            tar.addfile(info, stream)
            return True
    except PermissionError:
        return False


def pack(sources: list[Path], target: Path, limit_bytes: int, progress: Progress, *, repeat: bool) -> int:
    """Pack the files of sources into a tar file of at most limit_bytes, whole pages; returns how many it holds.

    repeat: begin again, under another name, while there is room. UserError when there is nothing to pack.
    """
    files = 0
    with target.open("wb") as output:
        with tarfile.open(fileobj=output, mode="w") as tar:
            for turn in count():
                before = files
                for path in (path for source in sources for path in _files(source)):
                    done = tar.offset
                    files += _add(tar, path, f"{turn}/{str(path).lstrip('/')}", limit_bytes)
                    progress(tar.offset - done)
                if not repeat or files == before:
                    break
        output.truncate(-(-output.tell() // PAGE_BYTES) * PAGE_BYTES)
    if not files:
        shown = ", ".join(map(str, sources))
        raise UserError(f"there are no files that fit into {limit_bytes} bytes in {shown}", ExitCode.NOT_FOUND)
    return files


class Content:
    """What the device is to hold: a file, rotated by some pages so that a second copy differs from the first."""

    def __init__(self, path: Path, shift_pages: int = 0) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size_bytes = len(self._map)
        self._shift_bytes = shift_pages * PAGE_BYTES % self.size_bytes
        self._sha256: str | None = None

    def chunk(self, offset: int, length: int) -> bytes:
        """Bytes of the content from offset on; offset + length is at most size_bytes."""
        start = (offset + self._shift_bytes) % self.size_bytes
        head = self._map[start : start + length]
        return head + self._map[: length - len(head)] if len(head) < length else head

    def sha256(self) -> str:
        """Digest of the whole content, computed at the first call."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            for offset, length in chunks(self.size_bytes):
                digest.update(self.chunk(offset, length))
            self._sha256 = digest.hexdigest()
        return self._sha256

    def close(self) -> None:
        """Let the file go."""
        self._map.close()


def chunks(size_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """(offset, length) of each piece of something of size_bytes."""
    for offset in range(0, size_bytes, chunk_bytes):
        yield offset, min(chunk_bytes, size_bytes - offset)


@dataclass(slots=True)
class Comparison:
    """What was read, beside what should have been."""

    expected_sha256: str
    sha256: str = ""
    wrong_pages: int = 0
    first_wrong_offset: int | None = None

    @property
    def right(self) -> bool:
        """Every byte is as it should be."""
        return self.sha256 == self.expected_sha256 and self.wrong_pages == 0

    def note_wrong(self, offset: int) -> None:
        """Count the page at offset as wrong."""
        self.wrong_pages += 1
        if self.first_wrong_offset is None:
            self.first_wrong_offset = offset


class Transfer:
    """Copies through several connections at once. Use it as a context manager; close() ends the connections."""

    def __init__(self, connect: Callable[[], Client], connections: int = CONNECTIONS) -> None:
        """connect: opens a connection to the device; called once per thread."""
        self._clients: list[Client] = []
        self._local = threading.local()
        self._connect = connect
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(connections, "copy")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what runs and disconnect."""
        self._pool.shutdown(cancel_futures=True)
        for client in self._clients:
            client.close()

    def _client(self) -> Client:
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
            with self._lock:
                self._clients.append(client)
        return client

    def _ordered(self, work: Callable[[int, int], Result], size_bytes: int) -> Iterator[Result]:
        """Results of work(offset, length) over all chunks, in their order; at most WINDOW are under way or waiting."""
        waiting: deque[Future[Result]] = deque()
        for offset, length in chunks(size_bytes):
            if len(waiting) >= WINDOW:
                yield waiting.popleft().result()
            waiting.append(self._pool.submit(work, offset, length))
        while waiting:
            yield waiting.popleft().result()

    def write(self, content: Content, progress: Progress) -> None:
        """Write all of content to the device, from its beginning. OSError when the device answers with one."""

        def work(offset: int, length: int) -> int:
            self._client().write(offset, content.chunk(offset, length))
            return length

        for length in self._ordered(work, content.size_bytes):
            progress(length)

    def compare(self, content: Content, progress: Progress) -> Comparison:
        """Read as much as content has and compare it. OSError when the device answers with one."""

        def work(offset: int, length: int) -> bytes:
            return self._client().read(offset, length)

        return compare(self._ordered(work, content.size_bytes), content, progress)


def compare(pieces: Iterable[bytes], content: Content, progress: Progress) -> Comparison:
    """Hold pieces, in order from the beginning, against content: page by page, and the whole by SHA-256."""
    digest = hashlib.sha256()
    result = Comparison(expected_sha256=content.sha256())
    offset = 0
    for piece in pieces:
        digest.update(piece)
        expected = content.chunk(offset, len(piece))
        if piece != expected:
            for start in range(0, len(piece), PAGE_BYTES):
                if piece[start : start + PAGE_BYTES] != expected[start : start + PAGE_BYTES]:
                    result.note_wrong(offset + start)
        offset += len(piece)
        progress(len(piece))
    result.sha256 = digest.hexdigest()
    return result


def compare_file(path: Path, content: Content, progress: Progress) -> Comparison:
    """Hold the beginning of a raw image against content."""

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as image:
            for _, length in chunks(content.size_bytes):
                yield image.read(length)

    return compare(pieces(), content, progress)


def random_page_ins(client: Client, content: Content, duration_s: float, seed: int) -> tuple[list[float], int]:
    """Read single pages at random, one by one, for duration_s; returns their times in us and how many were wrong."""
    choose = random.Random(seed)
    pages = content.size_bytes // PAGE_BYTES
    times_us: list[float] = []
    wrong = 0
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        offset = choose.randrange(pages) * PAGE_BYTES
        begun = time.perf_counter()
        page = client.read(offset, PAGE_BYTES)
        times_us.append((time.perf_counter() - begun) * 1e6)
        wrong += page != content.chunk(offset, PAGE_BYTES)
    return times_us, wrong
