"""State file: what a start makes of what it finds, so that stale data is never served without being asked for."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infiniswap.backup import Mark, RawImage, create_image
from infiniswap.engine.binding import PAGE_BYTES, PageFlag, state_layout
from infiniswap.errors import ExitCode, UserError
from infiniswap.state import (
    PERSISTENT_FLAGS,
    Header,
    Record,
    Start,
    StateDirectory,
    judge,
    new_device_id,
    read_boot_id,
    replace_file,
)

SIZE = 4 << 20
PAGES = SIZE // PAGE_BYTES
CLEAN = Header(True, SIZE, 1 << 20, "this-boot", "device-1")
KILLED = replace(CLEAN, clean=False)
WANTED = Header(True, SIZE, 1 << 20, "this-boot", "")


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[RawImage]:
    """An empty image."""
    image = create_image(tmp_path / "b.img", SIZE, sparse=True)
    yield image
    image.close()


@pytest.fixture
def record(backup: RawImage) -> Record:
    """The record of that image."""
    return Record("device-1", os.path.realpath(backup.path), marked=True)


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    """An empty state folder."""
    (tmp_path / "state").mkdir()
    return StateDirectory(tmp_path / "state")


def refused(header: Header | None, record: Record | None, backup: RawImage | None, words: str) -> None:
    """Refused with the way out, which then forgets the state."""
    with pytest.raises(UserError, match=words) as caught:
        judge(header, record, backup, WANTED, accept_stale=False)
    assert caught.value.code == ExitCode.REFUSED
    assert "--accept-stale-backup" in str(caught.value)
    assert judge(header, record, backup, WANTED, accept_stale=True) is Start.FORGET


def decide(header: Header | None, record: Record | None, backup: RawImage | None) -> Start:
    """Without the way out."""
    return judge(header, record, backup, WANTED, accept_stale=False)


def test_new_device(backup: RawImage) -> None:
    """Nothing is known: the backup counts."""
    assert decide(None, None, None) is Start.FORGET
    assert decide(None, None, backup) is Start.FORGET


def test_after_a_clean_stop(backup: RawImage, record: Record) -> None:
    """The backup counts, but pages known to be lost stay lost."""
    assert decide(CLEAN, record, backup) is Start.REBUILD


def test_killed_between_clean_state_and_taking_the_mark_off(backup: RawImage, record: Record) -> None:
    """Everything was on the backup by then."""
    backup.set_mark(Mark("device-1", "this-boot"))
    assert decide(CLEAN, record, backup) is Start.REBUILD


def test_clean_state_of_another_backup_is_forgotten(backup: RawImage) -> None:
    """Lost pages of one backup are not those of another."""
    assert decide(CLEAN, Record("device-1", "/elsewhere", marked=True), backup) is Start.FORGET
    assert decide(replace(CLEAN, size_bytes=SIZE * 2), None, backup) is Start.FORGET


def test_killed_on_this_boot(backup: RawImage, record: Record) -> None:
    """The state is newer than the backup, and is taken up."""
    backup.set_mark(Mark("device-1", "this-boot"))
    assert decide(KILLED, record, backup) is Start.RECOVER


def test_killed_where_marks_are_not_supported(backup: RawImage, record: Record) -> None:
    """The record says that there was none to expect."""
    assert decide(KILLED, replace(record, marked=False), backup) is Start.RECOVER


def test_killed_before_another_boot(backup: RawImage, record: Record) -> None:
    """The state may be half-written: the backup counts."""
    backup.set_mark(Mark("device-1", "old-boot"))
    assert decide(replace(KILLED, boot_id="old-boot"), record, backup) is Start.REBUILD


def test_dirty_backup_without_its_state(backup: RawImage, record: Record) -> None:
    """Newer pages may be elsewhere."""
    backup.set_mark(Mark("device-1", "this-boot"))
    refused(None, None, backup, "was not closed in order")
    refused(None, record, backup, "was not closed in order")


def test_dirty_backup_without_its_state_after_another_boot(backup: RawImage) -> None:
    """A state directory in memory is gone with the boot: the backup counts, on the host that wrote it alone."""
    backup.set_mark(Mark("device-1", "old-boot", "host-1"))
    assert judge(None, None, backup, WANTED, accept_stale=False, host_id="host-1") is Start.FORGET
    with pytest.raises(UserError, match="was not closed in order"):
        judge(None, None, backup, WANTED, accept_stale=False, host_id="host-2")
    backup.set_mark(Mark("device-1", WANTED.boot_id, "host-1"))
    with pytest.raises(UserError, match="was not closed in order"):
        judge(None, None, backup, WANTED, accept_stale=False, host_id="host-1")
    backup.set_mark(Mark("device-1", "old-boot"))
    with pytest.raises(UserError, match="was not closed in order"):
        judge(None, None, backup, WANTED, accept_stale=False, host_id="")


def test_dirty_backup_with_the_state_of_another_device(backup: RawImage, record: Record) -> None:
    """However clean that is."""
    backup.set_mark(Mark("device-2", "this-boot"))
    refused(KILLED, record, backup, "was not closed in order")
    refused(CLEAN, record, backup, "was not closed in order")


def test_dirty_state_without_its_backup(backup: RawImage, record: Record) -> None:
    """Creating a new one would lose the old pages."""
    refused(KILLED, record, None, "its backup is")
    refused(KILLED, replace(record, backup="/elsewhere"), backup, "its backup is /elsewhere")


def test_dirty_state_with_a_replaced_backup(backup: RawImage, record: Record) -> None:
    """The mark is missing on a copy."""
    refused(KILLED, record, backup, "is not the file this device was using")


def test_dirty_state_with_other_sizes(backup: RawImage, record: Record) -> None:
    """Pages would be somewhere else."""
    backup.set_mark(Mark("device-1", "this-boot"))
    refused(replace(KILLED, slab_bytes=2 << 20), record, backup, "--slab-size 2097152")
    refused(replace(KILLED, size_bytes=2 * SIZE), record, backup, f"--size {2 * SIZE}")


def test_pages_on_disk_are_those_in_extents(directory: StateDirectory) -> None:
    """Extents are widened to pages."""
    state = directory.create(CLEAN, [(0, 1), (3 * PAGE_BYTES + 1, 5 * PAGE_BYTES)], keep_lost=False)
    meta = state.pages["meta"]
    assert np.flatnonzero(meta).tolist() == [0, 3, 4]
    assert set(meta[[0, 3, 4]].tolist()) == {int(PageFlag.DISK)}
    del meta
    state.close()
    assert directory.state_path.stat().st_mode & 0o777 == 0o600


def test_header_survives(directory: StateDirectory) -> None:
    """Written, read, and changed between clean and in use."""
    header = replace(CLEAN, device_id=new_device_id(), boot_id=read_boot_id())
    directory.create(header, [], keep_lost=False).close()
    assert directory.read_header() == header
    state = directory.open()
    state.set_clean(False)
    assert directory.read_header() == replace(header, clean=False)
    state.set_clean(True)
    state.close()
    assert directory.read_header() == header


def test_volatile_marks_are_dropped(directory: StateDirectory) -> None:
    """Indexes into the memory of a dead process mean nothing."""
    state = directory.create(CLEAN, [], keep_lost=False)
    state.pages["meta"][5] = 0xFFFFFFFF
    state.pages["crc"][5] = 77
    state.pages["meta"][6] = int(PageFlag.REMOTE) | (1 << 5) | (9 << 8)
    state.drop_volatile()
    assert state.pages["meta"][[5, 6]].tolist() == [PERSISTENT_FLAGS, int(PageFlag.REMOTE)]
    assert state.pages["crc"][5] == 77
    state.close()


def test_lost_pages_stay_lost_unless_forgotten(directory: StateDirectory) -> None:
    """An orderly stop does not make them good."""
    state = directory.create(CLEAN, [], keep_lost=False)
    state.pages["meta"][7] = int(PageFlag.LOST)
    state.pages["meta"][8] = int(PageFlag.REMOTE | PageFlag.DISK)
    state.close()
    state = directory.create(CLEAN, [(0, SIZE)], keep_lost=True)
    assert state.pages["meta"][7] == int(PageFlag.LOST), "stale data of the backup must not be served for it"
    assert state.pages["meta"][8] == int(PageFlag.DISK)
    state.close()
    state = directory.create(CLEAN, [(0, SIZE)], keep_lost=False)
    assert state.pages["meta"][7] == int(PageFlag.DISK)
    state.close()


def test_chunks_cover_all_pages(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in pieces leaves nothing out."""
    monkeypatch.setattr("infiniswap.state.CHUNK_PAGES", 100)
    state = directory.create(CLEAN, [], keep_lost=False)
    covered = [page for part in state.chunks() for page in range(part.start, part.stop)]
    assert covered == list(range(PAGES))
    state.close()


