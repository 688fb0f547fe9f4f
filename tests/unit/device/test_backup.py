"""Backup: created whole or not at all, refused when it is not ours to use, its data extents told as they are."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.device import backup as backups
from infiniswap.device.backup import RawImage, create_image, open_image
from infiniswap.device.foreign import foreign_signature
from infiniswap.shared.errors import ExitCode, UserError

PAGE = 4096
SIZE = 64 * PAGE


@pytest.fixture
def image(tmp_path: Path) -> Iterator[RawImage]:
    """A preallocated image."""
    backup = create_image(tmp_path / "b.img", SIZE, sparse=False)
    yield backup
    backup.close()


def write(path: Path, offset: int, data: bytes) -> None:
    """Change an image behind its back, down to the disk."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def refused(path: Path, code: ExitCode, words: str, size: int = SIZE) -> None:
    """The image is refused in one line and left as it was."""
    before = path.stat() if path.exists() else None
    with pytest.raises(UserError) as caught:
        open_image(path, size, sparse=False)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == code
    after = path.stat() if path.exists() else None
    if before is not None:
        assert after is not None
        assert (before.st_size, before.st_mtime_ns, before.st_mode) == (after.st_size, after.st_mtime_ns, after.st_mode)
    else:
        assert after is None


def test_created_in_full_and_never_written(image: RawImage) -> None:
    """Space is allocated, nothing counts as data, nobody else may read it."""
    status = image.path.stat()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 >= SIZE, "preallocated"
    assert status.st_mode & 0o777 == 0o600
    assert image.created
    assert list(image.data_extents()) == []


def test_sparse_takes_no_space(tmp_path: Path) -> None:
    """Space is taken as it is written."""
    backup = create_image(tmp_path / "b.img", 1 << 30, sparse=True)
    assert backup.path.stat().st_size == 1 << 30
    assert backup.path.stat().st_blocks * 512 < 1 << 20
    assert list(backup.data_extents()) == []
    backup.close()


def test_data_extents_are_what_was_written(image: RawImage) -> None:
    """Each range that was written, and no hole."""
    write(image.path, 3 * PAGE, b"x" * PAGE)
    write(image.path, 9 * PAGE, b"y" * 2 * PAGE)
    assert list(image.data_extents()) == [(3 * PAGE, 4 * PAGE), (9 * PAGE, 11 * PAGE)]


def test_data_to_the_very_end(image: RawImage) -> None:
    """The last page counts too."""
    write(image.path, SIZE - PAGE, b"x" * PAGE)
    assert list(image.data_extents()) == [(SIZE - PAGE, SIZE)]


