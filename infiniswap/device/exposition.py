"""What Prometheus gets of a device: the families of metric_families.py and the histograms of latencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from infiniswap.device.metric_families import (
    DEVICE_FAMILIES,
    DURATIONS,
    PEER_DURATION,
    PEER_FAMILIES,
    PREFIX,
    WATCH_FAMILIES,
)
from infiniswap.device.metrics import Metrics
from infiniswap.shared.metric_table import BUILD_INFO, Family, Labels, Numbers, exposition, tell

# Upper edges of what Prometheus gets: each octave from 4 us to 17 s. What is quicker is in the first bucket.
FIRST_EDGE_NS, LAST_EDGE_NS = 1 << 12, 1 << 34


def edges(floors_ns: NDArray[np.uint64]) -> list[int]:
    """Indices of the buckets whose lower edge is an upper edge that Prometheus gets."""
    floors = [int(floor) for floor in floors_ns]
    return [
        at for at, floor in enumerate(floors) if FIRST_EDGE_NS <= floor <= LAST_EDGE_NS and floor & (floor - 1) == 0
    ]


def cumulated(counts: NDArray[np.uint64], floors_ns: NDArray[np.uint64]) -> list[tuple[str, float]]:
    """Counts of (buckets,) as Prometheus wants them: how many took at most so many seconds."""
    running = np.cumsum(counts)
    told = [(repr(float(floors_ns[at]) / 1e9), float(running[at - 1])) for at in edges(floors_ns)]
    return [*told, ("+Inf", float(running[-1]))]


class Exposition(Collector):
    """One device, for Prometheus."""

    def __init__(self, device: str, size_bytes: int, metrics: Metrics, backup: Callable[[], Numbers]) -> None:
        """device: its name, a label of every sample. backup: how its backup is (BackupHealth.numbers)."""
        self._labels: Labels = {"device": device}
        self._size_bytes = size_bytes
        self._metrics = metrics
        self._backup = backup

    def text(self) -> bytes:
        """The text format 0.0.4."""
        return exposition(self)

    def collect(self) -> Iterator[Metric]:
        """Metric families; called by the registry."""
        numbers = self._metrics.facts()
        numbers |= {"size_bytes": self._size_bytes, **self._backup()}
        yield from tell(PREFIX, (BUILD_INFO, *DEVICE_FAMILIES, *WATCH_FAMILIES), [(self._labels, numbers)])
        peers = [({**self._labels, "peer": row["peer"]}, _peer_numbers(row)) for row in self._metrics.peers()]
        yield from tell(PREFIX, PEER_FAMILIES, peers)
        yield from self._durations()

    def _durations(self) -> Iterator[Metric]:
        told = self._metrics.latencies()
        for each in DURATIONS:
            metric = self._histogram(each, [] if each.label is None else [each.label])
            for part, source in each.numbers.items():
                self._add(metric, [] if each.label is None else [part], told[source])
            yield metric
        metric = self._histogram(PEER_DURATION, ["peer", "type"])
        for peer, (reads, writes) in self._metrics.peer_latencies():
            self._add(metric, [peer, "read"], reads)
            self._add(metric, [peer, "write"], writes)
        if metric.samples:
            yield metric

    def _histogram(self, family: Family, labels: list[str]) -> HistogramMetricFamily:
        return HistogramMetricFamily(PREFIX + family.name, family.help, labels=[*self._labels, *labels])

    def _add(self, metric: HistogramMetricFamily, labels: list[str], found: NDArray[Any]) -> None:
        buckets = cumulated(found["counts"], self._metrics.floors_ns)
        metric.add_metric([*self._labels.values(), *labels], buckets, sum_value=float(found["total_ns"]) / 1e9)


def _peer_numbers(row: dict[str, Any]) -> dict[str, float | None]:
    """A row of Metrics.peers() with what it says in words as numbers."""
    return {
        **{name: value for name, value in row.items() if isinstance(value, int | float)},
        "peer_up": row["state"] in ("up", "slow", "leaving"),
        "peer_slow": row["state"] == "slow",
        "peer_rdma": row["transport"] == "rdma",
    }
