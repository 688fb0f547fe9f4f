"""What the device tells about itself: tables and statistics as JSON.

Everything is read from the engine's counter arrays; nothing here touches the data path.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.eviction import EvictionCounts
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.placing import MapperCounts
from infiniswap.device.slabs import Slabs
from infiniswap.device.snapshot import choose_slabs, heat, histograms, slab_sums
from infiniswap.engine.binding import PAGE_BYTES, SOURCES, SlabState
from infiniswap.policy.activity import Activity
from infiniswap.shared.slab_choice import SlabChoice

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
SLAB_STATES = {int(state): state.name.lower() for state in SlabState}
_FAILURES = (
    "backup_errors",
    "checksum_mismatches",
    "lost_pages",
    "peers_lost",
    "slabs_lost",
    "protocol_errors",
    "request_errors",
    "read_failovers",
    "write_failovers",
    "read_retries",
)


class MeasuredEngine(Protocol):
    """What is read of the data path (binding.DeviceEngine)."""

    slabs: NDArray[Any]
    peers: NDArray[Any]
    counters: NDArray[np.uint64]
    counter_names: tuple[str, ...]
    latencies: NDArray[Any]
    peer_latencies: NDArray[Any]

    @property
    def histograms(self) -> NDArray[np.uint64]:
        """See DeviceEngine.histograms."""


def unwritten_bytes(engine: MeasuredEngine) -> int:
    """What is acknowledged and not on the backup: in pending buffers, or after a recovery with peers alone."""
    names = engine.counter_names
    return sum(int(engine.counters[names.index(name)]) for name in ("pending_pages", "only_remote_pages")) * PAGE_BYTES


class Watch(Protocol):
    """What is read of the kernel device (kernel_shim.watch.ConnectionWatch)."""

    replaced: int

    def connections(self) -> int:
        """See ConnectionWatch.connections."""

    def dead(self) -> int:
        """See ConnectionWatch.dead."""


def percentile_ns(counts: NDArray[np.uint64], floors_ns: NDArray[np.uint64], quantile: float) -> float | None:
    """The quantile (0 to 1) of a histogram in ns, interpolated inside its bucket; None of an empty one.

    counts and floors_ns have the shape (buckets,); the last bucket counts as having no width.
    """
    total = int(counts.sum())
    if total == 0:
        return None
    running = np.cumsum(counts, dtype=np.float64)
    rank = quantile * total
    bucket = min(int(np.searchsorted(running, rank, side="left")), len(counts) - 1)
    if counts[bucket] == 0:  # rank 0 stands before the first bucket that counted anything
        bucket = int(np.flatnonzero(counts)[0])
    low, high = float(floors_ns[bucket]), _edge_ns(floors_ns, bucket)
    before = float(running[bucket]) - float(counts[bucket])
    inside = min(max((rank - before) / float(counts[bucket]), 0.0), 1.0)
    return low + (high - low) * inside


def _edge_ns(floors_ns: NDArray[np.uint64], bucket: int) -> float:
    return float(floors_ns[min(bucket + 1, len(floors_ns) - 1)])


def latency_us(counts: NDArray[np.uint64], floors_ns: NDArray[np.uint64]) -> dict[str, float | int | None]:
    """Count, percentiles and maximum (upper edge of the last bucket that counted) in microseconds."""
    out: dict[str, float | int | None] = {"count": int(counts.sum())}
    for name, quantile in QUANTILES.items():
        value = percentile_ns(counts, floors_ns, quantile)
        out[name] = None if value is None else round(value / 1000, 3)
    used = np.flatnonzero(counts)
    out["max"] = round(_edge_ns(floors_ns, int(used[-1])) / 1000, 3) if len(used) else None
    return out


class Metrics:
    """Snapshots of one device."""

    def __init__(
        self,
        engine: MeasuredEngine,
        peers: Peers,
        slabs: Slabs,
        activity: Activity,
        counts: MapperCounts,
        floors_ns: NDArray[np.uint64],
    ) -> None:
        """floors_ns: binding.histogram_floors_ns()."""
        self._engine = engine
        self._peers = peers
        self._slabs = slabs
        self._activity = activity
        self._counts = counts
        self._floors_ns = floors_ns
        self.watch: Watch | None = None  # where this service may be attached to a kernel device
        self.evictions = EvictionCounts()
        self.leaving: Callable[[Peer], dict[str, Any] | None] = lambda _peer: None  # see Membership.progress

    def counters(self) -> dict[str, int]:
        """All counters of the engine by name."""
        return dict(zip(self._engine.counter_names, self._engine.counters.tolist(), strict=True))

    def histograms(self) -> list[tuple[str, NDArray[np.uint64], NDArray[np.uint64]]]:
        """Of each source: its name, how many took how long, and the lower edges of these buckets in ns."""
        counts = self._engine.histograms.copy()
        return [(source, counts[row], self._floors_ns) for row, source in enumerate(SOURCES)]

    def latencies(self) -> dict[str, NDArray[Any]]:
        """Of each source: how long all took together, and how many fell into each bucket of floors_ns."""
        return dict(zip(SOURCES, self._engine.latencies.copy(), strict=True))

    def peer_latencies(self) -> list[tuple[str, NDArray[Any]]]:
        """Of each peer its page-ins and page-outs, likewise."""
        return [(str(peer.address), self._engine.peer_latencies[peer.slot].copy()) for peer in self._peers]

    @property
    def floors_ns(self) -> NDArray[np.uint64]:
        """Lower edges of the buckets."""
        return self._floors_ns

    def facts(self) -> dict[str, float | None]:
        """All single numbers by name: the engine's counters, and what else the device counts."""
        watch = self.watch
        return {
            **self.counters(),
            "mapped_slabs": self.mapped_slabs(),
            "slabs": len(self._engine.slabs),
            **{f"eviction_{name}": value for name, value in asdict(self.evictions).items()},
            "nbd_open": None if watch is None else watch.connections() - watch.dead(),
            "nbd_dead": None if watch is None else watch.dead(),
            "nbd_connections_replaced": None if watch is None else watch.replaced,
        }

    def slabs(self, choice: SlabChoice | None = None) -> list[dict[str, Any]]:
        """One object per slab that is wanted, all of them unless choice says otherwise."""
        table = self._engine.slabs.copy()
        names = {peer.slot: str(peer.address) for peer in self._peers}
        activity = np.round(self._activity.values, 3)
        wanted = choose_slabs(choice or SlabChoice(), table, activity, self._slabs.mapping, names)
        out = []
        for index in wanted.tolist():
            row = table[index]
            state = SLAB_STATES.get(int(row["state"]), "unmapped")
            if state == "unmapped" and index in self._slabs.mapping:
                state = "mapping"
            out.append(
                {
                    "index": index,
                    "state": state,
                    "peer": names.get(int(row["peer"])),
                    "activity": float(activity[index]),
                    "remote_pages": int(row["remote_pages"]),
                    "backup_pages": int(row["backup_pages"]),
                    "pending_pages": int(row["pending_pages"]),
                    "page_ins": int(row["page_ins"]),
                    "page_outs": int(row["page_outs"]),
                }
            )
        return out

    def slab_activity(self) -> tuple[NDArray[Any], NDArray[np.float64], AbstractSet[int]]:
        """The engine's table of slabs, a copy; page I/O per second of each; those that are being mapped."""
        return self._engine.slabs.copy(), self._activity.values, self._slabs.mapping

    def mapped_slabs(self) -> int:
        """Slabs that have remote memory now."""
        return int(np.count_nonzero(self._engine.slabs["state"] != SlabState.UNMAPPED))

    def peers(self) -> list[dict[str, Any]]:
        """One object per peer, in the order of the configuration."""
        return [self._peer(peer) for peer in self._peers]

    def _peer(self, peer: Peer) -> dict[str, Any]:
        row = self._engine.peers[peer.slot]
        answered = peer.count(row, "latency_count")
        total_ns = peer.count(row, "latency_total_ns")
        known = peer.total_bytes > 0
        return {
            "peer": str(peer.address),
            "state": "slow" if peer.state == "up" and row["slow"] else peer.state,
            "stream": peer.listening,
            "lending": None if peer.lease is None else peer.standing.word,
            "version": peer.standing.version or None,
            "incarnation": None if peer.lease is None else peer.lease.incarnation,
            "slabs": len(peer.slabs),
            "free_bytes": peer.free_bytes if known else None,
            "total_bytes": peer.total_bytes if known else None,
            "reads": peer.count(row, "reads"),
            "writes": peer.count(row, "writes"),
            "failures": peer.failures + peer.count(row, "failures"),
            "mismatches": peer.count(row, "mismatches"),
            "in_flight": int(row["in_flight"]),
            "bytes_in": peer.count(row, "bytes_in"),
            "bytes_out": peer.count(row, "bytes_out"),
            "transport": peer.transport,
            "path": None if peer.path is None else str(peer.path),
            "rdma_error": peer.rdma_error or None,
            "overdue": peer.count(row, "overdue"),
            "hedge_us": int(row["hedge_us"]) or None,
            "latency_total_us": round(total_ns / 1000, 3),
            "latency_count": answered,
            "latency_mean_us": round(total_ns / answered / 1000, 3) if answered else None,
            "last_error": peer.last_error or None,
            "leaving": self.leaving(peer),
        }

    def stats(self) -> dict[str, Any]:
        """Reads by source, writes, latencies, pending bytes, mappings and failures."""
        counters = self.counters()
        histograms = self._engine.histograms.copy()
        counts = self._counts
        return {
            "reads": {source: counters[f"reads_{source}_pages"] for source in ("remote", "pending", "backup", "zero")},
            "writes": {"remote": counters["write_remote_pages"], "backup": counters["write_backup_pages"]},
            "latency_us": {source: latency_us(histograms[row], self._floors_ns) for row, source in enumerate(SOURCES)},
            "pending_bytes": unwritten_bytes(self._engine),
            "pending_limit_bytes": counters["pending_limit_pages"] * PAGE_BYTES,
            "mappings": counters["slabs_mapped"],
            "releases": counters["slabs_released"],
            "failures": {
                **{name: counters[name] for name in _FAILURES},
                "peers_lost": sum(peer.losses for peer in self._peers),  # whoever noticed
                "mappings_refused": counts.refused,
                "mappings_failed": counts.failed,
                "mappings_without_room": counts.no_room,
            },
            "evictions": asdict(self.evictions),
            "counters": counters,
        }

    def snapshot(self, cells: int) -> dict[str, Any]:
        """Statistics, histograms, peers and slabs at one moment; cells: of the heat picture at most."""
        table, mapping = self._engine.slabs.copy(), self._slabs.mapping
        return {
            "stats": self.stats(),
            "histograms_ns": histograms(self._engine.histograms.copy(), self._floors_ns),
            "peers": self.peers(),
            "slabs": slab_sums(table, mapping),
            "heat": heat(table, self._activity.values, mapping, cells),
        }
