"""What is known of a device without touching it: state, backup, leases, and what a start would make of them.

Nothing is locked, written or renewed, so this is for devices that run as for those that do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.backup import unusable
from infiniswap.device.backup_kinds import found_layout
from infiniswap.device.backup_log import check_length
from infiniswap.device.daemon_client import DaemonClient, LeaseGoneError, PeerError, make_session
from infiniswap.device.foreign import foreign_content
from infiniswap.device.last_start import describe
from infiniswap.device.lease_book import LeaseBook, RecordedLease
from infiniswap.device.owner import Mark, MarkPlaces
from infiniswap.device.shards import is_hole
from infiniswap.device.startup import mark_elsewhere
from infiniswap.device.state import (
    CHUNK_PAGES,
    DamagedState,
    Header,
    Record,
    StateDirectory,
    is_kept,
    read_boot_id,
    read_host_id,
)
from infiniswap.device.verdict import Image, Now, Start, judge
from infiniswap.engine.binding import PAGE_BYTES, PAGE_DTYPE, PageFlag, state_layout
from infiniswap.engine.log_binding import Log, LogFlag
from infiniswap.identity.identity import Identity
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.shard_names import is_shard, number_of, shard_path, whole_of
from infiniswap.shared.sizes import format_size

ASK_TIMEOUT_S = 3.0
_REMOTE = np.uint32(int(PageFlag.REMOTE | PageFlag.WRITING))
_DISK, _LOST = np.uint32(int(PageFlag.DISK)), np.uint32(int(PageFlag.LOST))
_WORDS = {
    Start.RECOVER: "a start takes the state up as it is, with what the peers hold",
    Start.REBUILD: "a start serves what is on the backup",
    Start.FORGET: "a start serves what is on the backup, as that of a new device",
}


@dataclass(slots=True)
class Findings:
    """words: what was found, one sentence each. code: how bad the worst of it is."""

    name: str
    start: str = "refused"
    code: ExitCode = ExitCode.OK
    words: list[str] = field(default_factory=list)
    backup: str | None = None
    backup_layout: str | None = None
    only_remote_pages: int = 0
    lost_pages: int = 0
    leases: list[dict[str, Any]] = field(default_factory=list)

    def say(self, words: str, code: ExitCode = ExitCode.OK) -> None:
        """Add a sentence; of two codes the one that stops a start is worse than the one that loses pages."""
        self.words.append(words)
        self.code = max(self.code, code)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a start is asked for. layout: None where that is not known."""

    backup: Path
    layout: str | None = None


def check(name: str, state_dir: Path, backup: Path | None, identity: Identity | None = None) -> Findings:
    """Look at device name, which does not run. backup: None for that of a start by its name.

    identity: by which its daemons are asked; None: in the clear. UserError: nothing is known.
    """
    directory = StateDirectory(state_dir / name)
    findings = Findings(name)
    header, record = directory.read_header(), directory.read_record()
    asked = _asked_for(name, state_dir, backup, record)
    backup = None if asked is None else asked.backup
    if header is None and backup is None:
        raise UserError(
            f"{directory.path} holds no state of a device '{name}'; give --state-dir or --backup", ExitCode.NOT_FOUND
        )
    image, size_bytes = None, 0
    if asked is not None and backup is not None:
        findings.backup = str(backup)
        image, size_bytes = _look_at(backup, findings)
        _compare_layout(record, asked, image, findings)
    _tell_state(header, findings)
    own = header if isinstance(header, Header) else None
    now = Now(
        size_bytes=own.size_bytes if own is not None else size_bytes,
        slab_bytes=own.slab_bytes if own is not None else 0,
        boot_id=read_boot_id(),
        host_id=read_host_id(),
        name=name,
        backup="" if backup is None else str(backup),
    )
    try:
        directory.check_owner()
        start = judge(header, record, image, now, None if backup is None else mark_elsewhere(record, backup))
    except UserError as error:
        findings.say(f"a start is refused: {error}", error.code)
        return findings
    usable = findings.code not in (ExitCode.REFUSED, ExitCode.RESOURCES)
    if own is not None and image is not None and usable and size_bytes != own.size_bytes:
        findings.say(f"the backup is of {size_bytes} bytes, the state of {own.size_bytes}", ExitCode.REFUSED)
    if start is Start.FORGET and backup is not None and image is not None and image.mark is None and usable:
        _look_for_content(backup, findings)
    if own is not None and backup is not None and image is None and is_hole(name, own, state_dir):
        findings.say("other shards have theirs: an empty one would be a hole between them", ExitCode.REFUSED)
    if findings.code in (ExitCode.REFUSED, ExitCode.RESOURCES):
        findings.say("a start ends with that, and changes nothing")
    else:
        findings.start = start.name.lower()
        if image is None and backup is not None:
            findings.say("a start creates it, empty")
        findings.say(_WORDS[start])
    if own is not None:
        _look_at_pages(directory, own, start, findings, identity)
    return findings


