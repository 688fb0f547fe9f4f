"""Files that are kept open show what is in them now, and whether they are there, as if they were opened each time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from infiniswap.daemon import host_files
from infiniswap.daemon.host_files import HostFiles


@pytest.mark.parametrize("keep_open", [True, False])
def test_what_is_in_them_now(tmp_path: Path, keep_open: bool) -> None:
    """Each reading is a new one from the beginning, also of less than before."""
    files = HostFiles(keep_open=keep_open)
    file = tmp_path / "figures"
    for content in ("first", "a second, longer one", "3"):
        file.write_text(content)
        assert files.text(file) == content
    files.close()


@pytest.mark.parametrize(("pieces", "found"), [(1, "0123"), (2, "01234567"), (3, "0123456789"), (64, "0123456789")])
def test_a_long_file_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, found: str) -> None:
    """To its end where that is asked for, and no further than was allowed."""
    monkeypatch.setattr(host_files, "FILE_BYTES_MAX", 4)
    files = HostFiles(keep_open=True)
    (tmp_path / "long").write_text("0123456789")
    for _ in range(2):
        assert files.text(tmp_path / "long", pieces=pieces) == found
    files.close()


def test_what_is_missing_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each time, but it is found."""
    monkeypatch.setattr(host_files, "MISSING_READS", 3)
    files = HostFiles(keep_open=True)
    file = tmp_path / "later"
    assert files.text(file) is None
    file.write_text("here")
    assert [files.text(file) for _ in range(4)] == [None, None, "here", "here"]
    files.close()


def test_no_more_are_kept_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are opened each time."""
    monkeypatch.setattr(host_files, "FILES_MAX", 1)
    files = HostFiles(keep_open=True)
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    assert [files.text(tmp_path / name) for name in ("one", "two", "one", "two")] == ["one", "two", "one", "two"]
    assert len(files._fds) == 1
    files.close()


def test_a_file_that_goes_bad_is_let_go(tmp_path: Path) -> None:
    """As that of a control group that was removed."""
    files = HostFiles(keep_open=True)
    (tmp_path / "group").write_text("x")
    assert files.text(tmp_path / "group") == "x"
    folder = os.open(tmp_path, os.O_RDONLY)  # which cannot be read
    os.dup2(folder, files._fds[tmp_path / "group"])
    os.close(folder)
    assert files.text(tmp_path / "group") is None
    assert files._fds == {}
    files.close()


def test_no_descriptor_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no answer: who asks is told."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "open", refuse)
    files = HostFiles(keep_open=True)
    with pytest.raises(OSError, match="too many open files"):
        files.text(tmp_path / "any")