def test_everything_is_data_where_holes_are_not_told(image: RawImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SEEK_DATA no page may be taken for unwritten."""

    def lseek(*_: int) -> int:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "lseek", lseek)
    assert list(image.data_extents()) == [(0, SIZE)]


def test_reopened(image: RawImage) -> None:
    """What it holds is served; a failed start does not remove it."""
    write(image.path, 0, b"hello")
    image.close()
    again = open_image(image.path, SIZE, sparse=False)
    assert again is not None
    assert not again.created
    assert list(again.data_extents()) == [(0, PAGE)]
    again.discard()
    again.close()
    assert image.path.exists(), "only what was created by this start is removed when it fails"


def test_discarded_when_the_start_fails(image: RawImage) -> None:
    """An image made by a start that failed goes away."""
    image.discard()
    assert not image.path.exists()


def test_locked(image: RawImage) -> None:
    """Two devices on one image would destroy it."""
    refused(image.path, ExitCode.IN_USE, "in use by another process")


@pytest.mark.parametrize("size", [SIZE - PAGE, SIZE + PAGE])
def test_wrong_size(image: RawImage, size: int) -> None:
    """Both too small and too large, with the size that would fit."""
    image.close()
    refused(image.path, ExitCode.REFUSED, f"give --size {SIZE}", size)


def test_directory(tmp_path: Path) -> None:
    """A folder is no image."""
    refused(tmp_path, ExitCode.REFUSED, "is a directory")


def test_pipe_and_socket_and_character_device(tmp_path: Path) -> None:
    """Nor is anything else that is no file and no block device; a pipe must not block us."""
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", ExitCode.REFUSED, "neither a file nor a block device")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", ExitCode.REFUSED, "neither a file nor a block device")
    refused(Path("/dev/null"), ExitCode.REFUSED, "neither a file nor a block device")


def test_no_such_folder(tmp_path: Path) -> None:
    """Folders are not created for the user."""
    refused(tmp_path / "none" / "b.img", ExitCode.NOT_FOUND, "create it first")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "b.img", ExitCode.RESOURCES, "Not a directory")


def test_dangling_link(tmp_path: Path) -> None:
    """A link is not followed to create something elsewhere."""
    (tmp_path / "link").symlink_to(tmp_path / "none")
    refused(tmp_path / "link", ExitCode.NOT_FOUND, "link to a file that does not exist")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that may not be written."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(tmp_path / "b.img", ExitCode.RESOURCES, "no permission")


def test_read_only(image: RawImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be written."""
    image.close()

    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    refused(image.path, ExitCode.RESOURCES, "cannot open backup")


def test_no_space_is_known_before_anything_is_created(tmp_path: Path) -> None:
    """The free space is looked at first."""
    refused(tmp_path / "b.img", ExitCode.RESOURCES, "free", size=1 << 58)


def test_disk_full_while_creating_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may take the space meanwhile."""

    def full(fd: int, *_: int) -> None:
        os.write(fd, b"part of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left") as caught:
        create_image(tmp_path / "b.img", SIZE, sparse=False)
    assert caught.value.code == ExitCode.RESOURCES
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    """A limit of the process is met only while creating."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            create_image(tmp_path / "b.img", 1 << 24, sparse=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_direct_io_where_it_works(image: RawImage) -> None:
    """The page cache is gone round."""
    assert image.direct
    assert fcntl.fcntl(image.fileno(), fcntl.F_GETFL) & os.O_DIRECT


def test_buffered_io_where_direct_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system that takes O_DIRECT and then fails to read is found out, and said."""

    def no_direct(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "preadv", no_direct)
    with caplog.at_level("INFO"):
        backup = create_image(tmp_path / "b.img", SIZE, sparse=False)
    assert not backup.direct
    assert not fcntl.fcntl(backup.fileno(), fcntl.F_GETFL) & os.O_DIRECT
    assert "no O_DIRECT" in caplog.text
    backup.close()


@pytest.mark.parametrize(
    ("offset", "magic", "what"),
    [
        (1080, b"\x53\xef", "ext4"),
        (4086, b"SWAPSPACE2", "swap"),
        (65600, b"_BHRfS_M", "btrfs"),
        (0, b"XFSB", "XFS"),
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (510, b"\x55\xaa", "partition table"),
    ],
)
def test_signatures(image: RawImage, offset: int, magic: bytes, what: str) -> None:
    """Other people's data on a block device is recognised; empty space is not taken for any."""
    assert foreign_signature(image.fileno()) is None
    write(image.path, offset, magic)
    assert what in str(foreign_signature(image.fileno()))


def test_content_that_nobody_knows(image: RawImage) -> None:
    """Allocated space and zeroes are empty; one byte anywhere else is content, and what blkid knows is named."""
    assert image.foreign_content() is None
    write(image.path, 3 * PAGE, bytes(5 * PAGE))
    assert image.foreign_content() is None
    write(image.path, SIZE - 1, b"x")
    assert image.foreign_content() == "data of unknown origin"
    write(image.path, 65536 + 64, b"_BHRfS_M")
    assert "btrfs" in str(image.foreign_content())


def test_content_of_a_block_device_is_sampled(image: RawImage) -> None:
    """Nothing tells of holes there."""
    image.is_block_device = True
    assert image.foreign_content() is None
    write(image.path, SIZE - 1, b"x")
    assert image.foreign_content() == "data of unknown origin"


def test_used_as_loop_device(image: RawImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop device holds no lock, and is found all the same."""
    image.close()
    monkeypatch.setattr(backups, "_loop_device_of", lambda _fd: "/dev/loop9")
    refused(image.path, ExitCode.IN_USE, "/dev/loop9; detach it first")