def _asked_for(name: str, state_dir: Path, backup: Path | None, record: Record | None) -> _Asked | None:
    """What a start would be for; backup: where that is given. None: nothing says."""
    if backup is not None or record is None:
        return None if backup is None else _Asked(backup)
    with contextlib.suppress(UserError):
        config = describe(whole_of(name), {"state_dir": state_dir}, None).loaded.config
        if is_shard(name) == (config.shards > 1):
            path = shard_path(config.backup, number_of(name)) if is_shard(name) else config.backup
            return _Asked(path, config.backup_layout)
    return _Asked(Path(record.backup))


def _look_at(path: Path, findings: Findings) -> tuple[Image | None, int]:
    """The image with its mark, None without one, and the size of its device."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        findings.say(f"backup {path} does not exist", ExitCode.FAILED)
        return None, 0
    except OSError as error:
        raise UserError(f"cannot open backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        status = os.fstat(fd)
        places = MarkPlaces(path, fd, status.st_rdev if stat.S_ISBLK(status.st_mode) else None)
        mark = places.read()
        _tell_mark(path, mark, findings)
        if stat.S_ISREG(status.st_mode) and (why := _why_not_written(path)):
            findings.say(f"backup {path} cannot be opened for writing: {why}", ExitCode.RESOURCES)
        findings.backup_layout = found_layout(fd, mark) or "raw"
        size_bytes = (
            _look_into_log(path, fd, findings) if findings.backup_layout == "log" else os.lseek(fd, 0, os.SEEK_END)
        )
        return Image(os.path.realpath(path), mark, kept=is_kept(mark)), size_bytes
    except OSError as error:
        raise unusable(path, error) from None
    finally:
        os.close(fd)


def _why_not_written(path: Path) -> str | None:
    """Why a start, which writes to it, cannot open this file: it is immutable, say, or on a read-only mount."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.strerror
    return None


