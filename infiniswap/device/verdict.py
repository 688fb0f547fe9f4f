"""What a start makes of the state and the backup that it finds: pure, so that every combination can be tested.

The state and the mark on the backup each say whose they are, of which life, and how that ended. Where they contradict
each other, or the one that must be there is missing, nothing is guessed: the start is refused with what is known.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum, auto
from typing import NoReturn

from infiniswap.device.owner import Mark
from infiniswap.device.state import DamagedState, Header, Phase, Record
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.shard_names import is_shard, number_of, shard_name, whole_of

log = logging.getLogger(__name__)

WAY_OUT = "or give --accept-backup to take what is on the backup as it is"


class Start(Enum):
    """How the page table comes to be."""

    REBUILD = auto()  # from the backup's data extents; pages known to be lost stay lost
    FORGET = auto()  # from the backup's data extents alone: what the state file says is not about this backup
    RECOVER = auto()  # the state file is taken on, remote copies included


@dataclass(frozen=True, slots=True)
class Image:
    """A backup that exists. path: with all links resolved; mark: its owner's, None without one.

    kept: the owner's state is on this host, so that device can be started as well.
    """

    path: str
    mark: Mark | None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Now:
    """What the start is asked for, and where it takes place."""

    size_bytes: int
    slab_bytes: int
    boot_id: str
    host_id: str = ""
    name: str = ""
    backup: str = ""  # as it was asked for
    accept: bool = False  # --accept-backup: what is on the image counts, whatever is known
    sealed: bool = False  # --encrypt
    adopt: bool = False  # --adopt-image: its content is meant to be served, though it is not known as this device's


def judge(
    header: Header | DamagedState | None,
    record: Record | None,
    image: Image | None,
    now: Now,
    recorded: Mark | None = None,
) -> Start:
    """What to make of a state file (None: missing) and an image (None: to be created).

    recorded: the mark on the backup on record, where that is another one than was asked for.
    UserError where going on could serve stale data unawares.
    """
    mark = image.mark if image is not None else None
    if image is not None and mark is not None:
        _check_not_swapped(image, mark, now)
    if now.accept:
        return Start.FORGET
    check_not_elsewhere(header, record, recorded, image, now)
    own = header if isinstance(header, Header) else None
    if image is not None and mark is not None and (own is None or own.device_id != mark.device_id):
        return _of_another(header, own, image, mark, now)
    if own is None:
        if not isinstance(header, DamagedState):
            return Start.FORGET
        _refuse(
            f"the state file is damaged ({header.reason}), and nothing tells which backup it was about: put the "
            f"device's own backup in place, {WAY_OUT}"
        )
    same_size = own.size_bytes == now.size_bytes
    if own.phase is Phase.IN_USE:
        _check_in_use(own, record, image, mark, now)
        if own.boot_id != now.boot_id:
            log.warning("the device did not stop in order before the last boot: what was not flushed then is lost")
            return Start.REBUILD if same_size else Start.FORGET
        return Start.RECOVER
    if mark is None:
        return Start.REBUILD if same_size and known_unmarked(own, record, image) else Start.FORGET
    if mark.life not in _lives(own):
        _refuse(
            f"backup {image.path if image else ''} and the state do not belong together: the backup was used later or "
            f"earlier with another state ({mark.describe()}); bring both together, {WAY_OUT}"
        )
    return Start.REBUILD if same_size else Start.FORGET


def _check_not_swapped(image: Image, mark: Mark, now: Now) -> None:
    """A shard at another's place would be served as another part of the whole, which nobody can mean: no way around."""
    if is_shard(mark.name) and is_shard(now.name) and number_of(mark.name) != number_of(now.name):
        _refuse(
            f"backup {image.path} is that of '{mark.name}' and not of '{now.name}': backups of shards are swapped; "
            "swap the files (or links) back, so that each shard has its own (the mark in each says whose it is)"
        )


def check_not_elsewhere(
    header: Header | DamagedState | None, record: Record | None, recorded: Mark | None, image: Image | None, now: Now
) -> None:
    """UserError where the device's own backup is there, and a start is asked for with one that is not it.

    After convert, say, with a file that names the old one, which may be gone: the device would be served empty. One
    that was not stopped in order has refusals of its own.
    """
    own = header if isinstance(header, Header) and header.phase is not Phase.IN_USE else None
    if own is None or record is None or recorded is None or not _is_of(own, recorded):
        return
    if image is not None and (now.adopt or (image.mark is not None and _is_of(own, image.mark))):
        return
    whole, part = whole_of(now.name), shard_name("", number_of(now.name)) if is_shard(now.name) else ""
    what = f"does not exist, and that of '{now.name}'" if image is None else f"is not that of '{now.name}', which"
    where = f"--backup {record.backup.removesuffix(part)}"
    if not record.backup.endswith(part):
        where = f"the --backup whose {part} leads there"
    give = f"give {where} --backup-layout {recorded.layout}{' once all shards have theirs there' if part else ''}"
    _refuse(
        f"backup {now.backup} {what} is {record.backup}: {give}, or write that into the file that says otherwise; "
        f"'infiniswap device rm {whole}' lets '{whole}' begin anew"
    )


