"""Metrics: percentiles are right within a bucket, and each table and statistic has the fields that the API promises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.device.metrics import Metrics, latency_us, percentile_ns
from infiniswap.device.peer import Peer
from infiniswap.device.placing import MapperCounts
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import PEER_DTYPE, SLAB_DTYPE, SOURCES, histogram_floors_ns
from infiniswap.shared.address import HostPort
from tests.support.lease import make_lease

FLOORS = histogram_floors_ns()
COUNTERS = [
    "reads_remote_pages",
    "reads_pending_pages",
    "reads_backup_pages",
    "reads_zero_pages",
    "write_remote_pages",
    "write_backup_pages",
    "pending_pages",
    "pending_limit_pages",
    "slabs_mapped",
    "slabs_released",
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
    "connections",
    "only_remote_pages",
]


def histogram(samples_ns: list[int]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Samples as the engine counts them."""
    counts = np.zeros(len(FLOORS), dtype=np.uint64)
    for sample in samples_ns:
        counts[int(np.searchsorted(FLOORS, sample, side="right")) - 1] += np.uint64(1)
    return counts


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_percentile_lies_in_the_right_bucket(samples_ns: list[int], quantile: float) -> None:
    """Within 12.5 %, the width of a bucket, of a sample next to the exact rank."""
    value = percentile_ns(histogram(samples_ns), FLOORS, quantile)
    assert value is not None
    ordered = sorted(samples_ns)
    rank = quantile * len(ordered)
    low, high = ordered[max(int(np.ceil(rank)) - 1, 0)], ordered[min(int(rank), len(ordered) - 1)]
    assert low / 1.15 - 2 <= value <= high * 1.15 + 2


def test_percentiles_rise() -> None:
    """A later percentile is never below an earlier one."""
    counts = histogram(list(range(1000, 200000, 37)))
    latency = latency_us(counts, FLOORS)
    values = [latency[name] for name in ("p50", "p90", "p99", "p999", "max")]
    assert values == sorted(values, key=float)  # type: ignore[arg-type]
    assert latency["count"] == int(counts.sum())
    assert latency["p50"] == pytest.approx(100.5, rel=0.15)


def test_nothing_measured() -> None:
    """No numbers are invented."""
    expected = {"count": 0, "p50": None, "p90": None, "p99": None, "p999": None, "max": None}
    assert latency_us(np.zeros(len(FLOORS), dtype=np.uint64), FLOORS) == expected


@pytest.fixture
def metrics() -> Metrics:
    """Two slabs, one of them mapped to the first of two peers."""
    slabs = np.zeros(3, SLAB_DTYPE)
    slabs["peer"] = -1
    slabs[1] = (10, 20, 1, 0, 200, 0, 3, 1)
    slabs[0]["backup_pages"] = 7
    rows = np.zeros(2, PEER_DTYPE)
    rows[0]["latency_total_ns"], rows[0]["latency_count"], rows[0]["reads"] = 300_000, 3, 3
    held = Slabs(lambda: 0.0)
    peers = [Peer(slot, HostPort(host, 1 + slot), None, held) for slot, host in enumerate("ab")]  # type: ignore[arg-type]
    peers[0].lease, peers[0].total_bytes, peers[0].free_bytes = make_lease(1), 100, 40
    held.take(1, 0)
    held.mapping.add(2)
    peers[1].last_error = "no answer"
    histograms = np.zeros((len(SOURCES), len(FLOORS)), dtype=np.uint64)
    histograms[0] = histogram([50_000] * 10)
    engine = SimpleNamespace(
        slabs=slabs,
        peers=rows,
        counters=np.arange(len(COUNTERS), dtype=np.uint64),
        counter_names=tuple(COUNTERS),
        histograms=histograms,
    )
    activity = SimpleNamespace(values=np.array([0.0, 123.4567, 0.0]))
    return Metrics(engine, peers, held, activity, MapperCounts(refused=5), FLOORS)  # type: ignore[arg-type]


def test_slab_table(metrics: Metrics) -> None:
    """State, owner and counts of each slab, in order."""
    first, second, third = metrics.slabs()
    assert (first["state"], first["peer"], first["backup_pages"]) == ("unmapped", None, 7)
    assert second == {
        "index": 1, "state": "mapped", "peer": "a:1", "activity": 123.457, "remote_pages": 200, "backup_pages": 0,
        "pending_pages": 3, "page_ins": 10, "page_outs": 20,
    }  # fmt: skip
    assert third["state"] == "mapping"
    assert metrics.mapped_slabs() == 1


def test_peer_table(metrics: Metrics) -> None:
    """What is not known is null, not zero."""
    first, second = metrics.peers()
    assert (first["state"], first["slabs"], first["free_bytes"], first["latency_mean_us"]) == ("up", 1, 40, 100.0)
    assert (second["state"], second["free_bytes"], second["latency_mean_us"]) == ("down", None, None)
    assert (first["lending"], first["version"], first["incarnation"]) == ("lending", None, "i")
    assert (second["lending"], second["version"], second["incarnation"]) == (None, None, None)
    assert (first["last_error"], second["last_error"]) == (None, "no answer")


def test_statistics(metrics: Metrics) -> None:
    """Reads by source, latencies by source, failures; pages become bytes."""
    stats = metrics.stats()
    assert stats["reads"] == {"remote": 0, "pending": 1, "backup": 2, "zero": 3}
    assert stats["writes"] == {"remote": 4, "backup": 5}
    assert (stats["pending_bytes"], stats["pending_limit_bytes"]) == ((6 + 21) * 4096, 7 * 4096)
    assert set(stats["latency_us"]) == set(SOURCES)
    assert stats["latency_us"]["remote"]["count"] == 10
    assert stats["failures"]["mappings_refused"] == 5
    assert stats["counters"]["slabs_mapped"] == stats["mappings"] == 8