@pytest.mark.parametrize("damage", ["short", "magic", "length", "version", "empty"])
def test_damaged_state_is_not_used(directory: StateDirectory, damage: str) -> None:
    """Neither half a file nor one of another version."""
    directory.create(CLEAN, [], keep_lost=False).close()
    raw = directory.state_path.read_bytes()
    damaged = {
        "short": raw[:50],
        "magic": b"X" + raw[1:],
        "length": raw + b"x",
        "version": raw[:8] + b"\x63" + raw[9:],
        "empty": b"",
    }[damage]
    directory.state_path.write_bytes(damaged)
    assert directory.read_header() is None


def test_missing_state(directory: StateDirectory) -> None:
    """Is no error."""
    assert directory.read_header() is None
    assert directory.read_record() is None
    assert StateDirectory(directory.path / "none").read_header() is None


def test_state_in_use(directory: StateDirectory) -> None:
    """One process at a time."""
    state = directory.create(CLEAN, [], keep_lost=False)
    with pytest.raises(UserError, match="in use by another process") as caught:
        directory.open()
    assert caught.value.code == ExitCode.IN_USE
    with pytest.raises(UserError, match="in use by another process"):
        directory.create(CLEAN, [], keep_lost=True)
    state.close()
    directory.open().close()


def test_new_state_is_locked_too(directory: StateDirectory) -> None:
    """The file that took the place of the old one."""
    directory.create(CLEAN, [], keep_lost=False).close()
    state = directory.create(CLEAN, [], keep_lost=True)
    with directory.state_path.open("r+b") as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    state.close()


