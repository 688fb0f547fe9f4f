"""The state file: page flags and checksums in a mapping that outlives a killed process, and what a start makes of it.

Layout: a header (struct isw_state_header), the engine's intents, one entry a page; offsets from engine.state_layout().
What a start makes of it all is verdict.py's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import mmap
import os
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.owner import Mark, sync_directory
from infiniswap.engine.binding import (
    INTENT_DTYPE,
    LOST_PENDING,
    PAGE_BYTES,
    PAGE_DTYPE,
    PageFlag,
    StateLayout,
    crc32c,
    state_layout,
)
from infiniswap.engine.checksum import SEED_BYTES, PageChecksum
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import check_kept, create_new, open_own, replace_file

log = logging.getLogger(__name__)

MAGIC = b"ISWSTATE"
VERSION = 4
VERSION_SEALED = 5  # the same, and pages at peers are sealed: no program that does not know of it may take them up
_VERSIONS_CRC = (1, 2, 3)  # pages had a CRC32C, which has no key; 3 was sealed
SIZE_BYTES_MAX = 16 << 40  # DEVICE_BYTES_MAX of the configuration; what says more is damaged
PERSISTENT_FLAGS = int(
    PageFlag.REMOTE | PageFlag.DISK | PageFlag.WRITING | PageFlag.PUNCH | PageFlag.LOST | PageFlag.DOUBTFUL
)
CHUNK_PAGES = 1 << 18  # page entries worked on at once: bounds the temporary arrays to a few MiB
WRITTEN_PAGES_MIN = 4096  # with fewer entries in a row a call costs more than it spares
RECORD_BYTES_MAX = 64 << 10
_HEADER_1 = struct.Struct("<8sIIQQ40s40s")  # version 1 ended here
_HEADER_2 = struct.Struct("<8sIIQQ40s40s40s40s")  # versions 2 and 3 ended here, with a checksum behind
_HEADER = struct.Struct(f"{_HEADER_2.format}{SEED_BYTES}s")
_CHECKSUM = struct.Struct("<I4x")  # CRC32C of all before it
HEADER_BYTES = _HEADER.size + _CHECKSUM.size


def read_boot_id() -> str:
    """Id of the running kernel's boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def draw_seed() -> bytes:
    """What the checksums of a device's pages are made with: secret, and nobody else's."""
    return os.urandom(SEED_BYTES)


