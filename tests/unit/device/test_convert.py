"""A conversion that ends at any step is done or undone by what comes next, also where marks go by a backup's name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from infiniswap.device import convert as module
from infiniswap.device.backup import create_image
from infiniswap.device.backup_kinds import open_backup
from infiniswap.device.export import export
from infiniswap.device.export_lost import write_list
from infiniswap.device.owner import Mark
from infiniswap.device.state import Header, Phase, Record, StateDirectory
from infiniswap.engine.binding import PageFlag
from infiniswap.shared.errors import UserError
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


def lost_pages(directory: StateDirectory) -> list[int]:
    """As the state file says."""
    table = directory.open()
    try:
        return [int(page) for page in np.flatnonzero(table.pages["meta"] & int(PageFlag.LOST))]
    finally:
        table.close()


@pytest.mark.parametrize("new", [None, "new.img"])
@pytest.mark.parametrize("step", ["copied", "lost", "marked", "published", "on record", "record"])
def test_ended_with_pages_that_cannot_be_read(
    directory: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, new: str | None
) -> None:
    """They are lost once the new backup counts, and not before: the old one may be read again then."""
    state, run, other = tmp_path / "state", tmp_path / "run", b"b" * PAGE
    data = DATA[:PAGE] + other + DATA[2 * PAGE :]

    def end(now: str) -> None:
        if now == step:
            raise KilledError

    (tmp_path / "b.img").write_bytes(data)
    module.convert("vol", "log", state, run, sparse=True)
    whole = (tmp_path / "b.img").read_bytes()
    rot(tmp_path / "b.img", other)
    target = None if new is None else tmp_path / new
    with monkeypatch.context() as patched:
        patched.setattr(module, "_settle", lambda *_, **__: None)
        if step == "on record":
            patched.setattr(module, "mark_lost", lambda *_: end(step))
        with pytest.raises(KilledError):
            module.convert("vol", "raw", state, run, backup=target, sparse=True, damaged=True, step=end)
    module.settle(directory)
    assert not [path.name for path in directory.path.iterdir() if path.name.startswith("convert.")]
    if step in ("on record", "record") or (step == "published" and new is None):
        assert kept(directory)[1:] == ("raw", DATA[:PAGE] + bytes(PAGE) + DATA[2 * PAGE :])
        assert lost_pages(directory) == [1]
        return
    assert lost_pages(directory) == []
    (tmp_path / "b.img").write_bytes(whole)  # what was wrong with the disk has passed
    assert module.convert("vol", "raw", state, run, sparse=True, damaged=True).lost == 0
    assert kept(directory)[1:] == ("raw", data)
    assert lost_pages(directory) == []


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
    lost = export("vol", tmp_path / "state", tmp_path / "run", out, force=False, show=lambda *_: lambda _: None)
    assert list(lost) == [1]
    assert out.read_bytes() == DATA[:PAGE] + bytes(PAGE) + DATA[2 * PAGE :]
    assert kept(directory) == ("b.img", layout, DATA)


def rot(path: Path, content: bytes) -> None:
    """The page with that content is another one on the disk."""
    data = path.read_bytes()
    at = data.index(content)
    assert at % PAGE == 0
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"rot", at + 99)


def test_pages_that_cannot_be_read(directory: StateDirectory, tmp_path: Path) -> None:
    """Nothing is done without a word; with --damaged they are lost, and all others taken, for an image as well."""
    state, run, out = tmp_path / "state", tmp_path / "run", tmp_path / "out"
    page, other = b"a" * PAGE, b"b" * PAGE
    data = page + other + DATA[2 * PAGE :]
    (tmp_path / "b.img").write_bytes(data)
    module.convert("vol", "log", state, run, sparse=True)
    rot(tmp_path / "b.img", other)
    with pytest.raises(UserError, match="with --damaged such pages are lost"):
        module.convert("vol", "raw", state, run, sparse=True)
    with pytest.raises(UserError, match="with --damaged such pages are lost"):
        export("vol", state, run, out, force=False, show=lambda *_: lambda _: None)
    assert not out.exists()
    lost = export("vol", state, run, out, force=False, damaged=True, show=lambda *_: lambda _: None)
    wanted = page + bytes(PAGE) + data[2 * PAGE :]
    assert out.read_bytes() == wanted
    assert write_list(out, lost).read_text() == f"{PAGE} {PAGE}\n"
    assert module.convert("vol", "raw", state, run, sparse=True, damaged=True).lost == 1
    assert kept(directory) == ("b.img", "raw", wanted)
    table = directory.open()
    assert list(np.flatnonzero(table.pages["meta"] & int(PageFlag.LOST))) == [1]
    table.close()
    image = open_backup(tmp_path / "b.img", SIZE, "raw", name="vol", sparse=True)
    assert image is not None
    mark = image.mark()
    image.close()
    assert mark is not None
    assert mark.lost == 1
    again = export("vol", state, run, out, force=True, show=lambda *_: lambda _: None)
    assert list(again) == [1]


@pytest.fixture
def with_lost(directory: StateDirectory) -> StateDirectory:
    """A device of which a page is lost."""
    state = directory.open()
    state.pages["meta"][1] = int(PageFlag.LOST)
    state.close()
    return directory


def test_what_else_is_called_as_the_list_of_lost_pages(with_lost: StateDirectory, tmp_path: Path) -> None:
    """It is refused before anything is written, also with force: notes, a link, a folder, a device's backup."""
    state, run, out = tmp_path / "state", tmp_path / "run", tmp_path / "out"
    there, notes = tmp_path / "out.lost", tmp_path / "notes"
    for content in (b"precious notes\n", b"", b"0 4096", b"0 4096\n4096 4096\nx\n", b"5 4096\n", bytes(PAGE)):
        notes.write_bytes(content)
        for place in (notes.rename, there.symlink_to):
            place(there if place == notes.rename else notes)
            for force in (False, True):
                with pytest.raises(UserError, match="is no such list; move it away"):
                    export("vol", state, run, out, force=force, show=lambda *_: lambda _: None)
            assert there.read_bytes() == content
            if there.is_symlink():
                there.unlink()
            else:
                there.rename(notes)
    there.mkdir()
    with pytest.raises(UserError, match="is no such list; move it away"):
        export("vol", state, run, out, force=True, show=lambda *_: lambda _: None)
    there.rmdir()
    other = create_image(there, SIZE, sparse=True)
    other.set_mark(Mark("other", "boot", life="x", in_use=False, name="other"))
    other.close()
    with pytest.raises(UserError, match="is a backup \\(device 'other'"):
        export("vol", state, run, out, force=True, show=lambda *_: lambda _: None)
    assert (there.stat().st_size, out.exists()) == (SIZE, False)


