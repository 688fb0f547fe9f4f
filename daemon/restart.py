"""A daemon's memory at its start: what the daemon before it has left with a keeper, if it can be used, and else new.

What cannot be used is let go, with a sentence in the log, and the new memory has a new incarnation: devices see that
their pages are gone as soon as they ask.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets

from infiniswap.daemon.allocator import BLOCK_BYTES_MIN
from infiniswap.daemon.arena import SEALS, Arena, huge_page_bytes
from infiniswap.daemon.keeper import Keeper, Kept
from infiniswap.daemon.leases import Lease
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.record import LeaseRecord, RecordError, Restored, record_bytes
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)


class KeptMemory:
    """Slabs and their record, from before or new. find(), then open_arena(), then keep(); close() whatever happened."""

    def __init__(self, keeper: Keeper, *, huge_pages: bool, leases_max: int) -> None:
        """Nothing is taken yet."""
        self.restored: Restored | None = None
        self.record: LeaseRecord | None = None  # None: nothing is kept
        self.incarnation = secrets.token_hex(16)
        self._keeper = keeper
        self._total_bytes = 0
        self._huge_pages = huge_pages
        self._leases_max = leases_max
        self._slabs_fd: int | None = None

    def find(self, asked_bytes: int | None) -> Restored | None:
        """What the daemon before has left. UserError: another daemon has it. Waits for one that is just ending.

        asked_bytes: of slab memory; None: as much as there is.
        """
        kept = self._keeper.take()
        if kept is None:
            return None
        try:
            self._open(kept, asked_bytes)
        except (RecordError, OSError) as error:
            log.warning("the memory kept %s: starting without it, and without its leases", error)
            self.drop()
        return self.restored

    def _open(self, kept: Kept, asked_bytes: int | None) -> None:
        self._slabs_fd = kept.slabs
        try:
            block_bytes = self._check(kept, asked_bytes)
            self.record = LeaseRecord(
                kept.leases, total_bytes=self._total_bytes, block_bytes=block_bytes, leases_max=self._leases_max
            )
        except BaseException:
            os.close(kept.leases)
            raise
        self.restored = self.record.read(os.fstat(kept.slabs).st_ino)
        self.incarnation = self.restored.incarnation

    def _check(self, kept: Kept, asked_bytes: int | None) -> int:
        """Whether the descriptors are what they should be; the size of the smallest block."""
        for fd in kept:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
                raise RecordError("can be cut short by others")
        size_bytes = os.fstat(kept.slabs).st_size
        if asked_bytes not in (None, size_bytes):
            raise RecordError(f"is {format_size(size_bytes)} and --memory asks for {format_size(asked_bytes or 0)}")
        self._total_bytes = size_bytes
        block_bytes = max(BLOCK_BYTES_MIN, huge_page_bytes()) if self._huge_pages else BLOCK_BYTES_MIN
        if (os.fstatvfs(kept.slabs).f_bsize >= BLOCK_BYTES_MIN) != self._huge_pages:
            raise RecordError(f"is {'not ' if self._huge_pages else ''}of huge pages")
        if os.fstat(kept.leases).st_size != record_bytes(size_bytes, block_bytes, self._leases_max):
            raise RecordError("has a table of leases of another size")
        return block_bytes

    def drop(self) -> None:
        """Do without what was found."""
        self.restored = None
        self.incarnation = secrets.token_hex(16)
        self.close()

    def open_arena(self, total_bytes: int) -> Arena:
        """The slabs, new ones of total_bytes where nothing was found; UserError without memory."""
        fd, self._slabs_fd = self._slabs_fd, None
        if fd is None:
            self._total_bytes = total_bytes
        arena = Arena(self._total_bytes, huge_pages=self._huge_pages, fd=fd)
        if self.record is None and self._keeper.keeps:
            try:
                self.record = LeaseRecord.create(
                    total_bytes=self._total_bytes,
                    block_bytes=arena.allocator.minimum_bytes,
                    leases_max=self._leases_max,
                    slabs_inode=os.fstat(arena.fd).st_ino,
                    incarnation=self.incarnation,
                )
            except OSError as error:
                arena.close()
                raise UserError(f"no memory for the table of leases: {error}", ExitCode.RESOURCES) from error
        return arena

    def keep(self, arena: Arena, *, http_port: int, data_port: int) -> None:
        """Hand it to the keeper, if it is not there already: from now on it outlives the daemon."""
        if self.record is not None:
            self.record.ports(http_port, data_port)
            if self.restored is None:
                self._keeper.keep(Kept(arena.fd, self.record.fd))

    def close(self) -> None:
        """Let go of the record, and of slabs that no arena has."""
        if self.record is not None:
            self.record.close()
            self.record = None
        if self._slabs_fd is not None:
            os.close(self._slabs_fd)
            self._slabs_fd = None


async def take_up(lender: Lender, leases: list[tuple[Lease, float]]) -> None:
    """Go on with the leases of the daemon before this one, over its memory.

    What is in no slab is cleared before it is free; huge pages, which takes long, while the daemon serves already.
    """
    for lease, remaining_s in leases:
        try:
            lender.take_up(lease, remaining_s)
        except OSError as error:
            log.warning("lease %s cannot be taken up after the restart: %s", lease.lease_id, error)
    allocator = lender.arena.allocator
    clearing = []
    for offset, size in sorted(allocator.blocks()[1].items()):
        allocator.claim(offset, size)
        clearing += lender.clearing.begin([offset], size)
    if clearing and not lender.arena.huge_pages:
        await asyncio.wait(clearing)