def read_host_id() -> str:
    """Id of this installation of an operating system (machine-id(5)), "" where it has none."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


class Phase(IntEnum):
    """How far a life of the device has come, as far as the state file tells."""

    IN_USE = 0  # served, and not stopped in order
    CLEAN = 1  # stopped in order: everything is on the backup
    STARTING = 2  # nothing was served yet: what was true before still is


@dataclass(frozen=True, slots=True)
class Header:
    """The state file's header. life: as in the backup's mark. previous: the life in that mark before this one.

    sealed: pages at peers are. checksum_seed: b"" where an earlier version wrote it, whose checksums had no key.
    """

    phase: Phase
    size_bytes: int
    slab_bytes: int
    boot_id: str
    device_id: str
    life: str = ""
    previous: str = ""
    sealed: bool = False
    checksum_seed: bytes = field(default_factory=draw_seed, repr=False)

    def pack(self) -> bytes:
        """As struct isw_state_header; ValueError for one of an earlier version, which has no seed."""
        if len(self.checksum_seed) != SEED_BYTES:
            raise ValueError("a state file has a seed")
        words = (self.boot_id, self.device_id, self.life, self.previous)
        version = VERSION_SEALED if self.sealed else VERSION
        encoded = (word.encode() for word in words)
        raw = _HEADER.pack(MAGIC, version, self.phase, self.size_bytes, self.slab_bytes, *encoded, self.checksum_seed)
        return raw + _CHECKSUM.pack(crc32c(raw))

    @classmethod
    def parse(cls, raw: bytes, file_bytes: int) -> Header:
        """The header at the beginning of a state file of file_bytes; ValueError when it cannot be used."""
        if len(raw) < HEADER_BYTES or raw[:8] != MAGIC:
            raise ValueError("it does not begin as a state file does")
        version = int.from_bytes(raw[8:12], "little")
        if version not in (*_VERSIONS_CRC, VERSION, VERSION_SEALED):
            raise ValueError(f"it is of version {version}, which this program does not know")
        if version == 1:
            _, _, phase, size_bytes, slab_bytes, *words = _HEADER_1.unpack_from(raw)
            words += [b"", b"", b""]
        else:
            layout = _HEADER_2 if version in _VERSIONS_CRC else _HEADER
            if _CHECKSUM.unpack_from(raw, layout.size)[0] != crc32c(raw[: layout.size]):
                raise ValueError("its checksum is wrong")
            _, _, phase, size_bytes, slab_bytes, *words = layout.unpack_from(raw)
            words += [b""] if layout is _HEADER_2 else []
        if (version == 1 and (phase > Phase.CLEAN or any(raw[_HEADER_1.size :]))) or phase > Phase.STARTING:
            raise ValueError("its header is damaged")
        if not 0 < size_bytes <= SIZE_BYTES_MAX or size_bytes % PAGE_BYTES:
            raise ValueError("its header is damaged")
        if file_bytes != state_layout(size_bytes).total_bytes:
            raise ValueError("it has the wrong length")
        boot_id, device_id, life, previous = map(_text, words[:-1])
        sealed = version in (3, VERSION_SEALED)
        return cls(Phase(phase), size_bytes, slab_bytes, boot_id, device_id, life, previous, sealed, words[-1])


@dataclass(frozen=True, slots=True)
class DamagedState:
    """A state file that is there and cannot be used."""

    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """Which backup the state belongs to, and how that is kept; kept beside it, also after an orderly stop."""

    device_id: str
    backup: str
    marked: bool
    layout: str = "raw"


class StateFile:
    """The mapped state file, locked for this process."""

    def __init__(self, fd: int, header: Header, layout: StateLayout) -> None:
        """Take over fd, which is locked and has layout.total_bytes."""
        self._fd = fd
        self._header = header
        self._pages_offset = layout.pages_offset
        self.mapping = mmap.mmap(fd, layout.total_bytes)
        pages = header.size_bytes // PAGE_BYTES
        self.pages: NDArray[Any] = np.frombuffer(self.mapping, PAGE_DTYPE, pages, layout.pages_offset)
        intents = (layout.pages_offset - layout.intents_offset) // INTENT_DTYPE.itemsize
        self.intents: NDArray[Any] = np.frombuffer(self.mapping, INTENT_DTYPE, intents, layout.intents_offset)

    @property
    def device_id(self) -> str:
        """The device's id, new whenever its past was forgotten."""
        return self._header.device_id

    def fileno(self) -> int:
        """Its descriptor, open until close()."""
        return self._fd

    @property
    def checksum(self) -> PageChecksum:
        """What the checksums of this file's pages are made with."""
        return PageChecksum(self._header.checksum_seed)

    def chunks(self) -> Iterator[slice]:
        """Slices that cover all pages, at most CHUNK_PAGES each."""
        for start in range(0, len(self.pages), CHUNK_PAGES):
            yield slice(start, min(start + CHUNK_PAGES, len(self.pages)))

    @property
    def life(self) -> str:
        """Of this process or, recovered, of those before it; "" when that was of version 1."""
        return self._header.life

    def set_phase(self, phase: Phase, life: str | None = None) -> None:
        """Say how far the device has come, durably and in one step; life: another than before. OSError."""
        if phase is Phase.CLEAN:
            self.mapping.flush()
        header = replace(self._header, phase=phase, life=self._header.life if life is None else life)
        # Not through the mapping: a process can be killed within a copy in user space.
        if os.pwrite(self._fd, header.pack(), 0) != HEADER_BYTES:
            raise OSError(errno.EIO, "the header was written in part")
        os.fdatasync(self._fd)
        self._header = header

    def drop_volatile(self) -> None:
        """Clear what dies with a process: buffer indexes and busy marks."""
        meta = self.pages["meta"]
        for part in self.chunks():
            view = meta[part]
            if np.any(view & ~np.uint32(PERSISTENT_FLAGS)):
                view &= np.uint32(PERSISTENT_FLAGS)

    def mark_on_disk(self, extents: Iterable[tuple[int, int]]) -> int:
        """Set DISK for every page that an extent (bytes) touches; returns how many. For a file that is new. OSError."""
        count = 0
        entries = np.zeros(CHUNK_PAGES, PAGE_DTYPE)
        entries["meta"] = int(PageFlag.DISK)
        for start, end in extents:
            first, last = start // PAGE_BYTES, -(-end // PAGE_BYTES)
            count += last - first
            while last - first >= WRITTEN_PAGES_MIN:  # a file's pages are had for less by a write than by faults
                part = entries[: last - first]
                done = os.pwrite(self._fd, part.data, self._pages_offset + first * PAGE_DTYPE.itemsize)
                first += done // PAGE_DTYPE.itemsize
            self.pages["meta"][first:last] = int(PageFlag.DISK)
        return count

    def read_pages(self, part: slice) -> NDArray[Any]:
        """A copy of these entries, which for all of a large file costs less than to touch the mapping. OSError."""
        entries = np.empty(part.stop - part.start, PAGE_DTYPE)
        wanted, offset = entries.view(np.uint8).data, self._pages_offset + part.start * PAGE_DTYPE.itemsize
        while wanted:
            done = os.preadv(self._fd, [wanted], offset)
            if not done:
                raise OSError(errno.EIO, "the state file has become shorter")
            wanted, offset = wanted[done:], offset + done
        return entries

    def close(self) -> None:
        """Unmap and unlock. Views handed out (and the engine) must be gone by then."""
        if self._fd < 0:
            return
        del self.pages, self.intents
        # A failed start may still hold a view in its traceback; the mapping then ends with that.
        with contextlib.suppress(BufferError):
            self.mapping.close()
        os.close(self._fd)
        self._fd = -1