def test_disk_full_leaves_the_old_state(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed start changes nothing."""
    directory.create(CLEAN, [], keep_lost=False).close()
    before = directory.state_path.read_bytes()

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"):
        directory.create(CLEAN, [(0, SIZE)], keep_lost=False)
    assert directory.state_path.read_bytes() == before
    assert [path.name for path in directory.path.iterdir()] == ["state"]


def test_record(directory: StateDirectory) -> None:
    """Written and read; a damaged one counts as none."""
    record = Record("id", "/b", marked=True)
    directory.write_record(record)
    assert directory.read_record() == record
    for garbage in (b"", b"{}", b"[1]", b"\xff", b'{"device_id": 1}'):
        replace_file(directory.path / "backup.json", garbage)
        assert directory.read_record() is None


def test_replaced_in_one_step_and_private(tmp_path: Path) -> None:
    """Readers see the old file or the new one."""
    path = tmp_path / "f"
    replace_file(path, b"one")
    with path.open("rb") as old:
        replace_file(path, b"two")
        assert old.read() == b"one"
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_layout_is_the_engines() -> None:
    """Pages and header have room."""
    layout = state_layout(SIZE)
    assert layout.total_bytes - layout.pages_offset >= PAGES * 8
    assert layout.intents_offset >= 112
