"""A conversion that ends at any step is done or undone by what comes next, also where marks go by a backup's name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from infiniswap.device import convert as module
from infiniswap.device.backup import create_image
from infiniswap.device.backup_kinds import open_backup
from infiniswap.device.export import export
from infiniswap.device.owner import Mark
from infiniswap.device.state import Header, Phase, Record, StateDirectory
from infiniswap.engine.binding import PageFlag
from tests.support.backups import read_backup

PAGE = 4096
SIZE = 64 * PAGE
STEPS = ("note", "made", "copied", "marked", "published", "record")
DATA = b"\1" * 3 * PAGE + bytes(50 * PAGE) + b"\2" * 11 * PAGE


class KilledError(Exception):
    """Nothing is done after it."""


@pytest.fixture(params=["attributes", "names"])
def marks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where marks are: with the file, or beside it as on a file system without attributes."""

    def unsupported(*_: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if request.param == "names":
        for name in ("getxattr", "setxattr", "removexattr"):
            monkeypatch.setattr(os, name, unsupported)


@pytest.fixture
def directory(tmp_path: Path, marks: None) -> StateDirectory:
    """Of a device that was stopped in order, with DATA on a raw image."""
    image = create_image(tmp_path / "b.img", SIZE, sparse=True)
    image.path.write_bytes(DATA)
    image.set_mark(Mark("id", "boot", life="life", in_use=False, name="vol"))
    image.close()
    found = StateDirectory(tmp_path / "state" / "vol")
    found.path.mkdir(parents=True)
    header = Header(Phase.CLEAN, SIZE, SIZE, "boot", "id", "life")
    found.create(header, [(0, SIZE)], keep_lost=False).close()
    found.write_record(Record("id", str(tmp_path / "b.img"), marked=True))
    return found


def kept(directory: StateDirectory) -> tuple[str, str, bytes]:
    """Name and layout of the backup on record, and what it holds; it is marked as the record says."""
    record = directory.read_record()
    assert record is not None
    found = open_backup(Path(record.backup), SIZE, record.layout, name="vol", sparse=True)
    assert found is not None
    mark = found.mark()
    found.close()
    assert mark is not None
    assert (mark.device_id, mark.life, mark.in_use, mark.layout) == ("id", "life", False, record.layout)
    return Path(record.backup).name, record.layout, read_backup(Path(record.backup), SIZE)


def names(folder: Path) -> set[str]:
    """Of files that are no marks."""
    return {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".infiniswap"}


@pytest.mark.parametrize("new", [None, "new.log"])
@pytest.mark.parametrize("step", STEPS)
def test_ended_at_each_step(
    directory: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, new: str | None
) -> None:
    """What settles it leaves the old backup or the new one, marked and whole; then it can be done again."""

    def end(now: str) -> None:
        if now == step:
            raise KilledError

    target = None if new is None else tmp_path / new
    with monkeypatch.context() as patched:
        patched.setattr(module, "_settle", lambda *_, **__: None)
        with pytest.raises(KilledError):
            module.convert("vol", "log", tmp_path / "state", tmp_path / "run", backup=target, sparse=True, step=end)
    module.settle(directory)
    done = step == "record" or (step == "published" and new is None)
    assert kept(directory) == (new or "b.img" if done else "b.img", "log" if done else "raw", DATA)
    assert names(tmp_path) == {"b.img"} | ({new} if done and new else set())
    assert not (directory.path / "convert.json").exists()
    to = "raw" if done else "log"
    module.convert("vol", to, tmp_path / "state", tmp_path / "run", sparse=True)
    assert kept(directory)[1:] == (to, DATA)


def test_a_backup_that_was_replaced_meanwhile(
    directory: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is somebody else's business then: the note goes, nothing else, and no start fails for it."""

    def end(now: str) -> None:
        if now == "published":
            raise KilledError

    other = create_image(tmp_path / "other", SIZE, sparse=True)
    other.set_mark(Mark("other", "boot", life="x", in_use=False))
    other.close()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_settle", lambda *_, **__: None)
        with pytest.raises(KilledError):
            module.convert("vol", "log", tmp_path / "state", tmp_path / "run", sparse=True, step=end)
    other.path.rename(tmp_path / "b.img")
    if (tmp_path / "other.infiniswap").exists():
        (tmp_path / "other.infiniswap").rename(tmp_path / "b.img.infiniswap")
    module.settle(directory)
    assert "is forgotten" in caplog.text
    assert not (directory.path / "convert.json").exists()
    assert (tmp_path / "b.img").stat().st_size == SIZE


def test_a_note_that_says_nothing(directory: StateDirectory) -> None:
    """Written before anything was done: whatever is wrong with it, the backup is as it was."""
    for garbage in (b"", b"{}", b'{"old_file": 7}', b"\xff", b"[" * 9999):
        (directory.path / "convert.json").write_bytes(garbage)
        module.settle(directory)
        assert not (directory.path / "convert.json").exists()
    assert kept(directory) == ("b.img", "raw", DATA)


@pytest.mark.parametrize("layout", ["raw", "log"])
def test_an_export_has_nothing_of_what_is_lost(directory: StateDirectory, tmp_path: Path, layout: str) -> None:
    """A page that the state calls lost is zeroes in it, not the version that the backup has; how many is told."""
    if layout == "log":
        module.convert("vol", "log", tmp_path / "state", tmp_path / "run", sparse=True)
    state = directory.open()
    state.pages["meta"][1] = int(PageFlag.LOST)
    state.close()
    out = tmp_path / "out"
    assert export("vol", tmp_path / "state", tmp_path / "run", out, force=False, show=lambda *_: lambda _: None) == 1
    assert out.read_bytes() == DATA[:PAGE] + bytes(PAGE) + DATA[2 * PAGE :]
    assert kept(directory) == ("b.img", layout, DATA)
