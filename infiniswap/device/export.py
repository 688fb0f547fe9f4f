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
from infiniswap.device.export_lost import backup_of, check_list, forget_list
from infiniswap.device.offline import hold_offline, own_backup, stopped_in_order
from infiniswap.device.owner import sync_directory
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
        if isinstance(to, Path):
            check_list(to, needed=damaged or len(lost) > 0, force=force)
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
                if error.errno == errno.EPIPE:  # of a list a reader may have seen enough, of an image never
                    raise UserError("the image is not whole: who read it has gone", ExitCode.FAILED) from None
                raise UserError(f"the image cannot be written: {error.strerror}", ExitCode.RESOURCES) from None
        return np.union1d(lost, forgiving.unreadable)


def _check_target(to: Path, *, force: bool) -> None:
    if to.exists() and not to.is_file():
        raise UserError(f"{to} is not a file; give - and redirect the output to write there", ExitCode.REFUSED)
    if (to.exists() or to.is_symlink()) and not force:
        raise UserError(f"{to} exists; give --force to put the image in its place", ExitCode.REFUSED)
    if not to.parent.is_dir():
        raise UserError(f"directory {to.parent} does not exist; create it first", ExitCode.NOT_FOUND)
    if to.is_file() and (whose := backup_of(to)) is not None:
        raise UserError(
            f"{to} is a backup ({whose}), and an image in its place would end that; name another file", ExitCode.REFUSED
        )


def _lost_pages(directory: StateDirectory) -> NDArray[np.int64]:
    state = directory.open()
    try:
        found = [np.flatnonzero(state.pages["meta"][part] & int(PageFlag.LOST)) + part.start for part in state.chunks()]
    finally:
        state.close()
    return np.concatenate(found).astype(np.int64)


def _write_file(source: Source, to: Path, show: Show, *, force: bool) -> None:
    made = to.with_name(f"{to.name}.export-{secrets.token_hex(4)}")
    image = None
    try:
        image = create_image(made, source.size_bytes, sparse=True, called=f"image {to}")
        total = data_bytes(source)
        target = RawContent(image.fileno(), source.size_bytes)
        copy(source, target, show("writing", total))
        compare(source, target, show("reading back", total))
        if force:
            forget_list(to)
            made.rename(to)
        else:
            os.link(made, to)
        sync_directory(to.parent)
    except OSError as error:
        what = "has just been created by someone else" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{to}: {what}", ExitCode.RESOURCES) from None
    finally:
        made.unlink(missing_ok=True)
        if image is not None:
            image.close()
