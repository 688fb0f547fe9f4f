"""Making a device larger while it does not run: backup, then state; a kill at any step leaves one of both sizes.

A note in the state directory says what is being done. Until the new state file has taken the old one's place the old
size is in force, and the next start cuts the backup back to it; from then on the new one is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infiniswap.device import backup as backups
from infiniswap.device import remembered
from infiniswap.device.limits import DEVICE_BYTES_MAX, SLABS_MAX
from infiniswap.device.offline import hold_offline, stopped_in_order
from infiniswap.device.owner import MarkPlaces, sync_directory
from infiniswap.device.state import Header, StateDirectory, draw_seed
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import replace_file
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
_NOTE_NAME = "grow.json"
_NOTE_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Growth:
    """A device that grew, or is to grow. backup: with all links resolved."""

    device_id: str
    from_bytes: int
    to_bytes: int
    backup: str


def grow(
    name: str,
    size_bytes: int,
    state_dir: Path,
    runtime_dir: Path,
    *,
    sparse: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> Growth:
    """Give device name, which was stopped in order, size_bytes. sparse: do not allocate what the backup file gets.

    UserError leaves all as it was. step: told after each step, for tests that end there.
    """
    directory = StateDirectory(state_dir / name)
    with ExitStack() as held:
        hold_offline(name, runtime_dir, held)
        directory.check_owner()
        settle(directory)
        header = stopped_in_order(name, directory)
        _check_size(name, header, size_bytes)
        record = directory.read_record()
        if record is None or record.device_id != header.device_id:
            raise UserError(f"{directory.path} does not say which backup '{name}' has; start it once", ExitCode.REFUSED)
        if record.layout == "log":
            raise UserError(
                f"backup {record.backup} of '{name}' is a log, which keeps the size that it was made with: convert it "
                f"('infiniswap device convert {name} --to raw'), grow it, and convert it back (--to log)",
                ExitCode.REFUSED,
            )
        growth = Growth(header.device_id, header.size_bytes, size_bytes, record.backup)
        path = Path(record.backup)
        _check_block_device(path, size_bytes)
        image = backups.open_image(path, size_bytes if _is_block(path) else header.size_bytes, sparse=sparse)
        if image is None:
            raise UserError(f"backup {path} of '{name}' does not exist", ExitCode.NOT_FOUND)
        held.callback(image.close)
        mark = image.mark()
        if mark is None or mark.in_use or (mark.device_id, mark.life) != (header.device_id, header.life):
            raise UserError(
                f"backup {path} is not as '{name}' left it; 'infiniswap device check {name}' tells more",
                ExitCode.REFUSED,
            )
        _write_note(directory, growth)
        step("note")
        try:
            if not image.is_block_device:
                _extend(image.fileno(), path, growth, sparse=sparse)
                step("backup")
            directory.grow(replace(header, size_bytes=size_bytes, checksum_seed=draw_seed()), step)
            step("state")
            _remember(directory, size_bytes)
        except BaseException:
            image.close()  # its lock
            settle(directory)
            raise
        _remove_note(directory)
    return growth


def settle(directory: StateDirectory) -> None:
    """See to it that a grow that was interrupted is done or undone. The caller holds the device's name."""
    note = _read_note(directory)
    if note is None:
        return
    header = directory.read_header()
    ours = isinstance(header, Header) and header.device_id == note.device_id
    if isinstance(header, Header) and ours and header.size_bytes == note.from_bytes:
        _cut_back(note, header)
        log.warning("growing to %s was interrupted: undone", format_size(note.to_bytes))
    elif ours:
        _remember(directory, note.to_bytes)
    directory.remove_new()
    _remove_note(directory)