class StateDirectory:
    """A device's folder: the state file, the record of its backup; leases.json is the recovery module's."""

    def __init__(self, path: Path) -> None:
        """The folder at path need not exist yet."""
        self.path = path
        self.state_path = path / "state"
        self.leases_path = path / "leases.json"
        self._record_path = path / "backup.json"

    def read_header(self) -> Header | DamagedState | None:
        """The state file's header, None when there is no file. Changes nothing."""
        try:
            with self.state_path.open("rb") as stream:
                raw = stream.read(HEADER_BYTES)
                length = os.fstat(stream.fileno()).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"cannot read state file {self.state_path}: {error.strerror}", ExitCode.RESOURCES) from None
        try:
            return Header.parse(raw, length)
        except ValueError as error:
            log.warning("state file %s cannot be used: %s", self.state_path, error)
            return DamagedState(str(error))

    def check_owner(self) -> None:
        """UserError where the folder or the state file is another user's: nothing is made of it then."""
        check_kept(self.path)
        check_kept(self.state_path)

    def read_record(self) -> Record | None:
        """The record of the backup last used, None without one."""
        try:
            with self._record_path.open("rb") as stream:
                found = json.loads(stream.read(RECORD_BYTES_MAX))
            layout = str(found.get("layout", "raw"))
            return Record(str(found["device_id"]), str(found["backup"]), found["marked"] is True, layout)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write_record(self, record: Record, *, sync: bool = False) -> None:
        """Remember the backup, atomically. sync: also through a power cut."""
        replace_file(self._record_path, json.dumps(asdict(record)).encode(), sync=sync)
        if sync:
            sync_directory(self.path)

    def open(self) -> StateFile:
        """The existing state file, as read_header() found it, for RECOVER."""
        fd = self._open_locked()
        try:
            header = self.read_header()
            if not isinstance(header, Header):
                raise UserError(f"state file {self.state_path} has just changed; start again", ExitCode.IN_USE)
            return StateFile(fd, header, state_layout(header.size_bytes))
        except BaseException:
            os.close(fd)
            raise

    def create(self, header: Header, extents: Iterable[tuple[int, int]], *, keep_lost: bool) -> StateFile:
        """A new state file in place of any old one: DISK where extents are; LOST pages of the old one stay lost."""
        with contextlib.ExitStack() as stack:
            old: StateFile | None = None
            if self.state_path.exists():
                # The lock is taken in any case: another process may be using the folder.
                fd = self._open_locked()
                stack.callback(os.close, fd)
                old_header = self.read_header() if keep_lost else None
                if isinstance(old_header, Header) and old_header.size_bytes == header.size_bytes:
                    old = StateFile(os.dup(fd), old_header, state_layout(header.size_bytes))
                    stack.callback(old.close)
            state = self._create_file(header)
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(state.close)
            undo.callback(self._new_path.unlink, missing_ok=True)
            try:
                state.mark_on_disk(extents)
                if old is not None:
                    _copy_lost(old, state)
            except OSError as error:
                raise UserError(
                    f"cannot make state file {self.state_path} of what is there: {error.strerror}", ExitCode.RESOURCES
                ) from None
            self._new_path.rename(self.state_path)
            undo.pop_all()
        return state

    def grow(self, header: Header, step: Callable[[str], None]) -> None:
        """A larger state file in place of the old one, with its pages; the old one counts until the last step.

        step: told before that one.
        """
        with contextlib.ExitStack() as stack:
            old = self.open()
            stack.callback(old.close)
            new = self._create_file(header)
            stack.callback(new.close)
            stack.callback(self.remove_new)  # where it has not become the state file
            for part in old.chunks():
                new.pages[part] = old.pages[part]
            new.mapping.flush()
            os.fsync(new.fileno())
            step("table")
            self._new_path.rename(self.state_path)
            sync_directory(self.path)

    def remove_new(self) -> None:
        """What a process left that was killed before its new state file counted."""
        self._new_path.unlink(missing_ok=True)

    @property
    def _new_path(self) -> Path:
        return self.state_path.with_suffix(".new")

    def _create_file(self, header: Header) -> StateFile:
        layout = state_layout(header.size_bytes)
        fd = create_new(self._new_path, write_only=False)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Allocated in full: a page table that hits a full disk later would kill the process with SIGBUS.
            os.posix_fallocate(fd, 0, layout.total_bytes)
            os.pwrite(fd, header.pack(), 0)
            return StateFile(fd, header, layout)
        except BaseException as error:
            os.close(fd)
            self._new_path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise UserError(
                    f"cannot create state file {self.state_path}: {error.strerror}", ExitCode.RESOURCES
                ) from None
            raise

    def _open_locked(self) -> int:
        try:
            fd = open_own(self.state_path, os.O_RDWR, keep=True)
        except OSError as error:
            raise UserError(f"cannot open state file {self.state_path}: {error.strerror}", ExitCode.RESOURCES) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            code = ExitCode.IN_USE if error.errno == errno.EWOULDBLOCK else ExitCode.RESOURCES
            raise UserError(f"state directory {self.path} is in use by another process", code) from None
        if not self.state_path.exists() or not os.path.samestat(os.fstat(fd), self.state_path.stat()):
            os.close(fd)
            raise UserError(f"state file {self.state_path} has just been replaced; start again", ExitCode.IN_USE)
        return fd