def _lives(own: Header) -> tuple[str, str]:
    """Which of them a mark may name for the backup to be as a device that nobody uses left it."""
    return ("", own.life) if own.phase is Phase.CLEAN else (own.life, own.previous)


def _is_of(own: Header, mark: Mark) -> bool:
    return mark.device_id == own.device_id and mark.life in _lives(own)


def known_unmarked(header: Header, record: Record | None, image: Image | None) -> bool:
    """Whether image, which has no mark, is this device's all the same: marks of version 1 went at an orderly stop."""
    first = header.life == "" if header.phase is not Phase.STARTING else header.previous == ""
    return (
        first
        and image is not None
        and record is not None
        and (record.device_id, record.backup) == (header.device_id, image.path)
    )


def _of_another(header: Header | DamagedState | None, own: Header | None, image: Image, mark: Mark, now: Now) -> Start:
    """The mark names a device of which this state directory knows nothing."""
    if mark.in_use:
        # A state directory in memory went with that boot: to its users, a disk that has lost its write cache.
        rebooted = mark.host_id == now.host_id != "" and mark.boot_id != now.boot_id
        if rebooted and mark.name in ("", now.name) and (own is None or own.phase is Phase.STARTING):
            log.warning("this host went down with the device in use: what was not flushed then is lost")
            return Start.FORGET
        damaged = f" (its state file is damaged: {header.reason})" if isinstance(header, DamagedState) else ""
        _refuse(
            f"backup {image.path} was not closed in order and this state directory knows nothing of it{damaged}: newer "
            f"data may be in remote memory; it is in use by {mark.describe()}; start with its own --state-dir and "
            f"name, {WAY_OUT}"
        )
    if mark.lost:
        _refuse(
            f"backup {image.path} is behind in {mark.lost} pages that were lost, and only its own state knows which: "
            f"{mark.describe()}; start with its own --state-dir and name, {WAY_OUT}"
        )
    if mark.name not in ("", now.name) and image.kept and not now.adopt:
        _refuse(
            f"backup {image.path} is that of {mark.describe()}, which is kept on this host: give '{now.name}' a backup "
            f"of its own; where that one is not needed any more, 'infiniswap device rm {whole_of(mark.name)}' takes it "
            "away, and --adopt-image then serves what is on this"
        )
    if mark.name not in ("", now.name) and not now.adopt:
        _refuse(
            f"backup {image.path} belongs to {mark.describe()}; if its content shall be served as '{now.name}', give "
            "--adopt-image"
        )
    if own is not None and own.phase is Phase.IN_USE:
        _check_in_use(own, None, image, mark, now)
    return Start.FORGET


def _check_in_use(own: Header, record: Record | None, image: Image | None, mark: Mark | None, now: Now) -> None:
    """The device was killed: its state is worth something only together with the image and the sizes that it had."""
    if record is not None and record.device_id != own.device_id:
        record = None
    unmarkable = own.life == "" and record is not None and not record.marked  # version 1, on a block device
    matches = mark is not None and mark.in_use and (mark.device_id, mark.life) == (own.device_id, own.life)
    if not matches and not (
        unmarkable and mark is None and image is not None and record is not None and record.backup == image.path
    ):
        if record is not None and (image is None or record.backup != image.path):
            _refuse(f"this device was not closed in order and its backup is {record.backup}; give that one, {WAY_OUT}")
        if image is None or mark is None:
            what = f"backup {image.path} is not the file" if image is not None else "a new backup is not the one"
            _refuse(f"{what} this device was using when it ended (or was written since); put that one back, {WAY_OUT}")
        _refuse(
            f"backup {image.path} was last used otherwise than this state says, which was not closed in order: "
            f"{mark.describe()}; put the backup of that life back, {WAY_OUT}"
        )
    if own.boot_id == now.boot_id and own.sealed != now.sealed:
        how, flag = ("sealed", "--encrypt") if own.sealed else ("not sealed", "--no-encrypt")
        _refuse(
            f"this device was not closed in order, and its pages at peers are {how}: start it once "
            f"with {flag}, {WAY_OUT}"
        )
    if own.boot_id == now.boot_id and not own.checksum_seed:
        _refuse(
            "this device was not closed in order, and an earlier version of this program wrote its state, whose "
            f"checksums this one does not know: start it once with that version and stop it in order, {WAY_OUT}"
        )
    if own.boot_id == now.boot_id and (own.size_bytes, own.slab_bytes) != (now.size_bytes, now.slab_bytes):
        _refuse(
            f"this device was not closed in order; start it once with the sizes it had: --size {own.size_bytes} "
            f"--slab-size {own.slab_bytes}, {WAY_OUT}"
        )


def _refuse(message: str) -> NoReturn:
    raise UserError(message, ExitCode.REFUSED)