def _check_size(name: str, header: Header, size_bytes: int) -> None:
    if size_bytes <= header.size_bytes:
        what = "has that size" if size_bytes == header.size_bytes else "cannot shrink: what lies beyond would be lost"
        raise UserError(f"'{name}' has {format_size(header.size_bytes)} and {what}")
    if size_bytes % PAGE_BYTES:
        near = format_size(-(-size_bytes // PAGE_BYTES) * PAGE_BYTES)
        raise UserError(f"{size_bytes} is not a multiple of the page of {PAGE_BYTES} bytes; the next that is: {near}")
    if size_bytes > DEVICE_BYTES_MAX:
        raise UserError(f"{format_size(size_bytes)} is too large; the most is {format_size(DEVICE_BYTES_MAX)}")
    slabs = -(-size_bytes // header.slab_bytes)
    if slabs > SLABS_MAX:
        raise UserError(
            f"slabs of {format_size(header.slab_bytes)} would be {slabs}, the most is {SLABS_MAX}; start it once "
            "with a larger --slab-size, and stop it"
        )


def _is_block(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISBLK(path.stat().st_mode)
    return False


def _check_block_device(path: Path, size_bytes: int) -> None:
    """A block device cannot be extended from here, and has the size of its device."""
    if not _is_block(path):
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot open backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        found = os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
    if found < size_bytes:
        raise UserError(
            f"backup {path} has {format_size(found)}, too little for {format_size(size_bytes)}; enlarge it first "
            "(lvextend), and then the device",
            ExitCode.REFUSED,
        )
    if found > size_bytes:
        raise UserError(f"backup {path} has {found} bytes, and a device is as large as its backup: give {found}")


def _extend(fd: int, path: Path, growth: Growth, *, sparse: bool) -> None:
    try:
        if sparse:
            os.ftruncate(fd, growth.to_bytes)
        else:
            os.posix_fallocate(fd, growth.from_bytes, growth.to_bytes - growth.from_bytes)
        os.fsync(fd)
    except OSError as error:
        hint = "" if sparse else " (--sparse allocates as it is written)"
        raise UserError(
            f"backup {path} cannot grow to {format_size(growth.to_bytes)}: {error.strerror}{hint}", ExitCode.RESOURCES
        ) from None


def _cut_back(note: Growth, header: Header) -> None:
    """The backup to its old size, if it is a file that nobody has used since."""
    path = Path(note.backup)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        log.warning("backup %s stays as it is: %s", path, error.strerror)
        return
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not note.from_bytes < status.st_size <= note.to_bytes:
            return
        mark = MarkPlaces(path, fd, None).read()
        if mark is None or mark.in_use or (mark.device_id, mark.life) != (header.device_id, header.life):
            log.warning("backup %s stays as it is: it was used since", path)
            return
        os.ftruncate(fd, note.from_bytes)
        os.fsync(fd)
    except OSError as error:
        raise UserError(f"cannot cut backup {path} back: {error.strerror}", ExitCode.RESOURCES) from None
    finally:
        os.close(fd)


def _remember(directory: StateDirectory, size_bytes: int) -> None:
    """So that its name alone starts the device again. A size in a file is its user's to change."""
    known = remembered.read(directory.path)
    if known is None or "size" not in known.given:
        return
    try:
        replace(known, given={**known.given, "size": size_bytes}).write(directory.path)
    except OSError as error:
        log.warning("the size cannot be remembered for the next start: %s", error.strerror)


def _note_path(directory: StateDirectory) -> Path:
    return directory.path / _NOTE_NAME


def _read_note(directory: StateDirectory) -> Growth | None:
    """None without one; one that cannot be read says nothing, for it is written before anything is done."""
    try:
        with _note_path(directory).open("rb") as stream:
            found = json.loads(stream.read(_NOTE_BYTES_MAX))
        note = Growth(str(found["device_id"]), found["from_bytes"], found["to_bytes"], str(found["backup"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        _remove_note(directory)
        return None
    whole = type(note.from_bytes) is int and type(note.to_bytes) is int and 0 < note.from_bytes < note.to_bytes
    return note if whole else None


def _write_note(directory: StateDirectory, growth: Growth) -> None:
    path = _note_path(directory)
    try:
        replace_file(path, json.dumps(asdict(growth)).encode(), sync=True)
        sync_directory(path.parent)
    except OSError as error:
        raise UserError(f"cannot write in {path.parent}: {error.strerror}", ExitCode.RESOURCES) from None


def _remove_note(directory: StateDirectory) -> None:
    with contextlib.suppress(FileNotFoundError):
        _note_path(directory).unlink()
        sync_directory(directory.path)
