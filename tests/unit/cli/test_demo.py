"""The demo's own judgement: it packs what it says, and no wrong byte, wherever it lies, passes for a right one."""

from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from infiniswap.cli.demo.command import check_room, make_plan
from infiniswap.cli.demo.data import (
    CHUNK_BYTES,
    PAGE_BYTES,
    Content,
    Transfer,
    compare_file,
    pack,
    random_page_ins,
)
from infiniswap.cli.demo.screen import Screen
from infiniswap.shared.errors import ExitCode, UserError


def nothing(_: int) -> None:
    """Progress that nobody watches."""


class MemoryClient:
    """A client of a device that is a bytearray."""

    def __init__(self, image: bytearray, open_clients: list[MemoryClient]) -> None:
        self.image = image
        self.open_clients = open_clients
        open_clients.append(self)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the image."""
        return bytes(self.image[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Change the image."""
        self.image[offset : offset + len(data)] = data

    def close(self) -> None:
        """No longer open."""
        self.open_clients.remove(self)


@pytest.fixture
def content(tmp_path: Path) -> Iterator[Content]:
    """Some chunks and a bit, every page its own."""
    pages = 3 * CHUNK_BYTES // PAGE_BYTES + 5
    path = tmp_path / "content"
    path.write_bytes(b"".join(hashlib.sha256(b"%d" % i).digest() * (PAGE_BYTES // 32) for i in range(pages)))
    content = Content(path, shift_pages=7)
    yield content
    content.close()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small tree of files."""
    folder = tmp_path / "library" / "inner"
    folder.mkdir(parents=True)
    for i in range(20):
        (folder / f"file{i}").write_bytes(bytes([i]) * 10_000)
    (folder / "link").symlink_to("file0")
    (folder / "empty").mkdir()
    return folder.parent


def test_pack_holds_the_files(library: Path, tmp_path: Path) -> None:
    """The data set is a tar file of the tree's files, in whole pages, and progress adds up to what was packed."""
    target = tmp_path / "data.tar"
    done: list[int] = []
    assert pack([library], target, 1 << 20, done.append, repeat=False) == 20
    assert target.stat().st_size % PAGE_BYTES == 0
    assert 20 * 10_000 < sum(done) <= target.stat().st_size
    with tarfile.open(target) as tar:
        members = tar.getmembers()
        assert len(members) == 20
        stream = tar.extractfile(members[-1])
        assert stream is not None
        assert stream.read() == (library / "inner" / "file9").read_bytes()


@pytest.mark.parametrize("repeat", [False, True])
def test_pack_keeps_to_the_limit(library: Path, tmp_path: Path, repeat: bool) -> None:
    """The file is never larger than the limit, which a repeated small tree comes close to."""
    target = tmp_path / "data.tar"
    for limit_bytes in (64 << 10, 100_000 // PAGE_BYTES * PAGE_BYTES, 1 << 20):
        pack([library], target, limit_bytes, nothing, repeat=repeat)
        assert target.stat().st_size <= limit_bytes
        if repeat:
            assert target.stat().st_size > limit_bytes - 40_000


def test_pack_of_one_file_and_of_nothing(tmp_path: Path) -> None:
    """A single file can be packed; a folder without files is the user's mistake."""
    source = tmp_path / "one"
    source.write_bytes(b"x" * 5000)
    assert pack([source], tmp_path / "data.tar", 1 << 20, nothing, repeat=False) == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no files that fit"):
        pack([tmp_path / "none"], tmp_path / "data.tar", 1 << 20, nothing, repeat=True)


def test_shifted_content_differs_everywhere(content: Content, tmp_path: Path) -> None:
    """The second copy has other bytes than the first on every page, and wraps around at the end."""
    plain = Content(tmp_path / "content")
    size = content.size_bytes
    assert content.chunk(0, PAGE_BYTES) == plain.chunk(7 * PAGE_BYTES, PAGE_BYTES)
    assert content.chunk(size - 8 * PAGE_BYTES, 8 * PAGE_BYTES) == (
        plain.chunk(size - PAGE_BYTES, PAGE_BYTES) + plain.chunk(0, 7 * PAGE_BYTES)
    )
    assert all(content.chunk(o, PAGE_BYTES) != plain.chunk(o, PAGE_BYTES) for o in range(0, size, PAGE_BYTES))
    plain.close()


def test_copy_and_compare(content: Content) -> None:
    """What was written is found right, progress covers all of it, and every connection is closed again."""
    image = bytearray(content.size_bytes)
    clients: list[MemoryClient] = []
    done: list[int] = []
    with Transfer(lambda: MemoryClient(image, clients)) as transfer:
        transfer.write(content, done.append)
        comparison = transfer.compare(content, done.append)
    assert comparison.right
    assert comparison.sha256 == hashlib.sha256(image).hexdigest() == content.sha256()
    assert sum(done) == 2 * content.size_bytes
    assert clients == []


@pytest.mark.parametrize("where", [0, CHUNK_BYTES - 1, CHUNK_BYTES, -1])
def test_one_wrong_byte_is_found(content: Content, tmp_path: Path, where: int) -> None:
    """A single wrong byte makes the comparison wrong, by digest and by page, on the device and in the backup."""
    image = bytearray(content.chunk(0, content.size_bytes))
    image[where] ^= 1
    clients: list[MemoryClient] = []
    with Transfer(lambda: MemoryClient(image, clients)) as transfer:
        on_device = transfer.compare(content, nothing)
    backup = tmp_path / "backup.img"
    backup.write_bytes(image + bytes(PAGE_BYTES))
    for comparison in (on_device, compare_file(backup, content, nothing)):
        assert not comparison.right
        assert comparison.sha256 != comparison.expected_sha256
        assert comparison.wrong_pages == 1
        assert comparison.first_wrong_offset == where % content.size_bytes // PAGE_BYTES * PAGE_BYTES


def test_short_backup_is_wrong(content: Content, tmp_path: Path) -> None:
    """A backup that ends early does not pass, although what there is of it is right."""
    backup = tmp_path / "backup.img"
    backup.write_bytes(content.chunk(0, content.size_bytes - PAGE_BYTES))
    assert not compare_file(backup, content, nothing).right


def test_random_page_ins_find_wrong_pages(content: Content) -> None:
    """Single page reads are compared as well."""
    right = bytearray(content.chunk(0, content.size_bytes))
    times_us, wrong = random_page_ins(MemoryClient(right, []), content, 0.05, seed=1)
    assert len(times_us) > 10
    assert wrong == 0
    times_us, wrong = random_page_ins(MemoryClient(bytearray(len(right)), []), content, 0.05, seed=1)
    assert wrong == len(times_us)


def test_failed_write_reaches_the_caller(content: Content) -> None:
    """An error of the device in the middle of a copy ends the copy with that error, and connections are closed."""
    clients: list[MemoryClient] = []
    failing = threading.Event()

    class Failing(MemoryClient):
        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            if offset:
                failing.set()
                raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        with Transfer(lambda: Failing(bytearray(), clients)) as transfer:
            transfer.write(content, nothing)
    assert failing.is_set()
    assert clients == []


@pytest.mark.parametrize("data_bytes", [16 << 20, 100 << 20, 256 << 20, 1 << 30, 300 << 30])
def test_plan_survives_a_lost_daemon(data_bytes: int) -> None:
    """The device holds the data, and two of the three daemons can hold the device."""
    plan = make_plan(data_bytes)
    assert plan.device >= data_bytes
    assert plan.device % plan.slab == 0
    assert plan.slab & (plan.slab - 1) == 0
    assert 2 * plan.daemon >= plan.device


def test_too_little_room_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A size that this host cannot hold is refused with advice."""
    with pytest.raises(UserError, match=r"choose a smaller --size") as caught:
        check_room(1 << 50, tmp_path)
    assert caught.value.code == ExitCode.RESOURCES
    check_room(16 << 20, tmp_path)


def test_screen_without_a_terminal() -> None:
    """Without a terminal each step is one plain line, markup in what is printed stays as it is."""
    out = StringIO()
    screen = Screen(Console(file=out))
    with screen.step("Copying", 10) as step:
        step.advance(10)
        step.tell("half way")
        step.end("[done] 10 bytes")
    screen.say("x" * 200)
    assert out.getvalue() == "Copying: [done] 10 bytes\n" + "x" * 200 + "\n"
