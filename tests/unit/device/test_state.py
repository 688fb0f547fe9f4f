"""State file: written and read whole or not at all, and never taken for good when it is damaged."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infiniswap.device.state import (
    HEADER_BYTES,
    PERSISTENT_FLAGS,
    VERSION,
    DamagedState,
    Header,
    Phase,
    Record,
    StateDirectory,
    new_device_id,
    read_boot_id,
)
from infiniswap.engine.binding import LOST_PENDING, PAGE_BYTES, PageFlag, crc32c, state_layout
from infiniswap.engine.checksum import PageChecksum
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import replace_file

SIZE = 4 << 20
PAGES = SIZE // PAGE_BYTES
CLEAN = Header(Phase.CLEAN, SIZE, 1 << 20, "this-boot", "device-1")


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    """An empty state folder."""
    (tmp_path / "state").mkdir()
    return StateDirectory(tmp_path / "state")


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
    state.set_phase(Phase.IN_USE)
    assert directory.read_header() == replace(header, phase=Phase.IN_USE)
    state.set_phase(Phase.CLEAN)
    state.close()
    assert directory.read_header() == header


def test_volatile_marks_are_dropped(directory: StateDirectory) -> None:
    """Indexes into the memory of a dead process mean nothing."""
    state = directory.create(CLEAN, [], keep_lost=False)
    state.pages["meta"][5] = 0xFFFFFFFF
    state.pages["checksum"][5] = 77
    state.pages["meta"][6] = int(PageFlag.REMOTE) | (1 << 5) | (9 << 8)
    state.drop_volatile()
    assert state.pages["meta"][[5, 6]].tolist() == [PERSISTENT_FLAGS, int(PageFlag.REMOTE)]
    assert state.pages["checksum"][5] == 77
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


def test_pages_that_were_pending_are_what_the_backup_has(directory: StateDirectory) -> None:
    """A power cut takes what only a pending buffer had, which was not flushed; what was flushed stays readable."""
    state = directory.create(CLEAN, [], keep_lost=False)
    state.pages["meta"][[7, 8]] = int(PageFlag.LOST) | 5 << 8
    state.pages["checksum"][7] = LOST_PENDING
    state.close()
    state = directory.create(CLEAN, [(0, SIZE)], keep_lost=True)
    assert state.pages["meta"][[7, 8]].tolist() == [int(PageFlag.DISK), int(PageFlag.LOST)]
    state.close()


def test_large_tables_are_as_small_ones(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long extents are written piece by piece, beside the mapping: no page is left out, none but theirs marked."""
    monkeypatch.setattr("infiniswap.device.state.CHUNK_PAGES", 6000)
    size_bytes = 128 << 20
    header = replace(CLEAN, size_bytes=size_bytes)
    marked = [(1, 5000), (5001, 5003), (6001, 30000), (size_bytes // PAGE_BYTES - 1, size_bytes // PAGE_BYTES)]
    state = directory.create(header, [(a * PAGE_BYTES, b * PAGE_BYTES) for a, b in marked], keep_lost=False)
    expected = [page for first, last in marked for page in range(first, last)]
    assert np.flatnonzero(state.pages["meta"]).tolist() == expected
    assert set(state.pages["meta"][expected].tolist()) == {int(PageFlag.DISK)}
    assert not state.pages["checksum"].any()
    lost = [0, 5999, 6000, 20001, size_bytes // PAGE_BYTES - 1]
    state.pages["meta"][lost] = int(PageFlag.LOST)
    state.close()
    state = directory.create(header, [(0, size_bytes)], keep_lost=True)
    assert np.flatnonzero(state.pages["meta"] == int(PageFlag.LOST)).tolist() == lost
    assert np.count_nonzero(state.pages["meta"] == int(PageFlag.DISK)) == size_bytes // PAGE_BYTES - len(lost)
    state.close()


def test_an_error_of_the_old_table_is_one_line(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put in its place."""
    directory.create(CLEAN, [], keep_lost=False).close()
    before = directory.state_path.read_bytes()

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match="of what is there: Input/output error"):
        directory.create(CLEAN, [(0, SIZE)], keep_lost=True)
    assert directory.state_path.read_bytes() == before


def test_chunks_cover_all_pages(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in pieces leaves nothing out."""
    monkeypatch.setattr("infiniswap.device.state.CHUNK_PAGES", 100)
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
    assert isinstance(directory.read_header(), DamagedState)


def test_every_flipped_bit_of_the_header_is_seen(directory: StateDirectory) -> None:
    """The clean flag above all: one bit decides whether what peers hold counts."""
    directory.create(replace(CLEAN, life="life"), [], keep_lost=False).close()
    raw = directory.state_path.read_bytes()
    for bit in range((HEADER_BYTES - 4) * 8):
        flipped = bytearray(raw[:HEADER_BYTES])
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="it"):
            Header.parse(bytes(flipped), len(raw))


def test_version_1_is_read(directory: StateDirectory) -> None:
    """Without a life, and without a checksum."""
    directory.create(CLEAN, [], keep_lost=False).close()
    raw = directory.state_path.read_bytes()
    assert VERSION == 4
    old = raw[:8] + b"\x01" + raw[9:112] + bytes(HEADER_BYTES - 112)
    assert Header.parse(old, len(raw)) == replace(CLEAN, checksum_seed=b"")
    with pytest.raises(ValueError, match="damaged"):
        Header.parse(old[:12] + b"\x02" + old[13:], len(raw))
    with pytest.raises(ValueError, match="damaged"):
        Header.parse(old[:-1] + b"x", len(raw))


@pytest.mark.parametrize("sealed", [False, True])
def test_versions_without_a_seed_are_read(directory: StateDirectory, sealed: bool) -> None:
    """2, and 3 that was sealed: what they say of the backup counts. Nothing is written that looks like them."""
    directory.create(CLEAN, [], keep_lost=False).close()
    raw = directory.state_path.read_bytes()
    begin = raw[:8] + bytes([3 if sealed else 2]) + raw[9:192]
    old = begin + crc32c(begin).to_bytes(4, "little") + bytes(HEADER_BYTES - 196)
    header = Header.parse(old, len(raw))
    assert header == replace(CLEAN, sealed=sealed, checksum_seed=b"")
    with pytest.raises(ValueError, match="seed"):
        header.pack()
    with pytest.raises(ValueError, match="checksum"):
        Header.parse(old[:100] + b"x" + old[101:], len(raw))


def test_every_state_has_a_seed_of_its_own(directory: StateDirectory) -> None:
    """It is kept over a kill, new with each new state, what checksums are made with, and printed nowhere."""
    seeds = set()
    for _ in range(3):
        made = Header(Phase.IN_USE, SIZE, 1 << 20, "this-boot", "device-1")
        state = directory.create(made, [], keep_lost=False)
        checksum = state.checksum(bytes(4096))
        state.close()
        state = directory.open()
        state.set_phase(Phase.IN_USE, "another life")
        assert state.checksum(bytes(4096)) == checksum == PageChecksum(made.checksum_seed)(bytes(4096))
        state.close()
        seeds.add(made.checksum_seed)
        assert repr(made.checksum_seed) not in repr(made)
    assert len(seeds) == 3


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
    for record in (Record("id", "/b", marked=True, layout="log"), Record("id", "/b", marked=True)):
        directory.write_record(record, sync=True)
        assert directory.read_record() == record
    replace_file(directory.path / "backup.json", b'{"device_id": "id", "backup": "/b", "marked": true}')
    assert directory.read_record() == record, "of before there were logs"
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