def test_a_list_of_lost_pages_that_is_stale(with_lost: StateDirectory, tmp_path: Path) -> None:
    """It takes force to replace one, and what is no list stays where none is needed; no image has another's list."""
    state, run, out = tmp_path / "state", tmp_path / "run", tmp_path / "out"
    there = tmp_path / "out.lost"
    there.write_text(f"0 {PAGE}\n{8 * PAGE} {2 * PAGE}\n")
    with pytest.raises(UserError, match="give --force to put another in its place"):
        export("vol", state, run, out, force=False, show=lambda *_: lambda _: None)
    lost = export("vol", state, run, out, force=True, show=lambda *_: lambda _: None)
    assert write_list(out, lost).read_text() == f"{PAGE} {PAGE}\n"
    table = with_lost.open()
    table.pages["meta"][1] = 0
    table.close()
    assert not len(export("vol", state, run, out, force=True, show=lambda *_: lambda _: None))
    assert not there.exists()
    there.write_text("mine")
    export("vol", state, run, out, force=True, show=lambda *_: lambda _: None)
    assert there.read_text() == "mine"


def test_a_list_of_lost_pages_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says where the zeroes are, as far as a line does; nothing of the list is left."""
    lost = np.array([1, 2, 5, *range(100, 200, 2)], np.int64)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"has zeroes for 53 lost pages.*at 4096\+8192, 20480\+4096, .* and 36 more"):
        write_list(tmp_path / "out", lost)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.lost").symlink_to(tmp_path / "planted")
    with pytest.raises(UserError, match="File exists"):
        write_list(tmp_path / "out", lost)
    assert not (tmp_path / "planted").exists()


def test_nothing_to_settle_where_no_folder_is(tmp_path: Path) -> None:
    """A state directory that is a file is for the start to refuse, in its own words."""
    (tmp_path / "file").touch()
    module.settle(StateDirectory(tmp_path / "file" / "vol"))
    module.settle(StateDirectory(tmp_path / "nowhere" / "vol"))
