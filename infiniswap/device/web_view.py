"""What a device's web page shows: how it stands now, and each interval's page I/O by source and latencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.heat import picture
from infiniswap.device.metrics import Metrics, percentile_ns
from infiniswap.engine.binding import PAGE_BYTES
from infiniswap.policy.health import of_device
from infiniswap.shared.clock import Clock

IN_SOURCES = ("remote", "pending", "backup", "zero")
OUT_TARGETS = ("remote", "backup")
SHOWN_LATENCIES = ("remote", "backup", "write_remote", "write_backup")
_PEER_FIELDS = ("peer", "state", "transport", "lending", "slabs", "free_bytes", "total_bytes", "failures", "in_flight")


class DeviceView:
    """The device as its page shows it. Reads counters alone; nothing here touches the data path."""

    def __init__(self, metrics: Metrics, status: Callable[[], dict[str, Any]], clock: Clock) -> None:
        """status: as GET /v1/status answers; clock: monotonic seconds."""
        self._metrics = metrics
        self._status = status
        self._clock = clock
        self._begun_s = self._seen_s = clock()
        self._counters = metrics.counters()
        self._latencies = {source: counts for source, counts, _ in metrics.histograms()}
        self._peers: dict[str, tuple[int, int]] = {}  # latency count and total of each, as last seen

    def sample(self) -> dict[str, Any]:
        """Rates and latencies since the last call; page I/O in pages a second, latencies in microseconds or None."""
        now_s, counters, histograms = self._clock(), self._metrics.counters(), self._metrics.histograms()
        elapsed_s = max(now_s - self._seen_s, 1e-3)

        def rate(name: str) -> float:
            return round((counters[name] - self._counters[name]) / elapsed_s, 1)

        # Differences are modulo 2^64, as the counters themselves.
        fresh = {source: (counts - self._latencies[source], floors_ns) for source, counts, floors_ns in histograms}
        found = {
            "at_s": round(now_s - self._begun_s, 1),
            "ins": {name: rate(f"reads_{name}_pages") for name in IN_SOURCES},
            "outs": {name: rate(f"write_{name}_pages") for name in OUT_TARGETS},
            "p50_us": {name: _quantile_us(*fresh[name], 0.5) for name in SHOWN_LATENCIES},
            "p99_us": {name: _quantile_us(*fresh[name], 0.99) for name in SHOWN_LATENCIES},
            "pending_bytes": (counters["pending_pages"] + counters["only_remote_pages"]) * PAGE_BYTES,
        }
        self._seen_s, self._counters = now_s, counters
        self._latencies = {source: counts for source, counts, _ in histograms}
        return found

    def now(self) -> dict[str, Any]:
        """Status, peers, slabs and what went wrong so far."""
        counters = self._metrics.counters()
        snapshot = {"status": self._status(), **self._metrics.snapshot(1)}
        return {
            "findings": [finding.as_json() for finding in of_device(snapshot)],
            "status": snapshot["status"],
            "pending_limit_bytes": counters["pending_limit_pages"] * PAGE_BYTES,
            "peers": [self._peer(row) for row in snapshot["peers"]],
            "heat": picture(*self._metrics.slab_activity()),
        }

    def _peer(self, row: dict[str, Any]) -> dict[str, Any]:
        """Of a peer's row, what the page shows; latency is the mean since the last call."""
        count, total_us = int(row["latency_count"]), float(row["latency_total_us"])
        seen = self._peers.get(row["peer"], (0, 0))
        self._peers[row["peer"]] = (count, int(total_us))
        answered = count - seen[0]
        mean_us = round((total_us - seen[1]) / answered, 1) if answered > 0 else None
        return {**{name: row[name] for name in _PEER_FIELDS}, "latency_us": mean_us}


def _quantile_us(counts: NDArray[np.uint64], floors_ns: NDArray[np.uint64], quantile: float) -> float | None:
    value = percentile_ns(counts, floors_ns, quantile)
    return None if value is None else round(value / 1000, 1)