def _look_for_content(path: Path, findings: Findings) -> None:
    """What is on a backup that nothing calls this device's: a start does not take that for its own."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unusable(path, error) from None
    try:
        if findings.backup_layout == "log":
            with contextlib.closing(Log(fd, LogFlag.READ_ONLY)) as log:
                content = "a device's data" if log.info().live_pages else None
        else:
            content = foreign_content(fd, path, os.lseek(fd, 0, os.SEEK_END))
    except OSError as error:
        raise unusable(path, error) from None
    finally:
        os.close(fd)
    if content is not None:
        findings.say(
            f"it holds {content}, and is not known as this device's: a start takes --adopt-image to serve that",
            ExitCode.REFUSED,
        )


def _look_into_log(path: Path, fd: int, findings: Findings) -> int:
    """Tell how the log in path, open as fd, stands; the size of its device, 0 where it cannot be opened."""
    try:
        log = Log(fd, LogFlag.READ_ONLY)
    except OSError as error:
        refusal = unusable(path, error)
        try:
            check_length(fd, path)
        except UserError as short:
            refusal = short
        findings.say(str(refusal), refusal.code)
        return 0
    found = log.info()
    log.close()
    # Which segments are free only who writes to it counts.
    findings.say(f"it is a log of {found.segments} segments with {format_size(found.live_pages * PAGE_BYTES)} in it")
    return found.size_bytes


def _compare_layout(record: Record | None, asked: _Asked, image: Image | None, findings: Findings) -> None:
    """What the state says of how its backup is kept, and what a start asks for."""
    ours = record is not None and record.backup == os.path.realpath(asked.backup)
    if record is not None and ours and findings.backup_layout not in (None, record.layout):
        findings.say(
            f"the state says that the backup is {record.layout}, and it is {findings.backup_layout}", ExitCode.REFUSED
        )
    blank = image is None or (image.mark is None and findings.backup_layout == "raw")
    if not blank and asked.layout not in (None, findings.backup_layout):
        findings.say(f"it is {findings.backup_layout}, and a start asks for {asked.layout}", ExitCode.REFUSED)


def _tell_mark(path: Path, mark: Mark | None, findings: Findings) -> None:
    if mark is None:
        findings.say(f"backup {path} has no mark: no device is known to have used it")
    elif mark.in_use:
        findings.say(f"backup {path} was not closed in order by {mark.describe()}")
    else:
        findings.say(f"backup {path} was closed in order by {mark.describe()}")


def _tell_state(header: Header | DamagedState | None, findings: Findings) -> None:
    if header is None:
        findings.say("there is no state file")
    elif isinstance(header, DamagedState):
        findings.say(f"the state file is damaged: {header.reason}", ExitCode.FAILED)
    else:
        how = {0: "in use, not stopped in order", 1: "stopped in order", 2: "nothing was served since the last stop"}
        findings.say(f"the state says: {how[header.phase]}")


def _look_at_pages(
    directory: StateDirectory, header: Header, start: Start, findings: Findings, identity: Identity | None
) -> None:
    entries = LeaseBook(directory.leases_path).read(header.device_id) if start is Start.RECOVER else []
    only_remote, findings.lost_pages = count_pages(directory.state_path, header)
    if findings.lost_pages and start is not Start.FORGET:
        findings.say(f"{findings.lost_pages} pages are lost: they read as an error until written", ExitCode.FAILED)
    if start is not Start.RECOVER:
        return
    findings.only_remote_pages = int(only_remote.sum())
    reasons = asyncio.run(_ask_all(entries, identity))
    safe: set[int] = set()
    for entry, reason in zip(entries, reasons, strict=True):
        lives = reason is None
        safe |= entry.slabs if lives else frozenset()
        findings.leases.append(
            {"peer": str(entry.peer), "lives": lives, "slabs": len(entry.slabs), "reason": reason or ""}
        )
        findings.say(
            f"peer {entry.peer}: " + (f"its lease lives, with {len(entry.slabs)} slabs" if lives else reason or "")
        )
    missing = int(sum(count for slab, count in enumerate(only_remote.tolist()) if slab not in safe))
    findings.say(f"{findings.only_remote_pages} pages are in the peers' memory alone")
    if missing:
        findings.say(f"{missing} of them would be lost at a start now, for their peers do not answer", ExitCode.FAILED)


def count_pages(path: Path, header: Header) -> tuple[NDArray[np.int64], int]:
    """By slab, the pages that only a peer has; and in all, those that are lost."""
    pages, per_slab = header.size_bytes // PAGE_BYTES, header.slab_bytes // PAGE_BYTES
    only = np.zeros(-(-pages // per_slab), np.int64)
    lost = 0
    try:
        with path.open("rb") as stream:
            stream.seek(state_layout(header.size_bytes).pages_offset)
            for first in range(0, pages, CHUNK_PAGES):
                count = min(CHUNK_PAGES, pages - first)
                meta = np.frombuffer(stream.read(count * PAGE_DTYPE.itemsize), PAGE_DTYPE)["meta"]
                where = np.flatnonzero((meta & _REMOTE != 0) & (meta & _DISK == 0)) + first
                np.add.at(only, where // per_slab, 1)
                lost += int(np.count_nonzero(meta & _LOST))
    except OSError as error:
        raise UserError(f"cannot read state file {path}: {error.strerror}", ExitCode.RESOURCES) from None
    return only, lost


async def _ask_all(entries: list[RecordedLease], identity: Identity | None) -> list[str | None]:
    """By lease, why it does not live; None when it does."""
    async with make_session() as session:

        async def ask(entry: RecordedLease) -> str | None:
            client = DaemonClient(
                session,
                HostPort(entry.peer.host, entry.peer.port),
                device="check",
                device_id="",
                size_bytes=entry.lease.size_bytes,
                slab_bytes=0,
                timeout_s=ASK_TIMEOUT_S,
                clock=time.monotonic,
                identity=identity,
            )
            try:
                await client.look_at(entry.lease)
            except LeaseGoneError as error:
                return f"its lease is gone: {error}"
            except PeerError as error:
                return f"whether its lease lives is not known: {error}"
            return None

        return list(await asyncio.gather(*map(ask, entries)))
