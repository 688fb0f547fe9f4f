"""Keeping a device's backup another way while it does not run: a whole copy first, then the record says so.

A note in the state directory says what is being done. Until the record names the new backup, or the new one has taken
the old one's name, the old one counts, and the next start removes what there is of the new; from then on the new one
does, and the next start says the rest of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infiniswap.device import remembered
from infiniswap.device.backup import Backup
from infiniswap.device.backup_kinds import create_backup, open_backup
from infiniswap.device.backup_log import LOG_SPACE_PERCENT
from infiniswap.device.content import (
    Progress,
    Source,
    WithoutUnreadable,
    compare,
    content_of,
    content_to_fill,
    copy,
    data_bytes,
)
from infiniswap.device.convert_lost import forget_lost, mark_lost, note_lost
from infiniswap.device.convert_shards import common_backup, remember_whole
from infiniswap.device.grow import settle as settle_growth
from infiniswap.device.offline import hold_offline, own_backup, stopped_in_order
from infiniswap.device.option_values import BACKUP_LOG_SPACE
from infiniswap.device.owner import Mark, MarkPlaces, sync_directory
from infiniswap.device.state import Header, Record, StateDirectory
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import replace_file
from infiniswap.shared.shard_names import is_shard, number_of, shard_name, whole_of

log = logging.getLogger(__name__)

_NOTE_NAME = "convert.json"
_NOTE_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Conversion:
    """A backup that is kept another way, or is to be. Paths with all links resolved, but for named.

    old_file: device and inode of the old backup. made: the file that the copy is written to, "" for a block device.
    named: the new backup as its user calls it, which may be a link to what is called otherwise after the next boot.
    """

    device_id: str
    old: str
    old_file: tuple[int, int]
    new: str
    made: str
    to: str
    named: str
    lost: int = 0  # pages of it, where some could not be read

    @property
    def in_place(self) -> bool:
        """The new backup takes the old one's name."""
        return self.new == self.old


def convert(
    name: str,
    to: str,
    state_dir: Path,
    runtime_dir: Path,
    *,
    backup: Path | None = None,
    sparse: bool = False,
    damaged: bool = False,
    progress: Callable[[str, int], Progress] = lambda _what, _bytes: lambda _: None,
    step: Callable[[str], None] = lambda _: None,
) -> Conversion:
    """Keep the backup of device name, which was stopped in order, as `to`. backup: where; None: in the old one's place.

    damaged: pages that cannot be read are lost from when the copy is whole on, and a log may be damaged.
    UserError leaves all as it was. progress: told what begins and how many bytes it has. step: told after each step,
    for tests that end there.
    """
    directory = StateDirectory(state_dir / name)
    with ExitStack() as held:
        hold_offline(name, runtime_dir, held)
        settle(directory)
        header = stopped_in_order(name, directory)
        source, mark = own_backup(name, directory, header)
        held.callback(source.close)
        if source.layout == to:
            raise UserError(f"the backup of '{name}' is {to} already: {source.path}", ExitCode.REFUSED)
        plan = _plan(name, directory, header, source, to, backup)
        _write_note(directory, plan)
        step("note")
        begun = False
        try:
            target = _make(name, plan, header, sparse=sparse, log_space_percent=_log_space(directory))
            held.callback(target.close)
            begun = True
            step("made")
            lost = _fill(source, target, progress, damaged=damaged)
            step("copied")
            if len(lost):
                plan = replace(plan, lost=mark.lost + note_lost(directory, lost))
                _write_note(directory, plan)
                step("lost")
            target.set_mark(replace(mark, layout=to, lost=max(mark.lost, plan.lost)))
            step("marked")
            _publish(plan)
            step("published")
            _finish(directory, plan, header)
            step("record")
        except BaseException:
            _settle(directory, tell=begun and not plan.made)
            raise
        if not plan.in_place:
            _let_go(source)
        _remove_note(directory)
    return plan


def settle(directory: StateDirectory) -> None:
    """See to it that what grow and convert began is done or undone. The caller holds the device's name. UserError."""
    directory.check_owner()
    settle_growth(directory)
    _settle(directory, tell=True)


def _settle(directory: StateDirectory, *, tell: bool) -> None:
    plan = _read_note(directory)
    if plan is None:
        forget_lost(directory)
        return
    header, record = directory.read_header(), directory.read_record()
    if isinstance(header, Header) and header.device_id == plan.device_id:
        if record is not None and (record.backup, record.layout) == (plan.new, plan.to):
            mark_lost(directory)
            _remember(directory, plan)
            _remove_copy(plan)  # the name that it had until then
        elif plan.in_place and not _is_old(plan):
            try:
                _finish(directory, plan, header)
            except UserError as error:
                if error.code != ExitCode.REFUSED:
                    raise
                log.warning("a conversion of the backup that was interrupted is forgotten: %s", error)
        else:
            _undo(plan, tell=tell)
            if tell:
                log.warning("converting the backup to %s was interrupted: undone", plan.to)
    _remove_note(directory)


