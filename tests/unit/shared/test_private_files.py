"""What another user planted is neither used nor overwritten: links, folders, files, locks; each is one clear line."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import (
    RUNTIME_FOLDER,
    LockedError,
    check_folder,
    create_new,
    open_folder,
    open_own,
    replace_file,
    take_lock,
)

SOMEBODY = 12345

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files another user's")


def check(path: Path) -> None:
    """As a start does."""
    check_folder(path, *RUNTIME_FOLDER)


def refused(path: Path, words: str) -> None:
    """One line that names the folder."""
    with pytest.raises(UserError, match=words) as caught:
        check(path)
    assert caught.value.code is ExitCode.REFUSED
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_folders_will_do(tmp_path: Path) -> None:
    """Also through a link of one's own, also those that are still to be made, also one like /tmp."""
    folder = tmp_path / "run"
    check(folder)
    folder.mkdir()
    check(folder)
    (tmp_path / "link").symlink_to(folder)
    check(tmp_path / "link")
    folder.chmod(0o1777)
    check(folder)


def test_folders_that_everybody_may_write(tmp_path: Path) -> None:
    """What is in them may be anybody's at any moment."""
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    refused(folder, "written by everybody")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "not a directory")


@as_root
def test_folders_of_another_user(tmp_path: Path) -> None:
    """His own, and ours by a link of his, wherever in the path it stands."""
    his, ours = tmp_path / "his", tmp_path / "ours"
    his.mkdir()
    os.chown(his, SOMEBODY, -1)
    refused(his, "belongs to another user")
    (ours / "run").mkdir(parents=True)
    check(ours / "run")
    link = tmp_path / "link"
    link.symlink_to(ours)
    os.chown(link, SOMEBODY, -1, follow_symlinks=False)
    refused(link, "another user's link")
    refused(link / "run", "another user's link")


@pytest.mark.parametrize("planted", ["link", "dangling link", "file", "hard link"])
def test_replacing_never_writes_through_what_was_planted(tmp_path: Path, planted: str) -> None:
    """A name that we are about to use leads elsewhere: what lies there stays as it is, and our file is a new one."""
    precious, target = tmp_path / "precious", tmp_path / "state.json"
    precious.write_text("precious")
    new = tmp_path / "state.json.new"
    if planted == "link":
        new.symlink_to(precious)
    elif planted == "dangling link":
        new.symlink_to(tmp_path / "made by us")
    elif planted == "hard link":
        new.hardlink_to(precious)
    else:
        new.write_text("old")
        new.chmod(0o666)
    replace_file(target, b"ours")
    assert (target.read_bytes(), precious.read_text()) == (b"ours", "precious")
    assert target.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "state.json"}


def test_new_files_are_new(tmp_path: Path) -> None:
    """The name was removed, not opened."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "new").symlink_to(tmp_path / "precious")
    folder = open_folder(tmp_path)
    fd = create_new("new", folder, write_only=False)
    os.write(fd, b"x")
    os.close(fd)
    os.close(folder)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "new").is_symlink()


def test_links_are_not_opened(tmp_path: Path) -> None:
    """Nor things that are no files, which may hang."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "fifo")
    for name, words in (("link", "is a link"), ("fifo", "is not a file")):
        with pytest.raises(UserError, match=words):
            open_own(tmp_path / name, os.O_RDWR | os.O_CREAT)
    with pytest.raises(FileNotFoundError):
        open_own(tmp_path / "none", os.O_RDWR)


@as_root
def test_files_of_another_user_are_not_opened(tmp_path: Path) -> None:
    """He could hold a lock on it for ever."""
    (tmp_path / "lock").write_text("")
    os.chown(tmp_path / "lock", SOMEBODY, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        take_lock(tmp_path / "lock")


def test_a_lock_is_taken_once(tmp_path: Path) -> None:
    """Until it is let go; a lock on the folder is nothing to it."""
    folder = open_folder(tmp_path)
    fcntl.flock(folder, fcntl.LOCK_EX)
    fd = take_lock(tmp_path / "lock")
    with pytest.raises(LockedError):
        take_lock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    os.close(fd)
    os.close(take_lock(tmp_path / "lock"))
    os.close(folder)
