"""The lease table in a memfd that outlives the daemon: who holds which block of the slab memory.

It is written so that a kill at any moment leaves a table that holds: whatever becomes true, becomes so by one store of
eight bytes, which is made or not. What was written before it, and is not true yet, is looked at by nobody.

    page 0             what memory this is, for which incarnation, under which ports, and whether it is cordoned
    a page a lease     a word (length and CRC of the text; 0: no lease), the deadline, the text
    a word a block     which lease's which slab begins here (0: nobody's)

A lease ends by its word; words of blocks that name a lease which is not there belong to nobody. A map is told to the
device after it is here, and a block is cleared after it is gone from here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from infiniswap.daemon.allocator import is_block_size
from infiniswap.daemon.arena import SEALS
from infiniswap.daemon.leases import PAGE_BYTES, Lease

MAGIC = int.from_bytes(b"iswlease", "little")
VERSION = 1
_PAGE_WORDS = PAGE_BYTES // 8
_TEXT_BYTES_MAX = PAGE_BYTES - 16  # behind the word and the deadline
_MAGIC, _VERSION, _TOTAL, _BLOCK, _LEASES, _INODE, _ID_HIGH, _ID_LOW, _CHECK, _PORTS, _TICK, _CORDON = range(12)
_CORDONED = int.from_bytes(b"cordoned", "little")  # 0: it lends, which is also what an older daemon left there
_PUNCHABLE = 1 << 47
_SLOT_BITS = 15
_NS = 1_000_000_000
_INCARNATION = re.compile(r"[0-9a-f]{32}")


class RecordError(Exception):
    """A table that cannot be used; the message is part of a sentence: "the memory kept ..."."""


@dataclass(slots=True)
class Restored:
    """What the table says of the daemon before; each lease has its slabs, and no export yet."""

    incarnation: str
    http_port: int
    data_port: int
    cordoned: bool = False
    leases: list[tuple[Lease, float]] = field(default_factory=list)  # with the seconds that it had left, or below 0


class Record(Protocol):
    """What the lender tells, in the moment in which it is true."""

    def granted(self, lease: Lease) -> None:
        """A new lease."""

    def ended(self, lease: Lease) -> None:
        """A lease is no more, nor are its slabs."""

    def mapped(self, lease: Lease, index: int) -> None:
        """A slab has its block."""

    def unmapped(self, offset: int) -> None:
        """The block at offset is no slab any more."""

    def cordoned(self, cordoned: bool) -> None:
        """Whether nothing new is lent."""


class NoRecord:
    """Where nothing outlives the daemon."""

    def granted(self, lease: Lease) -> None:
        """Nothing."""

    def ended(self, lease: Lease) -> None:
        """Nothing."""

    def mapped(self, lease: Lease, index: int) -> None:
        """Nothing."""

    def unmapped(self, offset: int) -> None:
        """Nothing."""

    def cordoned(self, cordoned: bool) -> None:
        """Nothing."""


def record_bytes(total_bytes: int, block_bytes: int, leases_max: int) -> int:
    """Size of the table for so much slab memory."""
    blocks = total_bytes // block_bytes
    return PAGE_BYTES * (1 + leases_max) + -(-8 * blocks // PAGE_BYTES) * PAGE_BYTES


class LeaseRecord:
    """The table; used from one thread. fd is its memfd."""

    def __init__(self, fd: int, *, total_bytes: int, block_bytes: int, leases_max: int) -> None:
        """Map the table behind fd, which belongs to it from now on; OSError."""
        self.fd = fd
        self._total_bytes = total_bytes
        self._block_bytes = block_bytes
        self._leases_max = leases_max
        self._slots: dict[str, int] = {}
        self._map = mmap.mmap(fd, record_bytes(total_bytes, block_bytes, leases_max))
        self._words = memoryview(self._map).cast("Q")
        self._blocks_at = _PAGE_WORDS * (1 + leases_max)

    # ---- the two ways in which it changes; a test makes them fail ----

    def _store(self, word: int, value: int) -> None:
        """One aligned store of eight bytes: made, or not made."""
        self._words[word] = value

    def _write(self, word: int, text: bytes) -> None:
        """Bytes that nobody looks at yet; may stop anywhere."""
        self._map[8 * word : 8 * word + len(text)] = text

    # ---- making and finding it ----

    @classmethod
    def create(
        cls, *, total_bytes: int, block_bytes: int, leases_max: int, slabs_inode: int, incarnation: str
    ) -> LeaseRecord:
        """An empty table for the slab memory of that inode; OSError without memory."""
        fd = os.memfd_create("infiniswap-leases", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, record_bytes(total_bytes, block_bytes, leases_max))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            record = cls(fd, total_bytes=total_bytes, block_bytes=block_bytes, leases_max=leases_max)
        except BaseException:
            os.close(fd)
            raise
        record._begin(slabs_inode, incarnation)
        return record

    def _begin(self, slabs_inode: int, incarnation: str) -> None:
        if _INCARNATION.fullmatch(incarnation) is None:
            raise ValueError("an incarnation is 32 hexadecimal digits")
        high, low = int(incarnation[:16], 16), int(incarnation[16:], 16)
        head = [VERSION, self._total_bytes, self._block_bytes, self._leases_max, slabs_inode, high, low]
        for word, value in enumerate(head, _VERSION):
            self._store(word, value)
        self._store(_CHECK, self._head_check())
        self._store(_MAGIC, MAGIC)

    def _head_check(self) -> int:
        return zlib.crc32(self._map[8 * _VERSION : 8 * _CHECK])

    def read(self, slabs_inode: int) -> Restored:
        """What the table holds; RecordError. What is half ended in it is ended."""
        words = self._words
        if words[_MAGIC] != MAGIC:
            raise RecordError("was never complete")
        if words[_VERSION] != VERSION:
            raise RecordError(f"is of version {words[_VERSION]}, and this is version {VERSION}")
        if words[_CHECK] != self._head_check():
            raise RecordError("is damaged: its head does not hold")
        head = (words[_TOTAL], words[_BLOCK], words[_LEASES])
        if head != (self._total_bytes, self._block_bytes, self._leases_max):
            raise RecordError(f"is {words[_TOTAL]} bytes in blocks of {words[_BLOCK]}, which is not what is asked for")
        if words[_INODE] != slabs_inode:
            raise RecordError("is damaged: leases and slabs do not belong together")
        ports = words[_PORTS]
        if ports and ports >> 32 != zlib.crc32((ports & 0xFFFFFFFF).to_bytes(4, "little")):
            raise RecordError("is damaged: its ports do not hold")
        if words[_CORDON] not in (0, _CORDONED):
            raise RecordError("is damaged: whether it lends does not hold")
        found = {slot: self._lease(slot) for slot in range(self._leases_max) if self._words[self._slot_at(slot)]}
        if len({lease.lease_id for lease in found.values()}) < len(found):
            raise RecordError("is damaged: a lease is there twice")
        self._read_blocks(found)
        self._slots = {lease.lease_id: slot for slot, lease in found.items()}
        left = {slot: (words[self._slot_at(slot) + 1] - words[_TICK]) / _NS for slot in found}
        return Restored(
            incarnation=f"{words[_ID_HIGH]:016x}{words[_ID_LOW]:016x}",
            http_port=ports >> 16 & 0xFFFF,
            data_port=ports & 0xFFFF,
            cordoned=words[_CORDON] == _CORDONED,
            leases=[(lease, left[slot]) for slot, lease in found.items()],
        )

    def _lease(self, slot: int) -> Lease:
        at = self._slot_at(slot)
        length, check = self._words[at] >> 32, self._words[at] & 0xFFFFFFFF
        text = self._map[8 * (at + 2) : 8 * (at + 2) + min(length, _TEXT_BYTES_MAX)]
        if length > _TEXT_BYTES_MAX or zlib.crc32(text) != check:
            raise RecordError(f"is damaged: lease {slot} does not hold")
        try:
            lease = _parse(json.loads(text))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise RecordError(f"is damaged: lease {slot} is none") from None
        if lease.slab_bytes < self._block_bytes:
            raise RecordError(f"is damaged: lease {slot} has slabs smaller than a block")
        return lease

    def _read_blocks(self, leases: dict[int, Lease]) -> None:
        taken_until = 0
        for block in range(self._total_bytes // self._block_bytes):
            word = self._words[self._blocks_at + block]
            if not word:
                continue
            low = word & (1 << 48) - 1
            if word >> 48 != _block_check(block, low):
                raise RecordError(f"is damaged: block {block} does not hold")
            lease = leases.get(low >> 32 & (1 << _SLOT_BITS) - 1)
            if lease is None:  # it ended, and the kill came before its blocks were through
                self._store(self._blocks_at + block, 0)
                continue
            offset, index = block * self._block_bytes, low & 0xFFFFFFFF
            wrong = offset % lease.slab_bytes or offset + lease.slab_bytes > self._total_bytes or offset < taken_until
            if wrong or index >= lease.slab_count or index in lease.slabs:
                raise RecordError(f"is damaged: block {block} cannot be what it says")
            taken_until = offset + lease.slab_bytes
            lease.slabs[index] = offset
            if low & _PUNCHABLE:
                lease.punchable.add(index)

    # ---- what becomes true ----

    def ports(self, http_port: int, data_port: int) -> None:
        """Where the daemon is reached, and will be after a restart."""
        low = http_port << 16 | data_port
        self._store(_PORTS, zlib.crc32(low.to_bytes(4, "little")) << 32 | low)

    def granted(self, lease: Lease) -> None:
        """See Record."""
        slot = next(slot for slot in range(self._leases_max) if not self._words[self._slot_at(slot)])
        at = self._slot_at(slot)
        text = json.dumps(_as_json(lease), ensure_ascii=False).encode()
        if len(text) > _TEXT_BYTES_MAX:
            raise ValueError(f"a lease of {len(text)} bytes does not fit")
        self._write(at + 2, text)
        self._store(at + 1, int(lease.deadline_s * _NS))
        self._slots[lease.lease_id] = slot
        self._store(at, len(text) << 32 | zlib.crc32(text))

    def ended(self, lease: Lease) -> None:
        """See Record. Before the slot is another lease's, no block names it any more."""
        slot = self._slots.pop(lease.lease_id, None)
        if slot is None:
            return
        self._store(self._slot_at(slot), 0)
        for offset in lease.slabs.values():
            self.unmapped(offset)

    def mapped(self, lease: Lease, index: int) -> None:
        """See Record."""
        block = lease.slabs[index] // self._block_bytes
        low = self._slots[lease.lease_id] << 32 | index | (_PUNCHABLE if index in lease.punchable else 0)
        self._store(self._blocks_at + block, _block_check(block, low) << 48 | low)

    def unmapped(self, offset: int) -> None:
        """See Record."""
        self._store(self._blocks_at + offset // self._block_bytes, 0)

    def cordoned(self, cordoned: bool) -> None:
        """See Record."""
        self._store(_CORDON, _CORDONED if cordoned else 0)

    def tick(self, now_s: float, leases: Iterable[Lease]) -> None:
        """The daemon is alive now: what is left of each lease is counted from the last tick."""
        for lease in leases:
            slot = self._slots.get(lease.lease_id)
            if slot is not None:
                self._store(self._slot_at(slot) + 1, int(lease.deadline_s * _NS))
        self._store(_TICK, int(now_s * _NS))

    def close(self) -> None:
        """Let go of it; who else has the descriptor keeps it."""
        if self.fd >= 0:
            self._words.release()
            self._map.close()
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1

    def _slot_at(self, slot: int) -> int:
        return _PAGE_WORDS * (1 + slot)


def _block_check(block: int, low: int) -> int:
    """16 bits that are never 0, so that no word of a slab is."""
    return zlib.crc32(block.to_bytes(8, "little") + low.to_bytes(8, "little")) & 0xFFFF | 1


def _as_json(lease: Lease) -> dict[str, Any]:
    return {
        "lease": lease.lease_id,
        "digest": lease.token_digest.hex(),
        "device": lease.device,
        "device_id": lease.device_id,
        "size_bytes": lease.size_bytes,
        "slab_bytes": lease.slab_bytes,
        "host": lease.host,
        "owner": lease.owner,
    }


def _parse(content: dict[str, Any]) -> Lease:
    lease = Lease(
        lease_id=str(content["lease"]),
        token_digest=bytes.fromhex(content["digest"]),
        device=str(content["device"]),
        device_id=str(content["device_id"]),
        size_bytes=int(content["size_bytes"]),
        slab_bytes=int(content["slab_bytes"]),
        created_s=0.0,
        deadline_s=0.0,
        host=str(content["host"]),
        owner=str(content.get("owner", "")),  # a daemon from before certificates wrote none
    )
    sizes_hold = lease.size_bytes > 0 and is_block_size(lease.slab_bytes)
    if not lease.lease_id or len(lease.token_digest) != hashlib.sha256().digest_size or not sizes_hold:
        raise ValueError
    return lease