def next_start(folder: Path, plan: Conversion) -> str:
    """How the device is started with its new backup."""
    name, part = folder.name, ""
    when, it = "", "it"
    if is_shard(name):
        name, part = whole_of(name), shard_name("", number_of(name))
        when, it = "once all shards are, ", f"'{name}'"
        if common_backup(folder.with_name(name), plan.to) is not None:
            when = "all shards are: "
    known = remembered.read(folder.with_name(name))
    if known is not None and "backup" in known.given and not when.startswith("once"):
        return f"{when}its name alone starts {it} with that"
    backup = "" if plan.in_place and part else plan.named.removesuffix(part)
    if known is not None and known.file is not None and "backup" not in known.given:
        words = [f'backup_layout = "{plan.to}"', *([] if plan.in_place else [f'backup = "{backup}"'])]
        return f"{when}write {' and '.join(words)} into {known.file} before {it} is started"
    return f"{when}start {it} with{f' --backup {backup}' if backup else ''} --backup-layout {plan.to}"


def _plan(
    name: str, directory: StateDirectory, header: Header, source: Backup, to: str, backup: Path | None
) -> Conversion:
    old = Path(os.path.realpath(source.path))
    status = os.fstat(source.fileno())
    if backup is None and source.is_block_device:
        raise UserError(
            f"backup {source.path} of '{name}' is a block device, which has no room for both: give --backup NEWFILE"
        )
    new = old if backup is None else Path(os.path.realpath(backup))
    if backup is not None and not backup.is_block_device():
        if backup.exists() or backup.is_symlink():
            raise UserError(f"{backup} exists; name a file that does not", ExitCode.REFUSED)
        if new.is_relative_to(directory.path):
            raise UserError(f"{backup} lies in the device's state folder; choose another place")
        if not new.parent.is_dir():
            raise UserError(f"directory {new.parent} does not exist; create it first", ExitCode.NOT_FOUND)
    made = "" if new.is_block_device() else str(new.with_name(f"{new.name}.convert-{secrets.token_hex(4)}"))
    return Conversion(
        header.device_id,
        str(old),
        (status.st_dev, status.st_ino),
        str(new),
        made,
        to,
        str(new if backup is None else backup),
    )


def _log_space(directory: StateDirectory) -> int:
    """How much of the device's size a new log takes, as the device was started last."""
    known = remembered.read(directory.path)
    found = None if known is None else known.values.get(BACKUP_LOG_SPACE.name)
    return found if isinstance(found, int) else LOG_SPACE_PERCENT


def _make(name: str, plan: Conversion, header: Header, *, sparse: bool, log_space_percent: int) -> Backup:
    """Where the copy goes, empty."""
    if plan.made:
        made = Path(plan.made)
        return create_backup(made, header.size_bytes, plan.to, sparse=sparse, log_space_percent=log_space_percent)
    target = open_backup(Path(plan.new), header.size_bytes, plan.to, name=name, sparse=sparse)
    if target is None:
        raise UserError(f"block device {plan.new} has just gone", ExitCode.NOT_FOUND)
    try:
        mark = target.mark()
        content = f"what belongs to {mark.describe()}" if mark is not None else target.foreign_content()
        if content is not None:
            raise UserError(
                f"block device {plan.new} holds {content}; if that is not needed, clear it with "
                f"'blkdiscard -z {plan.new}'",
                ExitCode.REFUSED,
            )
    except BaseException:
        target.close()
        raise
    return target


def _fill(
    source: Backup, target: Backup, progress: Callable[[str, int], Progress], *, damaged: bool
) -> NDArray[np.int64]:
    """The copy, written, synced and read back. Returns which pages could not be read."""
    with ExitStack() as held:
        content = content_of(source, damaged=damaged)
        held.callback(content.close)
        forgiving = WithoutUnreadable(content)
        original: Source = forgiving if damaged else content
        total = data_bytes(original)
        filling = content_to_fill(target)
        try:
            blank = not target.is_block_device or target.layout == "log"
            copy(original, filling, progress("copying", total if blank else original.size_bytes), zeroes=not blank)
        finally:
            filling.close()
        written = content_of(target)
        held.callback(written.close)
        compare(original, written, progress("reading back", total))
        return forgiving.unreadable


def _publish(plan: Conversion) -> None:
    """The copy gets its name."""
    if not plan.made:
        return
    made, new = Path(plan.made), Path(plan.new)
    try:
        if plan.in_place:
            made.rename(new)
        else:
            os.link(made, new)
        sync_directory(new.parent)
    except OSError as error:
        raise UserError(f"cannot make {new} of {made}: {error.strerror}", ExitCode.RESOURCES) from None


