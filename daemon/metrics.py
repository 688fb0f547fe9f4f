"""Numbers about the daemon, for /v1/stats and for Prometheus. Nothing here names a device or a lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infiniswap.daemon.guard import Guard
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.rdma import RdmaState
from infiniswap.shared.clock import Clock

GAUGES = {
    "uptime_seconds": "Time since the daemon started.",
    "leases": "Leases held by devices.",
    "slabs": "Slabs mapped for devices.",
    "lending": "Whether new slabs are lent: 0 while cordoned or drained.",
    "memory_limit_bytes": "Memory that the daemon may lend at most.",
    "memory_total_bytes": "Memory that is lent or could be lent now.",
    "memory_free_bytes": "Memory that could be mapped now.",
    "memory_used_bytes": "Memory promised to leases or on its way back.",
    "memory_lapsed_bytes": "Memory kept for leases that have lapsed, and given up when it is needed.",
    "memory_occupied_bytes": "Memory of the host that slabs really occupy.",
    "host_total_bytes": "Memory of the host, or of the daemon's cgroup.",
    "host_available_bytes": "Memory that the host could give to programs without swapping.",
    "host_smoothed_bytes": "Memory that the host would have available with nothing lent, average.",
    "host_headroom_bytes": "Memory that is kept free for the host, as of now.",
    "rdma_ready": "Whether pages can be read and written by RDMA now.",
    "rdma_queue_pairs": "Queue pairs connected with devices.",
    "rdma_regions": "Slabs registered for RDMA, pooled ones included.",
    "rdma_pooled": "Slabs registered in advance that wait to be mapped.",
    "host_lendable_bytes": "Memory that slabs may take in all; what is lent beyond it is to come back.",
    "host_missing_bytes": "Memory to be freed for the headroom to be whole.",
    "host_swap_used_bytes": "Swap in use on the host.",
    "host_fuses": "Processes that the OOM killer takes first, in place now.",
    "host_pressure_triggers": "Files by which the kernel tells at once that tasks wait for memory.",
    "host_pressure_percent": "Share of the last 10 s in which some task waited for memory.",
}
COUNTERS = {
    "leases_granted": "Leases granted.",
    "leases_refused": "Leases refused.",
    "leases_released": "Leases given back.",
    "leases_expired": "Leases ended for want of heartbeats.",
    "leases_revived": "Leases taken up again after their time had run out.",
    "slabs_mapped": "Slabs mapped.",
    "slabs_released": "Slabs taken back.",
    "maps_refused": "Slabs not mapped for want of memory.",
    "evicted": "Slabs given up by their device after a notice.",
    "evicted_by_force": "Slabs taken from their device.",
    "notices": "Notices to give up slabs.",
    "ask_timeouts": "Devices that did not tell in time how active their slabs are.",
    "streams_opened": "Streams that devices opened.",
    "streams_replaced": "Streams that ended because the device opened another.",
    "streams_overrun": "Streams that ended because the device did not take its messages.",
    "stream_nonsense": "Messages of devices that could not be used.",
    "host_looks": "How often the host's memory was looked at.",
    "host_hard_pressed": "How often lent memory was taken at once because less than half of the headroom was left.",
    "host_pressure_events": "How often the kernel told that tasks wait for memory.",
    "host_fuses_blown": "Fuses that the OOM killer took.",
    "cleared_bytes": "Memory cleared before it was lent again.",
}
RDMA_COUNTERS = {
    "paths_opened": "RDMA paths opened.",
    "regions_registered": "Slabs registered for RDMA.",
    "regions_deregistered": "Slabs deregistered.",
    "pool_hits": "Slabs mapped that had been registered in advance.",
    "pool_misses": "Slabs that had to be registered while a device waited.",
    "devices_lost": "RDMA devices that vanished while they were in use.",
}
ENGINE_GAUGES = frozenset({"connections"})  # the engine's other counters only grow


class DaemonMetrics(Collector):
    """Gathers the numbers when asked; has a registry of its own, so two daemons in one process do not mix."""

    def __init__(
        self, lender: Lender, guard: Guard | None, engine_counters: Callable[[], Mapping[str, int]], clock: Clock
    ) -> None:
        """guard: None without a monitor; engine_counters: name -> value of everything that the data path counts."""
        self._lender = lender
        self._guard = guard
        self._engine_counters = engine_counters
        self._clock = clock
        self._started_s = clock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

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
            "engine": dict(self._engine_counters()),
            "rdma": {**self._lender.keys.snapshot(), "counts": asdict(self._lender.keys.counts)},
        }

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for each exposition."""
        content = self.snapshot()
        gauges = {
            "uptime_seconds": content["uptime_s"],
            "leases": content["leases"],
            "slabs": content["slabs"],
            "lending": int(content["lending"]),
            **{f"memory_{name}": value for name, value in content["memory"].items()},
            **{f"host_{name}": value for name, value in content["host"].items()},
            "rdma_ready": int(content["rdma"]["state"] == RdmaState.READY),
            **{f"rdma_{name}": content["rdma"][name] for name in ("queue_pairs", "regions", "pooled")},
        }
        for name, value in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"infiniswapd_{name}", GAUGES[name], value=value)
        for name, value in content["counts"].items():
            yield CounterMetricFamily(f"infiniswapd_{name}", COUNTERS[name], value=value)
        for name, value in content["rdma"]["counts"].items():
            yield CounterMetricFamily(f"infiniswapd_rdma_{name}", RDMA_COUNTERS[name], value=value)
        for name, value in content["engine"].items():
            if name in ENGINE_GAUGES:
                yield GaugeMetricFamily(f"infiniswapd_engine_{name}", "Of the data path, now.", value=value)
            else:
                yield CounterMetricFamily(f"infiniswapd_engine_{name}", "Of the data path.", value=value)

    def _host(self) -> dict[str, Any]:
        monitor = self._lender.monitor
        if monitor is None:
            return {}
        return {
            "total_bytes": monitor.host.total_bytes,
            "available_bytes": monitor.host.available_bytes,
            "smoothed_bytes": monitor.smoothed_bytes,
            "headroom_bytes": monitor.headroom_now_bytes,
            "lendable_bytes": monitor.lendable_bytes(),
            "missing_bytes": monitor.missing_bytes,
            "swap_used_bytes": monitor.host.swap_used_bytes,
            "fuses": None if self._guard is None else len(self._guard.fuses),
            "pressure_triggers": None if self._guard is None else self._guard.triggers.armed,
            "pressure_percent": monitor.host.pressure_percent,
        }
