"""FILE.lost, beside an image: where that has zeroes for pages that are lost, a line of offset and length for each run.

What else has that name is as safe as what has the image's: nothing that is not such a list is taken away for one.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.content import PAGE_BYTES
from infiniswap.device.owner import MarkPlaces, sync_directory
from infiniswap.shared.errors import ExitCode, UserError

_LINE = re.compile(rb"(\d{1,20}) (\d{1,20})\n")
_LINE_BYTES_MAX = 64
_RUNS_SAID_MAX = 16  # in an error's line


def _list_of(image: Path) -> Path:
    return image.with_name(f"{image.name}.lost")


def check_list(image: Path, *, needed: bool, force: bool) -> None:
    """UserError where the image's list cannot be put in place. needed: there may be one; else what is there may stay.

    force: in place of a list that is there.
    """
    path = _list_of(image)
    ours = _is_list(path)
    if not os.path.lexists(path) or not (needed or ours):
        return
    if not ours:
        whose = backup_of(path) if path.is_file() else None
        what = "is no such list" if whose is None else f"is a backup ({whose})"
        raise UserError(
            f"{path}, where a list of lost pages would go, {what}; move it away, or name another file than {image}",
            ExitCode.REFUSED,
        )
    if not force:
        raise UserError(
            f"{path} exists, a list of pages that an image lacks; give --force to put another in its place",
            ExitCode.REFUSED,
        )


def forget_list(image: Path) -> None:
    """What it says is not so of an image that comes now. OSError."""
    if _is_list(_list_of(image)):
        _list_of(image).unlink()


def write_list(image: Path, lost: NDArray[np.int64]) -> Path:
    """Say where the image, which is in its place, has zeroes for lost pages. UserError, which then says so."""
    breaks = np.flatnonzero(np.diff(lost) != 1) + 1
    runs = [(int(run[0]) * PAGE_BYTES, len(run) * PAGE_BYTES) for run in np.split(lost, breaks)]
    path = _list_of(image)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as stream:
                stream.writelines(f"{offset} {length}\n" for offset, length in runs)
                stream.flush()
                os.fsync(fd)
            sync_directory(path.parent)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        more = f" and {len(runs) - _RUNS_SAID_MAX} more" if len(runs) > _RUNS_SAID_MAX else ""
        where = ", ".join(f"{offset}+{length}" for offset, length in runs[:_RUNS_SAID_MAX])
        raise UserError(
            f"{image} has zeroes for {len(lost)} lost pages, and {path}, which would say where, cannot be written: "
            f"{error.strerror}; they are at {where}{more} (offset+length)",
            ExitCode.RESOURCES,
        ) from None
    return path


def backup_of(path: Path) -> str | None:
    """Whose backup the file is, this device's own included; None: nobody's."""
    try:
        with path.open("rb") as stream:
            mark = MarkPlaces(path, stream.fileno(), None).read()
    except OSError:
        return None  # not even to be read: in use by no device of ours
    except UserError:
        return "its owner's mark cannot be understood"
    return None if mark is None else mark.describe()


def _is_list(path: Path) -> bool:
    """Whether path is what write_list() writes, and nothing else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return False
    end = -1
    with os.fdopen(fd, "rb") as stream:
        while line := stream.readline(_LINE_BYTES_MAX):
            found = _LINE.fullmatch(line)
            offset, length = (0, 0) if found is None else (int(found[1]), int(found[2]))
            if not length or offset % PAGE_BYTES or length % PAGE_BYTES or offset <= end:
                return False
            end = offset + length
    return end > 0
