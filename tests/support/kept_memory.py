"""Kept memory in a test: records that are killed at a step, and what a record says as plain values."""

from __future__ import annotations

import os

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.record import LeaseRecord, Restored
from tests.support.daemon_api import MIB

BLOCKS = 16
LEASES_MAX = 4
INODE = 7
INCARNATION = "0123456789abcdef" * 2

Shown = dict[str, tuple[dict[int, int], set[int]]]  # lease -> its slabs, and those of them that may be punched out


class KilledError(Exception):
    """The process is no more."""


class MortalRecord(LeaseRecord):
    """Lives for so many steps; a write of text stops in its middle, a store is made or not."""

    steps_left: int | None = None

    def _alive(self) -> bool:
        if self.steps_left is None:
            return True
        self.steps_left -= 1
        return self.steps_left >= 0

    def _store(self, word: int, value: int) -> None:
        if not self._alive():
            raise KilledError
        super()._store(word, value)

    def _write(self, word: int, text: bytes) -> None:
        if not self._alive():
            super()._write(word, text[: len(text) // 2])
            raise KilledError
        super()._write(word, text)


def make_record(kind: type[LeaseRecord] = LeaseRecord) -> LeaseRecord:
    """An empty record of 16 blocks of 1 MiB."""
    return kind.create(
        total_bytes=BLOCKS * MIB,
        block_bytes=MIB,
        leases_max=LEASES_MAX,
        slabs_inode=INODE,
        incarnation=INCARNATION,
    )


def reopened(record: LeaseRecord) -> LeaseRecord:
    """The same memory, as the next daemon gets it."""
    return LeaseRecord(os.dup(record.fd), total_bytes=BLOCKS * MIB, block_bytes=MIB, leases_max=LEASES_MAX)


def make_lease(number: int, slab_bytes: int = MIB, device: str = "vol") -> Lease:
    """A lease of eight slabs that nobody granted."""
    return Lease(
        lease_id=f"{number:016x}",
        token_digest=bytes([number]) * 32,
        device=device,
        device_id="0f6a2c1e-5d5b-4a39-9a3c-6f1b7c1d2e30",
        size_bytes=8 * slab_bytes,
        slab_bytes=slab_bytes,
        created_s=0.0,
        deadline_s=10.0,
        host="::1",
        owner="web1",
    )


def shown(restored: Restored) -> Shown:
    """What it says of leases."""
    return {lease.lease_id: (dict(lease.slabs), set(lease.punchable)) for lease, _ in restored.leases}
