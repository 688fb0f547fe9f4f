"""A log as a device's backup: made whole or not at all, never taken for an image nor an image for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infiniswap.device import startup
from infiniswap.device.backup_kinds import create_backup, open_backup
from infiniswap.device.backup_log import LogBackup, needed_bytes, open_checked
from infiniswap.device.config import load_config
from infiniswap.device.owner import Mark
from infiniswap.engine.log_binding import LogFlag
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.backups import read_backup

PAGE = 4096
SIZE = 64 * PAGE
MARK = Mark("device", "boot", life="life", in_use=False, name="vol", layout="log")


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[LogBackup]:
    """A new log that was taken up."""
    made = create_backup(tmp_path / "b.log", SIZE, "log", sparse=False)
    assert isinstance(made, LogBackup)
    made.take_up(same_boot=False)
    yield made
    made.close()


def take_up(path: Path, size: int, layout: str, *, accept: bool) -> None:
    """As a start does."""
    found = open_backup(path, size, layout, name="vol", sparse=True, accept=accept)
    assert found is not None
    try:
        found.take_up(same_boot=True, accept=accept)
    finally:
        found.close()


def refused(path: Path, words: str, *, layout: str = "log", size: int = SIZE, accept: bool = False) -> None:
    """It is refused in one line, and left as it was."""
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        take_up(path, size, layout, accept=accept)
    assert words in str(caught.value)
    assert caught.value.code == ExitCode.REFUSED
    assert path.read_bytes() == before


def test_created_in_full(backup: LogBackup) -> None:
    """Its file has the size of a log, allocated; nothing counts as data, nobody else may read it."""
    status = backup.path.stat()
    assert status.st_size == needed_bytes(SIZE)
    assert status.st_blocks * 512 >= status.st_size
    assert status.st_mode & 0o777 == 0o600
    assert (backup.layout, backup.created, list(backup.data_extents())) == ("log", True, [])
    facts = backup.facts()
    assert (facts["backup_layout"], facts["backup_bytes"], facts["log_live_pages"]) == ("log", status.st_size, 0)
    backup.discard()
    assert not backup.path.exists()


def test_more_room_is_used(tmp_path: Path, backup: LogBackup) -> None:
    """A larger file holds more segments, and says so to who opens it next; whatever is asked for then."""
    path = tmp_path / "c.log"
    made = create_backup(path, 1024 * PAGE, "log", sparse=True, log_space_percent=400)
    made.take_up(same_boot=False)
    segments = made.facts()["log_segments"]
    made.close()
    assert path.stat().st_size == needed_bytes(1024 * PAGE, 400) == needed_bytes(1024 * PAGE) + 10 * 1024 * 1024
    found = open_backup(path, 1024 * PAGE, "log", name="vol", sparse=True, log_space_percent=150)
    assert isinstance(found, LogBackup)
    found.take_up(same_boot=True)
    least = backup.facts()["log_segments"]
    assert isinstance(segments, int)
    assert isinstance(least, int)
    assert found.facts()["log_segments"] == segments >= least + 5
    found.close()


def test_sparse_takes_little(tmp_path: Path) -> None:
    """Two superblocks at most are written."""
    made = create_backup(tmp_path / "b.log", SIZE, "log", sparse=True)
    made.take_up(same_boot=False)
    assert made.path.stat().st_blocks * 512 < 1 << 20
    made.close()
    assert made.facts()["log_segments"] is None


def test_reopened_with_its_data(backup: LogBackup) -> None:
    """What was written has extents; a second process is kept out until this one lets go."""
    assert backup.log is not None
    backup.log.write(5 * PAGE, b"x" * PAGE)
    backup.log.sync()
    backup.set_mark(MARK)
    with pytest.raises(UserError) as caught:
        open_backup(backup.path, SIZE, "log", name="vol", sparse=False)
    assert caught.value.code == ExitCode.IN_USE
    backup.close()
    again = open_backup(backup.path, SIZE, "log", name="vol", sparse=False)
    assert again is not None
    assert again.mark() == MARK
    assert again.foreign_content() == "4KiB of a device's data in a log"
    again.take_up(same_boot=True)
    assert list(again.data_extents()) == [(5 * PAGE, 6 * PAGE)]
    again.discard()
    assert again.path.exists(), "it was there before"
    again.close()


def test_another_size(backup: LogBackup) -> None:
    """The log of another device's size is refused with its own."""
    backup.close()
    refused(backup.path, f"--size {SIZE}", size=2 * SIZE)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errno.EIO, ExitCode.RESOURCES, "cannot be read: Input/output error; the kernel's log tells more of its disk"),
        (
            errno.ENODATA,
            ExitCode.RESOURCES,
            "cannot be read: No data available; the kernel.s log tells",
        ),
        (errno.ENOMEM, ExitCode.RESOURCES, "cannot be taken up now: Cannot allocate memory$"),
        (errno.EISDIR, ExitCode.REFUSED, "cannot be used: Is a directory"),
    ],
)
def test_a_disk_that_fails_is_not_refused_for_good(
    backup: LogBackup, monkeypatch: pytest.MonkeyPatch, error: int, code: ExitCode, said: str
) -> None:
    """What may work the next time ends with another exit code than what never will, and says where to look."""

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("infiniswap.device.backup_log.Log", fail)
    with pytest.raises(UserError, match=said) as failed:
        open_checked(backup.fileno(), backup.path, SIZE, LogFlag.READ_ONLY)
    assert failed.value.code == code


