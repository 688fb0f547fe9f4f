"""What a file rests on is found through partitions, mappings and loops, and whether a disk gets it in the clear."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from infiniswap.kernel_shim import storage


class FakeBlocks:
    """/sys with block devices that a test makes up."""

    def __init__(self, root: Path) -> None:
        """None yet; /backup is a file."""
        self.root = root
        (root / "sys/dev/block").mkdir(parents=True)
        self.backup = root / "backup"
        self.backup.touch()
        number = self.backup.stat().st_dev
        self.number = f"{os.major(number)}:{os.minor(number)}"  # of what the backup lies on

    def add(self, name: str, number: str, *below: str, uuid: str = "", loop: str = "") -> None:
        """A device with these numbers below it; a name such as sda/sda1 is a partition's."""
        folder = self.root / "sys/devices" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dev").write_text(f"{number}\n")
        if "/" in name:
            (folder / "partition").write_text("1\n")
        for each in below:
            slave = folder / "slaves" / each.replace(":", "-")
            slave.mkdir(parents=True)
            (slave / "dev").write_text(f"{each}\n")
        if uuid:
            (folder / "dm").mkdir()
            (folder / "dm/uuid").write_text(f"{uuid}\n")
        if loop:
            (folder / "loop").mkdir()
            (folder / "loop/backing_file").write_text(f"{loop}\n")
        (self.root / "sys/dev/block" / number).symlink_to(folder)

    def is_plain(self) -> bool | None:
        """Of the backup."""
        return storage.is_plain(self.backup, self.root)


@pytest.fixture
def blocks(tmp_path: Path) -> FakeBlocks:
    """None yet."""
    return FakeBlocks(tmp_path)


def test_devices_under(blocks: FakeBlocks) -> None:
    """A file's device, the disk of its partition and what lies below a mapping are found, in spite of a circle."""
    blocks.add("nbd0", "43:0", blocks.number)
    blocks.add("nbd0/nbd0p1", "43:1")
    blocks.add("dm-0", blocks.number, "43:1")
    assert storage.devices_under(blocks.backup, blocks.root) == ("dm-0", "nbd0p1", "nbd0")
    assert blocks.is_plain() is None


@pytest.mark.parametrize("disk", ["sda", "vdb", "xvda", "nvme0n1", "mmcblk0", "pmem0"])
def test_a_disk(disk: str, blocks: FakeBlocks) -> None:
    """A file system on a disk or a partition of it."""
    blocks.add(disk, "8:0")
    blocks.add(f"{disk}/{disk}1", blocks.number)
    assert blocks.is_plain() is True


@pytest.mark.parametrize("uuid", ["CRYPT-LUKS2-3f-backup", "CRYPT-LUKS1-3f-backup", "CRYPT-PLAIN-backup"])
def test_dm_crypt(uuid: str, blocks: FakeBlocks) -> None:
    """At the top, or below a logical volume; whatever is below it."""
    blocks.add("sda", "8:0")
    blocks.add("dm-0", "253:0", "8:0", uuid=uuid)
    blocks.add("dm-1", blocks.number, "253:0", uuid="LVM-abc")
    assert blocks.is_plain() is False


@pytest.mark.parametrize("uuid", ["LVM-abc", "CRYPT-VERITY-3f-x", "CRYPT-INTEGRITY-x", ""])
def test_other_mappings(uuid: str, blocks: FakeBlocks) -> None:
    """They hide nothing, though cryptsetup's siblings begin their names alike."""
    blocks.add("sda", "8:0")
    blocks.add("dm-0", blocks.number, "8:0", uuid=uuid)
    assert blocks.is_plain() is True


@pytest.mark.parametrize(("second", "plain"), [("CRYPT-LUKS2-b", False), ("LVM-b", True)])
def test_an_array(second: str, plain: bool, blocks: FakeBlocks) -> None:
    """One leg in the clear is enough for who steals that."""
    blocks.add("sda", "8:0")
    blocks.add("sdb", "8:16")
    blocks.add("dm-0", "253:0", "8:0", uuid="CRYPT-LUKS2-a")
    blocks.add("dm-1", "253:1", "8:16", uuid=second)
    blocks.add("md0", blocks.number, "253:0", "253:1")
    assert blocks.is_plain() is plain


def test_a_loop(blocks: FakeBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file's device is what counts."""
    file = blocks.root / "image"
    file.touch()
    blocks.add("loop0", blocks.number, loop=str(file))
    monkeypatch.setattr(storage, "_number", lambda path: "8:1" if path == file else blocks.number)
    blocks.add("sda", "8:0")
    blocks.add("sda/sda1", "8:1")
    assert blocks.is_plain() is True
    assert storage.devices_under(blocks.backup, blocks.root) == ("loop0", "sda1", "sda")


@pytest.mark.parametrize("name", ["zram0", "ram0", "nbd0", "rbd0", "drbd1", "loop7"])
def test_what_nobody_knows(name: str, blocks: FakeBlocks) -> None:
    """Memory, networks, a loop without a file: nothing is said."""
    blocks.add(name, blocks.number)
    assert blocks.is_plain() is None


def test_no_block_device(blocks: FakeBlocks) -> None:
    """tmpfs, NFS, btrfs and others have a number that /sys does not; a file that is gone has none."""
    assert blocks.is_plain() is None
    assert storage.is_plain(blocks.root / "gone", blocks.root) is None


def test_a_file_system_that_encrypts(blocks: FakeBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fscrypt says so of each file (FS_ENCRYPT_FL); one that does not answer says nothing."""
    blocks.add("sda", blocks.number)
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: (0x800).to_bytes(8, "little"))
    assert blocks.is_plain() is False
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: (0x80000).to_bytes(8, "little"))
    assert blocks.is_plain() is True


def test_a_circle_ends(blocks: FakeBlocks) -> None:
    """Devices that claim to lie on each other, as no kernel has them."""
    blocks.add("dm-0", blocks.number, "253:9")
    blocks.add("dm-9", "253:9", blocks.number)
    assert blocks.is_plain() is None
