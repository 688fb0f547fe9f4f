"""The root key: whose file it may be in, and where a device may keep one by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infiniswap.device.root_key import KEY_BYTES, draw_key, is_in_memory, read_key_file, wipe
from infiniswap.shared.errors import UserError
from infiniswap.shared.private_files import replace_file

KEY = bytes(range(KEY_BYTES))


def file_of(folder: Path, content: bytes = KEY, mode: int = 0o600) -> Path:
    """A key file."""
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """32 bytes for the owner alone, also through a link, as secrets are mounted."""
    path = file_of(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_key_file(path) == read_key_file(link) == KEY


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (KEY, 0o640, "by others: chmod 600"),
        (KEY, 0o604, "by others: chmod 600"),
        (KEY, 0o620, "by others: chmod 600"),
        (KEY[:-1], 0o600, "has 31 bytes; a key has 32"),
        (KEY + b"\n", 0o600, "has 33 bytes; a key has 32"),
        (b"", 0o600, "has 0 bytes"),
    ],
)
def test_others_are_refused(tmp_path: Path, content: bytes, mode: int, why: str) -> None:
    """One line says what is wrong with the file."""
    with pytest.raises(UserError, match=why) as refused:
        read_key_file(file_of(tmp_path, content, mode))
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Nothing there, a folder, and a pipe that nobody writes to: told at once."""
    with pytest.raises(UserError, match="does not exist; make one with"):
        read_key_file(tmp_path / "none")
    with pytest.raises(UserError, match="no regular file"):
        read_key_file(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UserError, match="no regular file"):
        read_key_file(tmp_path / "pipe")


def test_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another user can exchange is no secret of ours."""
    path = file_of(tmp_path)
    if path.stat().st_uid == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        read_key_file(path)


def test_written_for_the_owner_alone(tmp_path: Path) -> None:
    """What the device keeps nobody else reads, and a planted link is not followed."""
    victim, path = tmp_path / "victim", tmp_path / "key"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    replace_file(path, bytearray(KEY))
    assert victim.read_bytes() == b"precious"
    assert read_key_file(path) == KEY
    assert path.stat().st_mode & 0o777 == 0o600


def test_each_key_is_another() -> None:
    """Keys are drawn, and wiped."""
    one, other = draw_key(), draw_key()
    assert one != other
    assert len(one) == KEY_BYTES
    wipe(one)
    assert one == bytes(KEY_BYTES)


@pytest.mark.parametrize(
    ("kind", "memory"), [("tmpfs", True), ("ramfs", True), ("ext4", False), ("overlay", False), (None, False)]
)
def test_only_memory_keeps_a_key(tmp_path: Path, kind: str | None, memory: bool) -> None:
    """A disk, and a file system that nobody knows, keep none."""
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = ["20 1 254:9999 / / rw - tmpfs none rw\n"]
    if kind is not None:
        lines.append(f"21 20 {number} / /x rw,nosuid shared:7 - {kind} none rw,size=1\n")
    mounts = tmp_path / "mountinfo"
    mounts.write_text("".join(lines))
    assert is_in_memory(tmp_path, mounts) is memory
    assert not is_in_memory(tmp_path / "none", mounts)
