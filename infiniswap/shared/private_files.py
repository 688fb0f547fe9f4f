"""Folders and files that nobody else may have a hand in: whose they are is looked at, and what was planted is not used.

A folder that another user owns or may write in, or that is reached by a link of his, could hand our sockets to him, or
have us overwrite a file that he could not write himself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError

# How check_folder() calls them, and what to do about one that will not do.
RUNTIME_FOLDER = ("runtime directory", "give --runtime-dir or set INFINISWAP_RUNTIME_DIR")
STATE_FOLDER = ("state directory", "give --state-dir or set INFINISWAP_STATE_DIR")
_LOCK_TRIES_MAX = 10
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class LockedError(Exception):
    """Another process has the lock."""


def check_folder(path: Path, what: str, remedy: str) -> None:
    """UserError REFUSED unless path is a folder of this user's or of root's; nothing to check when it is not there.

    what, remedy: how it is called, and what to do about it. In a folder like /tmp, where everybody may write and only
    owners remove, each file's owner is looked at when it is opened (open_own).
    """
    _check_links(path, what, remedy)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}", ExitCode.RESOURCES) from None
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{what} {path} is not a directory", ExitCode.REFUSED)
    if not _is_ours(status):
        raise UserError(f"{what} {path} belongs to another user; {remedy}", ExitCode.REFUSED)
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise UserError(f"{what} {path} can be written by everybody; chmod o-w it, or {remedy}", ExitCode.REFUSED)


def _check_links(path: Path, what: str, remedy: str) -> None:
    """No part of path may be a link that another user made."""
    for part in (*reversed(path.parents), path):
        try:
            status = part.lstat()
        except OSError:
            return
        if stat.S_ISLNK(status.st_mode) and not _is_ours(status):
            link = "" if part == path else f": {part}"
            raise UserError(f"{what} {path} is reached by another user's link{link}; {remedy}", ExitCode.REFUSED)


def check_kept(path: Path) -> None:
    """UserError REFUSED where path, whose content must not be lost, is another user's; nothing to check without it."""
    try:
        status = path.lstat()
    except OSError:
        return  # whoever opens it says what is wrong
    if not _is_ours(status):
        raise UserError(_not_ours(path, status), ExitCode.REFUSED)


def _not_ours(path: Path | str, status: os.stat_result) -> str:
    """Whose path is, and how it becomes this user's."""
    owner, us = (_user(uid) for uid in (status.st_uid, os.geteuid()))
    return f"{path} belongs to another user, {owner}: run this as {owner}, or give it to {us} with 'chown {us} {path}'"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def open_own(path: Path | str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None, keep: bool = False) -> int:
    """Open a file, never through a link at its end. UserError REFUSED: it is no file, or another user's. OSError.

    keep: its content must not be lost, so nobody is told to remove it.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=dir_fd)
    except OSError as error:
        if Path(path).is_symlink():
            raise UserError(f"{path} is a link; remove it", ExitCode.REFUSED) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
        os.close(fd)
        if keep and stat.S_ISREG(status.st_mode):
            raise UserError(_not_ours(path, status), ExitCode.REFUSED)
        reason = "belongs to another user" if stat.S_ISREG(status.st_mode) else "is not a file"
        raise UserError(f"{path} {reason}; remove it", ExitCode.REFUSED)
    return fd


def take_lock(path: Path) -> int:
    """A descriptor that holds the lock on path, which is made where it is missing; only this user can take it.

    Whoever has it may remove the file before closing the descriptor. LockedError, UserError, OSError.
    """
    for _ in range(_LOCK_TRIES_MAX):
        fd = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.lstat()):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(fd)
            raise LockedError from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the former holder removed the file between our open and our lock
    raise UserError(f"{path} keeps changing under us; try again", ExitCode.IN_USE)


def create_new(name: Path | str, folder_fd: int | None = None, *, write_only: bool = True, mode: int = 0o600) -> int:
    """A file that was not there before: what was left or planted is removed, not opened. OSError.

    name: in the folder with that descriptor; None: a path.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder_fd)
    access = os.O_WRONLY if write_only else os.O_RDWR
    flags = access | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(name, flags, mode, dir_fd=folder_fd)


def open_folder(path: Path) -> int:
    """A descriptor of a folder, so that what follows happens in this one whatever becomes of its name. OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def replace_file(
    path: Path, content: bytes | bytearray, *, sync: bool = False, mode: int = 0o600, group: int = -1
) -> None:
    """Put content in place of path in one step, with these permissions. sync: on the disk before that. OSError.

    group: that it is to belong to; -1: this process's.
    """
    new = path.name + ".new"
    folder = open_folder(path.parent)
    try:
        fd = create_new(new, folder, mode=mode)
        try:
            try:
                if group >= 0:  # the units of devices allow no such call
                    os.fchown(fd, -1, group)
                os.fchmod(fd, mode)  # whatever the umask leaves of it
                view = memoryview(content)
                while view:
                    view = view[os.write(fd, view) :]
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(new, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new, dir_fd=folder)
            raise
    finally:
        os.close(folder)