def stopped_in_order(folder: Path) -> bool | None:
    """Whether the last life of the device whose folder that is has ended in order; None: nothing there tells."""
    try:
        header = StateDirectory(folder).read_header()
    except UserError:
        return None
    return header.phase is not Phase.IN_USE if isinstance(header, Header) else None


def is_kept(mark: Mark | None) -> bool:
    """Whether the state of the device that left mark on its backup is on this host still."""
    if mark is None or not mark.name or not mark.state_dir:
        return False
    try:
        header = StateDirectory(Path(mark.state_dir) / mark.name).read_header()
    except (UserError, ValueError):  # it is not to be read by us, or no name of a file
        return False
    return isinstance(header, Header) and header.device_id == mark.device_id


def new_device_id() -> str:
    """A device id that no other device has."""
    return str(uuid.uuid4())


def _copy_lost(old: StateFile, new: StateFile) -> None:
    lost = np.uint32(int(PageFlag.LOST))
    count = 0
    for part in new.chunks():
        # What only a pending buffer had was not flushed: the backup's version is the one that counts.
        entries = old.read_pages(part)
        is_lost = (entries["meta"] & lost != 0) & (entries["checksum"] != LOST_PENDING)
        where = np.flatnonzero(is_lost) + part.start
        new.pages["meta"][where] = lost
        count += len(where)
    if count:
        log.warning("%d pages lost in an earlier failure stay unreadable until they are written again", count)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")
