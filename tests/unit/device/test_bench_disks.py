"""The bench's disks: what is only read is not changed, what is made is gone, and what tells nothing is refused."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from infiniswap.device.bench.disks import DATA_BYTES_MIN, measure_backup, measure_disk
from infiniswap.device.bench.reading import StoppedError
from infiniswap.engine.measure import StopFlag
from infiniswap.policy.worth import Kind, Place
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.file_systems import file_system

MIB = 1 << 20
SECONDS = 0.05


def backup(path: Path) -> Place:
    """Measure it for a moment."""
    return measure_backup(path, 4 * MIB, SECONDS, StopFlag(), Random(1))


def test_a_file_is_only_read(tmp_path: Path) -> None:
    """Its bytes and its times are as before."""
    path = tmp_path / "backup.img"
    path.write_bytes(os.urandom(DATA_BYTES_MIN))
    before = (path.stat().st_mtime_ns, path.read_bytes())
    place = backup(path)
    assert (place.kind, place.name) == (Kind.BACKUP, str(path))
    assert place.one.reads_s > 0 < place.many.reads_s
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_a_file_of_holes_tells_nothing(tmp_path: Path) -> None:
    """Reads of holes are no reads of a disk; one line says what to give instead."""
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=f"reads of holes tell nothing; give its directory {tmp_path}") as caught:
        backup(path)
    assert caught.value.code == ExitCode.REFUSED


def test_a_directory_is_left_as_it_was(tmp_path: Path) -> None:
    """The file made for it has no name, so that not even a kill leaves it behind."""
    for place in (backup(tmp_path), measure_disk(tmp_path, Kind.DISK, 4 * MIB, SECONDS, StopFlag(), Random(1))):
        assert place.one.p50_us > 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there(tmp_path: Path) -> None:
    """One line, and the code for it."""
    with pytest.raises(UserError, match="none") as caught:
        backup(tmp_path / "none")
    assert caught.value.code == ExitCode.NOT_FOUND
    with pytest.raises(UserError, match=r"there is no directory .*none") as caught:
        measure_disk(tmp_path / "none", Kind.DISK, MIB, SECONDS, StopFlag(), Random(1))
    assert caught.value.code == ExitCode.NOT_FOUND


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """What is no disk at all is refused at once."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UserError, match="neither a file, a block device nor a directory"):
        backup(path)


def test_a_disk_that_is_too_full(tmp_path: Path) -> None:
    """The file is not begun where it would take more than half of what is free."""
    with pytest.raises(UserError, match="free") as caught:
        measure_disk(tmp_path, Kind.DISK, 1 << 60, SECONDS, StopFlag(), Random(1))
    assert caught.value.code == ExitCode.RESOURCES


def test_a_stop(tmp_path: Path) -> None:
    """Whoever had enough gets no figures, and nothing is left."""
    stop = StopFlag()
    stop.set()
    with pytest.raises(StoppedError):
        measure_disk(tmp_path, Kind.DISK, 4 * MIB, 60.0, stop, Random(1))
    assert list(tmp_path.iterdir()) == []


def test_memory_is_known_as_such() -> None:
    """A tmpfs takes O_DIRECT on new kernels, and is no disk for that."""
    mounts = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "23 22 0:40 / /tmp rw - tmpfs tmpfs rw\nnonsense\n"
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n"
    )
    assert file_system(os.makedev(0, 40), mounts) == "tmpfs"
    assert file_system(os.makedev(8, 1), mounts) == "ext4"
    assert file_system(os.makedev(9, 9), mounts) == ""


def test_a_tmpfs() -> None:
    """Measured all the same, and marked as telling nothing."""
    place = measure_disk(Path("/dev/shm"), Kind.DISK, 4 * MIB, SECONDS, StopFlag(), Random(1))
    assert place.cached
    assert place.way == "tmpfs: that is memory"
