"""The root key of sealed pages: read from the user's file, drawn anew, kept where only memory keeps it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.file_systems import MEMORY_FILE_SYSTEMS, file_system

KEY_BYTES = 32


def draw_key() -> bytearray:
    """A new key from the kernel's generator (random(4)); a bytearray, so that it can be wiped."""
    key = bytearray(KEY_BYTES)
    with Path("/dev/urandom").open("rb", buffering=0) as source:
        if source.readinto(key) != KEY_BYTES:
            raise OSError(errno.EIO, "no random numbers")
    return key


def read_key_file(path: Path, *, kept: bool = False) -> bytearray:
    """The key in a file of the user's; UserError unless it is a regular file of KEY_BYTES for him alone.

    kept: it is the one that a device keeps by itself.
    """
    what = f"the key that sealed pages need, {path}," if kept else f"--encrypt-key-file {path}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        hint = "" if kept else f"; make one with: (umask 077; head -c {KEY_BYTES} /dev/urandom > {path})"
        raise UserError(f"{what} does not exist{hint}", ExitCode.NOT_FOUND) from None
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{what} is no regular file", ExitCode.REFUSED)
        if status.st_uid not in (0, os.geteuid()):
            raise UserError(f"{what} belongs to another user", ExitCode.REFUSED)
        if status.st_mode & 0o077:
            raise UserError(f"{what} can be read or changed by others: chmod 600 {path}", ExitCode.REFUSED)
        if status.st_size != KEY_BYTES:
            raise UserError(f"{what} has {status.st_size} bytes; a key has {KEY_BYTES}", ExitCode.REFUSED)
        key = bytearray(KEY_BYTES)
        if os.readv(fd, [key]) != KEY_BYTES:
            raise UserError(f"{what} has just changed; start again", ExitCode.REFUSED)
        return key
    finally:
        os.close(fd)


def is_in_memory(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether path lies on a file system that is only in memory. False in doubt."""
    try:
        return file_system(path.stat().st_dev, mounts.read_text(errors="replace")) in MEMORY_FILE_SYSTEMS
    except OSError:
        return False


def wipe(key: bytearray) -> None:
    """Overwrite a key that is not needed any more."""
    key[:] = bytes(len(key))
