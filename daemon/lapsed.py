"""Leases whose time is over: what they hold is nearly free, and they give way before anybody else does."""

from __future__ import annotations

from infiniswap.daemon.leases import Lease, LeaseTable


def held_bytes(lease: Lease) -> int:
    """Memory in slabs of the lease."""
    return len(lease.slabs) * lease.slab_bytes


def held_by_lapsed(leases: LeaseTable, size_bytes: int, but: Lease | None = None) -> tuple[int, int]:
    """What lapsed leases hold, but for one of them: blocks of size_bytes that come of it at least, and bytes."""
    late = [lease for lease in leases.lapsed() if lease is not but]
    return sum(len(lease.slabs) * (lease.slab_bytes // size_bytes) for lease in late), sum(map(held_bytes, late))


def due(leases: LeaseTable, short_bytes: int) -> list[Lease]:
    """Leases to end now: those whose grace is over, and while that is less than the host is short of, lapsed ones."""
    late = leases.expired()
    short_bytes -= sum(map(held_bytes, late))
    for lease in leases.lapsed():
        if short_bytes > 0 and lease.slabs and lease not in late:
            late.append(lease)
            short_bytes -= held_bytes(lease)
    return late
