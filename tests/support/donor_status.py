"""A memory daemon's status as its administrators' commands read it."""

from __future__ import annotations

from typing import Any

from infiniswap.shared.operator_messages import (
    DonorState,
    DonorStatus,
    Drain,
    DrainState,
    Holding,
    Host,
    LeaseShown,
    Memory,
)

MIB, GIB = 1 << 20, 1 << 30
VOL = Holding("vol", "10.0.0.7", 3, 64 * MIB)
SWAP = Holding("swap0", "10.0.0.8", 1, 64 * MIB)


def donor_status(**changes: Any) -> DonorStatus:
    """Two devices hold four slabs of a daemon that lends; changes: fields that are otherwise."""
    values: dict[str, Any] = {
        "version": "0.1.0",
        "incarnation": "a1b2c3d4" * 4,
        "uptime_s": 3725.5,
        "state": DonorState.LENDING,
        "memory": Memory(
            limit_bytes=4 * GIB,
            lendable_bytes=3 * GIB,
            lent_bytes=256 * MIB,
            used_bytes=320 * MIB,
            free_bytes=2 * GIB,
            occupied_bytes=200 * MIB,
        ),
        "host": Host(64 * GIB, 40 * GIB, 6 * GIB, 0.5),
        "leases": (LeaseShown("11aa", VOL, 2, 58.25), LeaseShown("22bb", SWAP, 2, 0.0)),
        "evicted": 12,
        "evicted_by_force": 3,
        "drain": None,
        **changes,
    }
    return DonorStatus(**values)


def drain(state: DrainState = DrainState.RUNNING, **changes: Any) -> Drain:
    """One of six slabs, of which two have gone; changes: fields that are otherwise."""
    values: dict[str, Any] = {"slabs": 6, "left": 4, "elapsed_s": 3.25, "deadline_in_s": 596.75, **changes}
    return Drain(state=state, **values)