def _finish(directory: StateDirectory, plan: Conversion, header: Header) -> None:
    """The copy has its name: it is marked there, the record names it, and so do the options of the last start."""
    new = Path(plan.new)
    try:
        with _places(new) as places:
            mark = places.read()
            if mark is None:
                mark = _mark_of_old(plan)
            if mark is None or (mark.device_id, mark.life) != (header.device_id, header.life):
                raise UserError(f"backup {new} is not as the conversion left it", ExitCode.REFUSED)
            places.write(replace(mark, layout=plan.to, lost=max(mark.lost, plan.lost)))
        directory.write_record(Record(plan.device_id, plan.new, marked=True, layout=plan.to), sync=True)
    except OSError as error:
        raise UserError(f"the new backup cannot be put on record: {error.strerror}", ExitCode.RESOURCES) from None
    mark_lost(directory)
    _remember(directory, plan)
    _remove_copy(plan)


def _mark_of_old(plan: Conversion) -> Mark | None:
    """Where marks go by names, the copy's new name has none yet."""
    with contextlib.suppress(OSError), _places(Path(plan.old)) as places:
        return places.read()
    return None


def _remember(directory: StateDirectory, plan: Conversion) -> None:
    """So that its name alone starts the device again. What a file says is its user's to change."""
    known = remembered.read(directory.path)
    if known is not None and "backup" in known.given:
        given = {**known.given, "backup_layout": plan.to, **({} if plan.in_place else {"backup": plan.named})}
        try:
            replace(known, given=given).write(directory.path)
        except OSError as error:
            log.warning("the backup's layout cannot be remembered for the next start: %s", error.strerror)
    if is_shard(directory.path.name):
        remember_whole(directory.path.with_name(whole_of(directory.path.name)), plan.to)


def _undo(plan: Conversion, *, tell: bool) -> None:
    """The old backup counts: nothing of the new one stays."""
    new = Path(plan.new)
    if not plan.made:
        with contextlib.suppress(OSError), _places(new) as places:
            mark = places.read()
            if mark is not None and mark.device_id == plan.device_id:
                places.remove()
        if tell:
            log.warning("block device %s may hold an unfinished copy; 'blkdiscard -z %s' clears it", new, new)
        return
    made = Path(plan.made)
    if not plan.in_place and made.exists() and new.exists() and made.samefile(new):
        _unlink(new)
    _remove_copy(plan)


def _remove_copy(plan: Conversion) -> None:
    """The name under which the copy was written."""
    if plan.made:
        _unlink(Path(plan.made))


def _unlink(path: Path) -> None:
    """With what says of it by its name whose it is."""
    try:
        with contextlib.suppress(FileNotFoundError), _places(path) as places:
            places.forget_names()
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)


def _let_go(source: Backup) -> None:
    """The old backup stays, and is not taken for the device's any more."""
    try:
        source.set_mark(None)
    except UserError as error:
        log.warning("%s", error)


def _is_old(plan: Conversion) -> bool:
    """Whether the old backup still has its name."""
    with contextlib.suppress(OSError):
        status = Path(plan.old).stat()
        return (status.st_dev, status.st_ino) == plan.old_file
    return True


@contextlib.contextmanager
def _places(path: Path) -> Iterator[MarkPlaces]:
    """Where the mark of the backup at path may be. OSError: there is none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        yield MarkPlaces(path, fd, status.st_rdev if stat.S_ISBLK(status.st_mode) else None)
    finally:
        os.close(fd)


def _read_note(directory: StateDirectory) -> Conversion | None:
    """None without one; one that cannot be read says nothing, for it is written before anything is done."""
    try:
        with (directory.path / _NOTE_NAME).open("rb") as stream:
            found = json.loads(stream.read(_NOTE_BYTES_MAX))
        device, inode = found["old_file"]
        device_id, old, new, made, to = (str(found[key]) for key in ("device_id", "old", "new", "made", "to"))
        named, lost = str(found.get("named", new)), int(found.get("lost", 0))
        return Conversion(device_id, old, (int(device), int(inode)), new, made, to, named, lost)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        _remove_note(directory)
        return None


def _write_note(directory: StateDirectory, plan: Conversion) -> None:
    try:
        replace_file(directory.path / _NOTE_NAME, json.dumps(asdict(plan)).encode(), sync=True)
        sync_directory(directory.path)
    except OSError as error:
        raise UserError(f"cannot write in {directory.path}: {error.strerror}", ExitCode.RESOURCES) from None


def _remove_note(directory: StateDirectory) -> None:
    with contextlib.suppress(FileNotFoundError):
        (directory.path / _NOTE_NAME).unlink()
        sync_directory(directory.path)
    forget_lost(directory)
