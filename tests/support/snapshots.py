"""Snapshots of a device as GET /v1/snapshot answers them, without a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SOURCES = ("remote", "pending", "backup", "zero", "write_remote", "write_backup", "flush")


def peer(address: str = "10.0.0.5:7401", **changes: Any) -> dict[str, Any]:
    """A peer that is up and has served nothing."""
    row: dict[str, Any] = {
        "peer": address, "state": "up", "stream": True, "lending": "lending", "version": "1", "incarnation": "ab",
        "slabs": 0, "free_bytes": 1 << 30, "total_bytes": 2 << 30, "reads": 0, "writes": 0, "failures": 0,
        "mismatches": 0, "in_flight": 0, "bytes_in": 0, "bytes_out": 0, "transport": "tcp", "path": None,
        "rdma_error": None, "overdue": 0, "hedge_us": None, "latency_total_us": 0.0, "latency_count": 0,
        "latency_mean_us": None, "last_error": None,
    }  # fmt: skip
    return {**row, **changes}


def snapshot(
    name: str = "vol",
    *,
    uptime_s: float = 10.0,
    pid: int = 7,
    reads: dict[str, int] | None = None,
    writes: dict[str, int] | None = None,
    counters: dict[str, int] | None = None,
    failures: dict[str, int] | None = None,
    histograms: dict[str, list[list[int]]] | None = None,
    peers: Sequence[dict[str, Any]] = (),
    pending_bytes: int = 0,
    slabs: int = 64,
    **status: Any,
) -> dict[str, Any]:
    """All counters are 0 unless given; reads and writes are pages by source."""
    zeroes = ("unreadable_pages", "doubtful_pages", "only_remote_pages", "broken_invariants", "pending_waits")
    return {
        "status": {
            "name": name, "pid": pid, "uptime_s": uptime_s, "state": "serving", "connections": 1, "slabs": slabs,
            "size_bytes": slabs << 24, "slab_bytes": 16 << 20, "mapped_slabs": 0, "backup": "/data/vol.img",
            "backup_state": "good", "backup_problems": [], "peers": len(peers), **status,
        },
        "stats": {
            "reads": {source: (reads or {}).get(source, 0) for source in SOURCES[:4]},
            "writes": {source: (writes or {}).get(source, 0) for source in ("remote", "backup")},
            "pending_bytes": pending_bytes,
            "pending_limit_bytes": 64 << 20,
            "failures": {"peers_lost": 0, "checksum_mismatches": 0, **(failures or {})},
            "counters": {"read_requests": 0, "write_requests": 0, **dict.fromkeys(zeroes, 0), **(counters or {})},
        },
        "histograms_ns": {source: (histograms or {}).get(source, []) for source in SOURCES},
        "peers": list(peers),
        "slabs": {
            "mapped": 0, "mapping": 0, "draining": 0, "unmapped": slabs, "unmapped_used": 0,
            "remote_pages": 0, "backup_pages": 0, "pending_pages": 0,
        },
        "heat": {
            "slabs_per_cell": 1, "activity": [0.0] * slabs, "mapped": [0] * slabs, "changing": [0] * slabs,
            "used": [0] * slabs,
        },
    }  # fmt: skip
