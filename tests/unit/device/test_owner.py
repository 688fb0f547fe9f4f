"""The owner's mark: put where it fits, found again, read from version 1, and never left out in silence."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.device import owner
from infiniswap.device.backup import RawImage, create_image
from infiniswap.device.owner import MARK_ATTRIBUTE, Mark, MarkPlaces, block_identity
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import backups_dir

MARK = Mark("device", "boot", "host", "life", True, 2, "vol", "/a dir", "2026-01-01T00:00:00+0000")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawImage]:
    """An image, with the folder of marks beside it."""
    monkeypatch.setenv("INFINISWAP_BACKUPS_DIR", str(tmp_path / "marks"))
    (tmp_path / "disk").mkdir()
    backup = create_image(tmp_path / "disk" / "b.img", 1 << 20, sparse=True)
    yield backup
    backup.close()


@pytest.fixture
def no_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FUSE, or tmpfs before Linux 6.6."""

    def unsupported(*_: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for name in ("getxattr", "setxattr", "removexattr"):
        monkeypatch.setattr(os, name, unsupported)


def test_packed_and_read() -> None:
    """As it was, with and without a host."""
    for mark in (MARK, Mark("d", "b"), Mark("d", "b", "h", in_use=False), Mark("d", "b", layout="log")):
        assert Mark.parse(mark.pack()) == mark


def test_a_layout_that_is_not_known() -> None:
    """A mark of before there were logs is an image's; one of a layout yet to come is of no use."""
    raw = Mark("d", "b", layout="log").pack()
    assert b"layout" not in Mark("d", "b").pack()
    with pytest.raises(ValueError, match="in a way that this version does not know"):
        Mark.parse(raw.replace(b'"log"', b'"tape"'))


def test_version_1_is_read() -> None:
    """It was there only while the backup was in use."""
    assert Mark.parse(b"device boot host") == Mark("device", "boot", "host")
    assert Mark.parse(b"device boot ") == Mark("device", "boot")
    assert Mark.parse(b"device boot") == Mark("device", "boot")


@pytest.mark.parametrize("raw", [b"", b"x", b"\xff", b"a b c {", b"a b c {}", b"a b c []", b"a b c " + b"[" * 9999])
def test_damaged_marks(raw: bytes) -> None:
    """Are told from good ones."""
    with pytest.raises(ValueError):
        Mark.parse(raw)


def test_set_read_and_taken_away(image: RawImage) -> None:
    """Taking away twice is no error; the image's folder holds nothing else where there are attributes."""
    assert image.mark() is None
    image.set_mark(MARK)
    assert image.mark() == MARK
    assert [path.name for path in image.path.parent.iterdir()] == ["b.img"]
    image.set_mark(None)
    image.set_mark(None)
    assert image.mark() is None


@pytest.mark.usefixtures("no_attributes")
def test_without_attributes_it_lies_beside_the_image(image: RawImage) -> None:
    """And moves with it when both are moved."""
    image.set_mark(MARK)
    assert image.mark() == MARK
    assert sorted(path.name for path in image.path.parent.iterdir()) == ["b.img", "b.img.infiniswap"]
    image.set_mark(None)
    assert [path.name for path in image.path.parent.iterdir()] == ["b.img"]


@pytest.mark.usefixtures("no_attributes")
def test_where_nothing_can_lie_beside_it_the_host_remembers(image: RawImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FUSE mount that has the image alone, say."""
    real = os.open

    def only_elsewhere(path: str, *arguments: int, **options: int) -> int:
        if str(path).endswith(".infiniswap.new"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", only_elsewhere)
    image.set_mark(MARK)
    assert image.mark() == MARK
    assert len(list(backups_dir().iterdir())) == 1


@pytest.mark.usefixtures("no_attributes")
def test_nowhere(image: RawImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in one line, and the old mark stands."""
    image.set_mark(MARK)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"cannot be marked as this device's.*No space left") as caught:
        image.set_mark(Mark("other", "boot"))
    assert caught.value.code == ExitCode.RESOURCES
    assert image.mark() == MARK
    assert sorted(path.name for path in image.path.parent.iterdir()) == ["b.img", "b.img.infiniswap"]


def test_unreadable_and_damaged_marks_are_refused(image: RawImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ownership check that cannot be made fails closed."""
    os.setxattr(image.path, MARK_ATTRIBUTE, b"?")
    with pytest.raises(UserError, match=r"is damaged.*--accept-backup"):
        image.mark()

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "getxattr", broken)
    with pytest.raises(UserError, match="cannot be read"):
        image.mark()


def test_block_device_is_known_however_it_is_found(tmp_path: Path) -> None:
    """By what the kernel knows of the disk, with the partition; a loop device by its file; else by its path."""
    sys_root = tmp_path / "sys"
    disk = sys_root / "devices" / "sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "wwid").write_text("naa.5000\n")
    (disk / "sda1" / "partition").write_text("1\n")
    (disk / "sda1" / "start").write_text("2048\n")
    loop = sys_root / "devices" / "loop0"
    (loop / "loop").mkdir(parents=True)
    (loop / "loop" / "backing_file").write_text("/img\n")
    (loop / "loop" / "offset").write_text("0\n")
    (sys_root / "devices" / "bare").mkdir()
    (sys_root / "dev" / "block").mkdir(parents=True)
    for number, target in (("8:0", disk), ("8:1", disk / "sda1"), ("7:0", loop), ("9:0", sys_root / "devices/bare")):
        (sys_root / "dev" / "block" / number).symlink_to(target)
    assert block_identity(Path("/dev/x"), os.makedev(8, 0), sys_root) == "wwid naa.5000"
    assert block_identity(Path("/dev/x"), os.makedev(8, 1), sys_root) == "wwid naa.5000 partition 1 at 2048"
    assert block_identity(Path("/dev/x"), os.makedev(7, 0), sys_root) == "loop /img from 0"
    assert block_identity(Path("/dev/x"), os.makedev(9, 0), sys_root) == "path /dev/x"


def test_marks_of_block_devices_are_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under whatever state directory: found again by another process, for all to read."""
    monkeypatch.setenv("INFINISWAP_BACKUPS_DIR", str(tmp_path / "marks"))
    monkeypatch.setattr(owner, "block_identity", lambda _path, number: f"disk {number}")
    MarkPlaces(Path("/dev/x"), -1, 5).write(MARK)
    assert MarkPlaces(Path("/dev/y"), -1, 5).read() == MARK
    assert MarkPlaces(Path("/dev/x"), -1, 6).read() is None
    (path,) = (tmp_path / "marks").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
