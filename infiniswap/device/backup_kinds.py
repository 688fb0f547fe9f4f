"""Which kind a backup is: told by its mark and its content, and compared with what was asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from infiniswap.device.backup import Backup, check_can_create, create_image, open_locked, take_image, unusable
from infiniswap.device.backup_log import LOG_SPACE_PERCENT, check_can_create_log, create_log, take_log
from infiniswap.device.owner import Mark, MarkPlaces
from infiniswap.engine.log_binding import holds_log
from infiniswap.shared.errors import ExitCode, UserError

_CALLED = {"raw": "a raw image", "log": "a log"}


def open_backup(
    path: Path,
    size_bytes: int,
    layout: str,
    *,
    name: str,
    sparse: bool,
    accept: bool = False,
    log_space_percent: int = LOG_SPACE_PERCENT,
) -> Backup | None:
    """A backup that exists, checked and locked, nothing about it changed; None: there is none, and one can be made.

    name: of the device, for what is said. accept: whatever its mark says. UserError when it may not be used, or is of
    the other layout.
    """
    fd = open_locked(path)
    if fd is None:
        if layout == "log":
            check_can_create_log(path, size_bytes, sparse=sparse, space_percent=log_space_percent)
        else:
            check_can_create(path, size_bytes, sparse=sparse)
        return None
    try:
        mark = _check_layout(path, fd, layout, name, accept=accept)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):  # /proc/version, for one: a regular file to stat(2) alone
            raise unusable(path, error) from None
        raise
    if layout == "log":
        return take_log(path, fd, size_bytes, sparse=sparse, may_be_blank=mark is None or accept)
    return take_image(path, fd, size_bytes, sparse=sparse)


def create_backup(
    path: Path, size_bytes: int, layout: str, *, sparse: bool, log_space_percent: int = LOG_SPACE_PERCENT
) -> Backup:
    """A new one, empty; to be taken up. UserError leaves none behind."""
    if layout == "log":
        return create_log(path, size_bytes, sparse=sparse, space_percent=log_space_percent)
    return create_image(path, size_bytes, sparse=sparse)


def found_layout(fd: int, mark: Mark | None) -> str | None:
    """How the backup in fd is kept; None: nothing says so, and it may be a raw image. OSError.

    A raw image may hold a log as its device's data: then its mark counts.
    """
    if mark is not None:
        return mark.layout
    return "log" if holds_log(fd) else None


def _check_layout(path: Path, fd: int, layout: str, name: str, *, accept: bool) -> Mark | None:
    """UserError when it is of the other layout; else its mark, where that can be told."""
    status = os.fstat(fd)
    try:
        mark = MarkPlaces(path, fd, status.st_rdev if stat.S_ISBLK(status.st_mode) else None).read()
    except UserError:
        if not accept:
            raise
        mark = None  # whatever it was, it does not count
    found = found_layout(fd, mark)
    if found is None or found == layout or (mark is None and accept):
        return mark
    raise UserError(
        f"backup {path} is {_CALLED[found]}, and --backup-layout is {layout}; give --backup-layout {found}, or make "
        f"{_CALLED[layout]} of it with 'infiniswap device convert {name} --to {layout}'",
        ExitCode.REFUSED,
    )
