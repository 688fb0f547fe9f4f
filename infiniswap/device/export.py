"""A raw image of a device that does not run, whichever way its backup is kept."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.backup import create_image
from infiniswap.device.content import (
    PAGE_BYTES,
    Progress,
    RawContent,
    Source,
    WithoutLost,
    WithoutUnreadable,
    compare,
    content_of,
    copy,
    data_bytes,
    write_out,
)
from infiniswap.device.convert import settle
from infiniswap.device.offline import hold_offline, own_backup, stopped_in_order
from infiniswap.device.owner import MarkPlaces, sync_directory
from infiniswap.device.state import StateDirectory
from infiniswap.engine.binding import PageFlag
from infiniswap.shared.errors import ExitCode, UserError

Show = Callable[[str, int], Progress]


def export(
    name: str, state_dir: Path, runtime_dir: Path, to: Path | int, *, force: bool, show: Show, damaged: bool = False
) -> NDArray[np.int64]:
    """Write the content of device name, which was stopped in order, to a new file, or in order into a descriptor.

    Returns which pages are lost: they are zeroes there. force: in place of a file that is there. The file is sparse,
    read back, and gets its name last. damaged: also what cannot be read is lost. show: told what begins and how many
    bytes it has. UserError.
    """
    directory = StateDirectory(state_dir / name)
    with ExitStack() as held:
        hold_offline(name, runtime_dir, held)
        settle(directory)
        header = stopped_in_order(name, directory)
        if isinstance(to, Path):
            _check_target(to, force=force)
        lost = _lost_pages(directory)
        backup, _ = own_backup(name, directory, header)
        held.callback(backup.close)
        content = content_of(backup, damaged=damaged)
        held.callback(content.close)
        forgiving = WithoutUnreadable(content)
        source: Source = forgiving if damaged else content
        source = WithoutLost(source, lost) if len(lost) else source
        if isinstance(to, Path):
            _write_file(source, to, show, force=force)
        else:
            try:
                write_out(source, to, show("writing", source.size_bytes))
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise
                raise UserError(f"the image cannot be written: {error.strerror}", ExitCode.RESOURCES) from None
        return np.union1d(lost, forgiving.unreadable)


def write_list(image: Path, lost: NDArray[np.int64]) -> Path:
    """Where the image has zeroes for lost pages: a line of offset and length for each run, beside it. UserError."""
    breaks = np.flatnonzero(np.diff(lost) != 1) + 1
    runs = [(int(run[0]), len(run)) for run in np.split(lost, breaks)]
    path = image.with_name(f"{image.name}.lost")
    try:
        path.write_text("".join(f"{first * PAGE_BYTES} {count * PAGE_BYTES}\n" for first, count in runs))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", ExitCode.RESOURCES) from None
    return path


def _check_target(to: Path, *, force: bool) -> None:
    if to.exists() and not to.is_file():
        raise UserError(f"{to} is not a file; give - and redirect the output to write there", ExitCode.REFUSED)
    if (to.exists() or to.is_symlink()) and not force:
        raise UserError(f"{to} exists; give --force to put the image in its place", ExitCode.REFUSED)
    if not to.parent.is_dir():
        raise UserError(f"directory {to.parent} does not exist; create it first", ExitCode.NOT_FOUND)
    if to.is_file() and (whose := _backup_of(to)) is not None:
        raise UserError(
            f"{to} is a backup ({whose}), and an image in its place would end that; name another file", ExitCode.REFUSED
        )


def _backup_of(path: Path) -> str | None:
    """Whose backup the file is, this device's own included; None: nobody's."""
    try:
        with path.open("rb") as stream:
            mark = MarkPlaces(path, stream.fileno(), None).read()
    except OSError:
        return None  # not even to be read: in use by no device of ours
    except UserError:
        return "its owner's mark cannot be understood"
    return None if mark is None else mark.describe()


def _lost_pages(directory: StateDirectory) -> NDArray[np.int64]:
    state = directory.open()
    try:
        found = [np.flatnonzero(state.pages["meta"][part] & int(PageFlag.LOST)) + part.start for part in state.chunks()]
    finally:
        state.close()
    return np.concatenate(found).astype(np.int64)


def _write_file(source: Source, to: Path, show: Show, *, force: bool) -> None:
    made = to.with_name(f"{to.name}.export-{secrets.token_hex(4)}")
    image = create_image(made, source.size_bytes, sparse=True)
    try:
        total = data_bytes(source)
        target = RawContent(image.fileno(), source.size_bytes)
        copy(source, target, show("writing", total))
        compare(source, target, show("reading back", total))
        if force:
            made.rename(to)
        else:
            os.link(made, to)
        sync_directory(to.parent)
    except OSError as error:
        what = "has just been created by someone else" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{to}: {what}", ExitCode.RESOURCES) from None
    finally:
        made.unlink(missing_ok=True)
        image.close()
