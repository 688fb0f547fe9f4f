"""Pages that a conversion could not read: they are lost from when the new backup counts, and not before.

The old backup may be read again until then, should the conversion end early. So which they are lies in a file beside
the note, and comes into the state file behind the record; whoever settles what was interrupted does that, too.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.owner import sync_directory
from infiniswap.device.state import StateDirectory
from infiniswap.engine.binding import PageFlag
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import replace_file

_NAME = "convert.lost"
_LOST = np.uint32(int(PageFlag.LOST))


def note_lost(directory: StateDirectory, pages: NDArray[np.int64]) -> int:
    """Keep which they are. Returns how many of them could be read until now. UserError."""
    try:
        replace_file(directory.path / _NAME, pages.astype("<i8").tobytes(), sync=True)
        sync_directory(directory.path)
    except OSError as error:
        raise UserError(f"the pages that are lost cannot be noted: {error.strerror}", ExitCode.RESOURCES) from None
    state = directory.open()
    try:
        return int(np.count_nonzero(state.pages["meta"][pages] & _LOST == 0))
    finally:
        state.close()


def mark_lost(directory: StateDirectory) -> None:
    """The new backup counts: they cannot be read until they are written again. As often as need be. UserError."""
    try:
        found = (directory.path / _NAME).read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"which pages are lost cannot be read: {error.strerror}", ExitCode.RESOURCES) from None
    pages = np.frombuffer(found, "<i8")
    state = directory.open()
    try:
        pages = pages[(pages >= 0) & (pages < len(state.pages))]
        state.pages["meta"][pages] = _LOST
        state.pages["checksum"][pages] = 0
        state.mapping.flush()
        os.fsync(state.fileno())
    except OSError as error:
        raise UserError(f"the pages that are lost cannot be noted: {error.strerror}", ExitCode.RESOURCES) from None
    finally:
        state.close()


def forget_lost(directory: StateDirectory) -> None:
    """They are marked, or the old backup counts."""
    path = directory.path / _NAME
    if path.exists():  # unlink() would tell of a folder that cannot be written in first
        path.unlink()