def test_a_log_is_no_image(backup: LogBackup) -> None:
    """With or without its mark; with the mark --accept-backup changes nothing."""
    backup.set_mark(MARK)
    backup.close()
    refused(backup.path, "give --backup-layout log, or make a raw image of it", layout="raw")
    refused(backup.path, "device convert vol --to raw", layout="raw", accept=True)
    os.removexattr(backup.path, "user.infiniswap.in_use_by")
    refused(backup.path, "is a log, and --backup-layout is raw", layout="raw", size=needed_bytes(SIZE))


def test_an_image_is_no_log(tmp_path: Path) -> None:
    """Neither a device's, nor one of unknown origin, nor another file; one that is too small says what it takes."""
    path = tmp_path / "b.img"
    image = create_backup(path, SIZE, "raw", sparse=True)
    image.set_mark(Mark("device", "boot", life="life", in_use=False))
    image.close()
    refused(path, "give --backup-layout raw, or make a log of it with 'infiniswap device convert vol --to log'")
    os.removexattr(path, "user.infiniswap.in_use_by")
    refused(path, f"the log of a device of 256KiB takes 36MiB ({needed_bytes(SIZE)} bytes)")
    path.write_bytes(b"data" * 1024)
    refused(path, "holds data of unknown origin, and no log")
    refused(path, "holds data of unknown origin, and no log", accept=True)


def test_an_image_may_hold_a_log(tmp_path: Path, backup: LogBackup) -> None:
    """What its own mark calls an image is one, whatever its device's data look like."""
    path = tmp_path / "b.img"
    backup.close()
    content = backup.path.read_bytes()
    path.write_bytes(content)
    with path.open("rb") as file:
        os.setxattr(file.fileno(), "user.infiniswap.in_use_by", Mark("device", "boot", life="l", in_use=False).pack())
    image = open_backup(path, len(content), "raw", name="vol", sparse=True)
    assert image is not None
    assert image.layout == "raw"
    image.close()
    refused(path, "is a raw image, and --backup-layout is log")


def test_a_blank_file_becomes_one(tmp_path: Path) -> None:
    """Room that was made before holds a log from the first taking up on, and not before."""
    path = tmp_path / "b.log"
    with path.open("wb") as file:
        file.truncate(needed_bytes(SIZE) + PAGE)
    found = open_backup(path, SIZE, "log", name="vol", sparse=True)
    assert found is not None
    assert found.foreign_content() is None
    assert path.read_bytes() == bytes(needed_bytes(SIZE) + PAGE)
    found.take_up(same_boot=False)
    open_checked(found.fileno(), path, SIZE, LogFlag.READ_ONLY).close()
    found.close()


