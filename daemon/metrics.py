"""Numbers about the daemon, for /v1/stats and for Prometheus. Nothing here names a device or a lease."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from infiniswap.daemon.guard import Guard
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.metric_families import FAMILIES, PREFIX
from infiniswap.daemon.rdma import RdmaState
from infiniswap.shared.clock import Clock
from infiniswap.shared.http_connections import DoorCounts
from infiniswap.shared.metric_table import BUILD_INFO, exposition, tell


class DaemonMetrics(Collector):
    """Gathers the numbers when asked."""

    def __init__(
        self, lender: Lender, guard: Guard | None, engine_counters: Callable[[], Mapping[str, int]], clock: Clock
    ) -> None:
        """guard: None without a monitor; engine_counters: name -> value of everything that the data path counts."""
        self._lender = lender
        self._guard = guard
        self._engine_counters = engine_counters
        # What became of connections that came to nothing: of control, and of page I/O; set once they are served.
        self.doors: Callable[[], DoorCounts] = DoorCounts
        self.page_doors: Callable[[], dict[str, int]] = dict
        self.refused: Callable[[], dict[str, dict[str, int]]] = dict  # see Control.counts
        self._clock = clock
        self._started_s = clock()
        self._start_time_s = time.time()

    def snapshot(self) -> dict[str, Any]:
        """All numbers, nested by where they come from; sizes in bytes."""
        offer = self._lender.offer()
        leases = self._lender.leases.leases()
        return {
            "uptime_s": round(self._clock() - self._started_s, 3),
            "memory": {
                "limit_bytes": self._lender.arena.total_bytes,
                "total_bytes": offer.total_bytes,
                "free_bytes": offer.free_bytes,
                "used_bytes": offer.used_bytes,
                "lapsed_bytes": offer.lapsed_bytes,
                "occupied_bytes": self._lender.arena.occupied_bytes(),
            },
            "host": self._host(),
            "leases": len(leases),
            "slabs": sum(len(lease.slabs) for lease in leases),
            "lending": self._lender.lending,
            "counts": {
                **asdict(self._lender.counts),
                **({} if self._guard is None else {f"host_{k}": v for k, v in asdict(self._guard.counts).items()}),
                "cleared_bytes": self._lender.clearing.cleared_bytes,
            },
            "connections": {**asdict(self.doors()), **self.page_doors()},
            "refused": self.refused(),
            "engine": dict(self._engine_counters()),
            "rdma": {**self._lender.keys.snapshot(), "counts": asdict(self._lender.keys.counts)},
        }

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return exposition(self)

    def numbers(self) -> dict[str, float | None]:
        """The same as snapshot(), each number by a name of its own (metric_families.py)."""
        content = self.snapshot()
        rdma = content["rdma"]
        return {
            "start_time_seconds": self._start_time_s,
            "leases": content["leases"],
            "slabs": content["slabs"],
            "lending": content["lending"],
            **{f"memory_{name}": value for name, value in content["memory"].items()},
            **{f"host_{name}": value for name, value in content["host"].items()},
            **content["counts"],
            **{f"door_{name}": value for name, value in content["connections"].items()},
            **{f"{kind}_{name}": value for kind, parts in content["refused"].items() for name, value in parts.items()},
            "rdma_ready": rdma["state"] == RdmaState.READY,
            **{f"rdma_{name}": rdma[name] for name in ("queue_pairs", "regions", "pooled")},
            **{f"rdma_{name}": value for name, value in rdma["counts"].items()},
            **{f"engine_{name}": value for name, value in content["engine"].items()},
        }

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for each exposition."""
        yield from tell(PREFIX, (BUILD_INFO, *FAMILIES), [({}, self.numbers())])

    def _host(self) -> dict[str, Any]:
        monitor = self._lender.monitor
        if monitor is None:
            return {}
        return {
            "total_bytes": monitor.host.total_bytes,
            "available_bytes": monitor.host.available_bytes,
            "percpu_bytes": monitor.host.percpu_bytes,
            "smoothed_bytes": monitor.smoothed_bytes,
            "headroom_bytes": monitor.headroom_now_bytes,
            "lendable_bytes": monitor.lendable_bytes(),
            "missing_bytes": monitor.missing_bytes,
            "swap_used_bytes": monitor.host.swap_used_bytes,
            "fuses": None if self._guard is None else len(self._guard.fuses),
            "pressure_triggers": None if self._guard is None else self._guard.triggers.armed,
            "pressure_percent": monitor.host.pressure_percent,
        }
