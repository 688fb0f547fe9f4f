"""Sealed pages, as far as a start has to do with them: the file of seals beside the state file, and its root key.

The file is made with each new state file, with a salt drawn for it, so its keys are new whatever the root key is; a
recovery goes on with it. Its serial is stored by the engine before it is used, and outlives a killed process in the
mapping as the page table does: no serial is used twice, so no nonce for one key (docs/security.md has the whole proof).
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.config import DeviceConfig
from infiniswap.device.root_key import draw_key, is_in_memory, read_key_file, wipe
from infiniswap.device.state import DamagedState, Header, StateFile
from infiniswap.device.verdict import WAY_OUT, Start
from infiniswap.engine.binding import OP_PAGES_MAX, OPS, PAGE_BYTES, crc32c
from infiniswap.engine.sealer import CHECK_BYTES, SALT_BYTES, SEAL_DTYPE, Sealer, seals_layout
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import create_new, replace_file

log = logging.getLogger(__name__)

NOWHERE_TO_KEEP = (
    "peers may be on other hosts, so pages are sealed, but their key can be kept nowhere, and a crash would lose what "
    "is not on the backup yet: give --encrypt-key-file FILE, or a --state-dir in memory (in /run), or --no-encrypt"
)
MAGIC = b"ISWSEALS"
VERSION = 1
_BEGIN = struct.Struct("<8sII")  # magic, version, CRC32C of _BODY
_BODY = struct.Struct(f"<Q40s{SALT_BYTES}s{CHECK_BYTES}sI4x")
_HEADER_BYTES = _BEGIN.size + _BODY.size + 8  # the serial


class Kept(IntEnum):
    """Where the root key is for the time after a crash."""

    NOWHERE = 0
    STATE_DIRECTORY = 1  # which is in memory
    FILE = 2  # --encrypt-key-file


@dataclass(frozen=True, slots=True)
class SealsHeader:
    """What the file of seals begins with (struct isw_seals_header), without the serial."""

    size_bytes: int
    life: str
    salt: bytes
    check: bytes
    kept: Kept

    def pack(self) -> bytes:
        """As in the file."""
        body = _BODY.pack(self.size_bytes, self.life.encode(), self.salt, self.check, self.kept)
        return _BEGIN.pack(MAGIC, VERSION, crc32c(body)) + body + bytes(8)

    @classmethod
    def parse(cls, raw: bytes, file_bytes: int) -> SealsHeader:
        """ValueError when the file of file_bytes that begins with raw cannot be used."""
        if len(raw) < _HEADER_BYTES or raw[:8] != MAGIC:
            raise ValueError("it does not begin as a file of seals does")
        _, version, checksum = _BEGIN.unpack_from(raw)
        if version != VERSION:
            raise ValueError(f"it is of version {version}, which this program does not know")
        if checksum != crc32c(raw[_BEGIN.size : _BEGIN.size + _BODY.size]):
            raise ValueError("its checksum is wrong")
        size_bytes, life, salt, check, kept = _BODY.unpack_from(raw, _BEGIN.size)
        if file_bytes != seals_layout(size_bytes).total_bytes:
            raise ValueError("it has the wrong length")
        return cls(size_bytes, life.rstrip(b"\0").decode("ascii", "replace"), salt, check, Kept(kept))


@dataclass(slots=True)
class SealingPlan:
    """How a start seals. past: the file that it goes on with; None: a new one. lost: nothing opens what is at peers."""

    path: Path
    key: bytearray
    kept: Kept
    past: SealsHeader | None = None
    lost: bool = False


def plan_sealing(
    config: DeviceConfig,
    directory: Path,
    header: Header | DamagedState | None,
    start: Start,
    *,
    by_default: bool = False,
) -> SealingPlan | None:
    """Find the root key, and what the last life left. None: pages travel as they are. Changes nothing; UserError.

    header, start: of the state file in the directory, and what is to be made of it. by_default: nobody has asked for
    this, so a key that a crash would lose is refused.
    """
    if not config.encrypt:
        return None
    path = directory / "seals"
    given = None if config.encrypt_key_file is None else read_key_file(config.encrypt_key_file)
    plan = SealingPlan(path, given or draw_key(), Kept.NOWHERE if given is None else Kept.FILE)
    past = None if start is not Start.RECOVER else _read(path, header)
    if by_default and (past is None or past.kept is Kept.NOWHERE) and not is_in_memory(_existing(directory)):
        raise UserError(NOWHERE_TO_KEEP, ExitCode.REFUSED)
    if past is None:
        return plan
    if past.kept is Kept.NOWHERE:  # whatever is given, it is another one
        log.error("the key of the pages at peers ended with the process that had it: what only they had is lost")
        plan.lost = True
        return plan
    plan.past, plan.kept = past, past.kept
    if past.kept is Kept.STATE_DIRECTORY:
        plan.key = read_key_file(path.with_name("key"), kept=True)
    elif given is None:
        raise UserError(
            "this device was not closed in order, and its pages at peers are sealed with the key of a file: give that "
            f"with --encrypt-key-file, {WAY_OUT}",
            ExitCode.REFUSED,
        )
    sealer = Sealer(plan.key, past.salt)
    sealer.close()
    if sealer.check != past.check:
        where = config.encrypt_key_file if past.kept is Kept.FILE else path.with_name("key")
        raise UserError(
            f"the key in {where} is not the one that this device's pages at peers are sealed with: give that one, "
            f"{WAY_OUT}",
            ExitCode.REFUSED,
        )
    return plan


def _existing(path: Path) -> Path:
    """The folder, or where it is going to be."""
    return next(each for each in (path, *path.parents) if each.exists())


def _read(path: Path, own: Header | DamagedState | None) -> SealsHeader:
    try:
        with path.open("rb") as stream:
            header = SealsHeader.parse(stream.read(_HEADER_BYTES), os.fstat(stream.fileno()).st_size)
        if not isinstance(own, Header) or (header.life, header.size_bytes) != (own.life, own.size_bytes):
            raise ValueError("it belongs to another state file")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"this device was not closed in order, and {path}, without which its pages at peers cannot be opened, is "
            f"of no use ({reason}): put it back, {WAY_OUT}",
            ExitCode.REFUSED,
        ) from None
    return header


class Seals:
    """The mapped file of seals, and the root key until the engine has it."""

    def __init__(self, fd: int, header: SealsHeader, key: bytearray, path: Path) -> None:
        """Take over fd."""
        self._fd, self._path, self.header, self.key = fd, path, header, key
        self._sealers: list[Sealer] = []
        layout = seals_layout(header.size_bytes)
        self.mapping = mmap.mmap(fd, layout.total_bytes)
        pages = header.size_bytes // PAGE_BYTES
        self.pages: NDArray[Any] = np.frombuffer(self.mapping, SEAL_DTYPE, pages, layout.pages_offset)
        flat = np.frombuffer(self.mapping, SEAL_DTYPE, OPS * OP_PAGES_MAX, layout.intents_offset)
        self.intents: NDArray[Any] = flat.reshape(OPS, OP_PAGES_MAX)

    def reader(self, state: StateFile) -> Callable[[int, memoryview], int | None]:
        """What recovery asks of a half-written page: the checksum of what it reads as, None when no seal opens it.

        state: as the dead device left it. Where the version under way opens it the page gets its
        seal. Blocking; of no more use once the key is wiped.
        """
        sealer = Sealer(self.key, self.header.salt)
        self._sealers.append(sealer)
        checksum = state.checksum
        intents = state.intents
        under_way: dict[int, list[tuple[int, int]]] = {}
        for slot in np.flatnonzero(intents["pages"]):
            for index in range(min(int(intents["pages"][slot]), OP_PAGES_MAX)):
                under_way.setdefault(int(intents["first_page"][slot]) + index, []).append((int(slot), index))

        def opened(page: int, seal: Any, data: memoryview) -> bytes | None:
            serial = int(seal["serial"][0]) | int(seal["serial"][1]) << 32
            return sealer.open(page, serial, seal["tag"].tobytes(), data)

        def read_as(page: int, data: memoryview) -> int | None:
            plain = opened(page, self.pages[page], data)
            for slot, index in under_way.get(page, ()) if plain is None else ():
                plain = opened(page, self.intents[slot, index], data)
                if plain is not None:
                    self.pages[page] = self.intents[slot, index]
                    break
            return None if plain is None else checksum(plain)

        return read_as

    def wipe_key(self) -> None:
        """The engine has it."""
        wipe(self.key)
        while self._sealers:
            self._sealers.pop().close()

    def forget_key(self) -> None:
        """After an orderly stop nothing is at peers: a key kept in the state directory is of no more use."""
        if self.header.kept is Kept.STATE_DIRECTORY:
            with contextlib.suppress(OSError):
                self._path.with_name("key").unlink()

    def close(self) -> None:
        """Unmap; views and the engine must be gone by then."""
        if self._fd < 0:
            return
        self.wipe_key()
        del self.pages, self.intents
        with contextlib.suppress(BufferError):  # a failed start may still hold a view in its traceback
            self.mapping.close()
        os.close(self._fd)
        self._fd = -1


def open_seals(plan: SealingPlan, past: SealsHeader) -> Seals:
    """The file that a killed device left, with its key. UserError."""
    try:
        return Seals(os.open(plan.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), past, plan.key, plan.path)
    except OSError as error:
        raise UserError(f"cannot open {plan.path}: {error.strerror}", ExitCode.RESOURCES) from None


def make_seals(plan: SealingPlan, state: StateFile, size_bytes: int) -> Seals:
    """A new file of seals for this state file, in place of any old one; keeps the key where that is safe. UserError."""
    if plan.kept is not Kept.FILE and is_in_memory(plan.path.parent):
        plan.kept = Kept.STATE_DIRECTORY
    salt = os.urandom(SALT_BYTES)
    sealer = Sealer(plan.key, salt)
    sealer.close()
    header = SealsHeader(size_bytes, state.life, salt, sealer.check, plan.kept)
    new = plan.path.with_suffix(".new")
    try:
        if plan.kept is Kept.STATE_DIRECTORY:
            replace_file(plan.path.with_name("key"), plan.key)
        fd = create_new(new, write_only=False)
        try:
            # Allocated in full: a table that hits a full disk later would kill the process with SIGBUS.
            os.posix_fallocate(fd, 0, seals_layout(size_bytes).total_bytes)
            os.pwrite(fd, header.pack(), 0)
            new.rename(plan.path)
            seals = Seals(fd, header, plan.key, plan.path)
        except BaseException:
            os.close(fd)
            new.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot create {plan.path}: {error.strerror}", ExitCode.RESOURCES) from None
    if plan.kept is Kept.NOWHERE:
        log.warning(
            "pages at peers are sealed with a key that only this process has: after a crash what was not on the backup "
            "yet is lost; --encrypt-key-file keeps it"
        )
    return seals