def test_a_damaged_one(backup: LogBackup) -> None:
    """One whose beginning was changed is told to be of no use, and is not made anew."""
    backup.set_mark(MARK)
    backup.close()
    with backup.path.open("r+b") as file:
        for block in (0, 1):
            os.pwrite(file.fileno(), b"x", block * PAGE + 100)
    refused(backup.path, "holds no log that can be used any more")
    os.truncate(backup.path, 0)
    os.truncate(backup.path, needed_bytes(SIZE))
    refused(backup.path, "was a device's log and does not begin as one any more")
    found = open_backup(backup.path, SIZE, "log", name="vol", sparse=True, accept=True)
    assert found is not None
    found.close()


def test_a_short_one(backup: LogBackup, tmp_path: Path) -> None:
    """A file that was cut short is said to be, with the length that brings it back; no option is offered in vain."""
    backup.set_mark(MARK)
    backup.close()
    wider = create_backup(tmp_path / "w.log", SIZE, "log", sparse=True, log_space_percent=4000)
    wider.take_up(same_boot=False)
    wider.set_mark(MARK)
    wider.close()
    for path, size_bytes in ((backup.path, needed_bytes(SIZE)), (tmp_path / "w.log", needed_bytes(SIZE, 4000))):
        told_bytes = size_bytes // (2 << 20) * (2 << 20)
        os.truncate(path, told_bytes - PAGE)
        for accept in (False, True):
            refused(path, f"its log {told_bytes}: it was cut short by {PAGE} bytes", accept=accept)
            refused(path, f"'truncate -s {told_bytes} {path}'", accept=accept)
        os.truncate(path, told_bytes)
        take_up(path, SIZE, "log", accept=False)


def test_one_that_ends_early(backup: LogBackup, caplog: pytest.LogCaptureFixture) -> None:
    """A rotten header behind which more was durable: refused, with a way out that takes what is before it."""
    assert backup.log is not None
    for page in range(5):
        backup.log.write(page * PAGE, bytes([page + 1]) * PAGE)
    backup.close()  # in order: what was written last is known to be there
    third = [i for i in range(needed_bytes(SIZE) // PAGE) if header_at(backup.path, i)][2]
    with backup.path.open("r+b") as file:
        os.pwrite(file.fileno(), b"rot", third * PAGE + 200)
    refused(
        backup.path, "a block has rotted, and what was written after that cannot be found; put a copy of it in place"
    )
    take_up(backup.path, SIZE, "log", accept=True)
    assert "what was written to its log last is lost" in caplog.text
    assert read_backup(backup.path, 5 * PAGE) == b"\1" * PAGE + b"\2" * PAGE + bytes(3 * PAGE)
    caplog.clear()
    take_up(backup.path, SIZE, "log", accept=False)
    assert not caplog.text, "once is enough"


def header_at(path: Path, block: int) -> bool:
    """Whether a chunk begins there."""
    with path.open("rb") as file:
        return os.pread(file.fileno(), 8, block * PAGE) == b"ISWCHUNK"


def test_the_boot_is_told(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that was written since this boot is opened so; one of before, or that nobody has marked, is not.

    Record and mark say that it is a log; a start that fails leaves no file of its own.
    """
    told: list[bool] = []
    take_up_really = LogBackup.take_up

    def take_up_noted(self: LogBackup, *, same_boot: bool, accept: bool) -> None:
        told.append(same_boot)
        take_up_really(self, same_boot=same_boot, accept=accept)

    monkeypatch.setattr(LogBackup, "take_up", take_up_noted)
    places = {"backup": f"{short_path}/b.log", "state_dir": f"{short_path}/state", "runtime_dir": f"{short_path}/run"}
    config = load_config("vol", {"size": "4MiB", "slab_size": "1MiB", "backup_layout": "log", **places})
    for turn in ("fails", "first", "same boot", "next boot"):
        if turn == "next boot":
            monkeypatch.setattr(startup, "read_boot_id", lambda: "another")
        with ExitStack() as cleanup, ExitStack() as undo:
            prepared = startup.prepare(config, startup.look(config, cleanup), cleanup, undo)
            if turn == "fails":
                continue
            undo.pop_all()
            prepared.mark_in_use()
            record, mark = prepared.directory.read_record(), prepared.backup.mark()
            assert record is not None
            assert mark is not None
            assert record.layout == mark.layout == "log"
        assert (short_path / "b.log").exists()
    assert told == [False, False, True, False]
