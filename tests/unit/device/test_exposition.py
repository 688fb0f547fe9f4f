"""What Prometheus gets of a device: numbers in base units by the names of their table, each with the device's name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infiniswap.device.backup import LOG_FACTS
from infiniswap.device.exposition import Exposition, cumulated
from infiniswap.device.metric_families import DEVICE_FAMILIES
from infiniswap.device.metrics import Metrics
from infiniswap.device.peer import Peer
from infiniswap.device.placing import MapperCounts
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import PEER_DTYPE, SLAB_DTYPE, SOURCES, histogram_floors_ns
from infiniswap.engine.layout import HISTOGRAM_DTYPE
from infiniswap.shared.address import HostPort
from tests.support.lease import make_lease
from tests.support.metric_names import device_names

FLOORS = histogram_floors_ns()
US = 1000


def counted() -> list[str]:
    """Numbers that the engine counts."""
    ours = ("size_bytes", "slabs", "mapped_slabs", "backup_degraded", "backup_bytes", *LOG_FACTS)
    found = [number for family in DEVICE_FAMILIES for number in family.numbers.values()]
    return [number for number in found if number not in ours and not number.startswith("eviction_")]


@pytest.fixture
def metrics() -> Metrics:
    """One slab, and a peer that holds it; each counter has its place in the list as its value."""
    names = counted()
    latencies = np.zeros(len(SOURCES), HISTOGRAM_DTYPE)
    latencies["counts"][0][np.searchsorted(FLOORS, 50 * US)] = 10
    latencies["total_ns"][0] = 500 * US
    peer_latencies = np.zeros((1, 2), HISTOGRAM_DTYPE)
    peer_latencies["counts"][0, 1, -1] = 3
    rows = np.zeros(1, PEER_DTYPE)
    rows[0]["reads"], rows[0]["bytes_in"] = 3, 3 * 4096
    engine: Any = SimpleNamespace(
        slabs=np.zeros(1, SLAB_DTYPE),
        peers=rows,
        counters=np.arange(len(names), dtype=np.uint64),
        counter_names=tuple(names),
        latencies=latencies,
        peer_latencies=peer_latencies,
    )
    held = Slabs(lambda: 0.0)
    client: Any = None
    peer = Peer(0, HostPort("a", 1), client, held)
    peer.lease = make_lease(1)
    activity: Any = SimpleNamespace(values=np.array([0.0]))
    peers: Any = [peer]
    return Metrics(engine, peers, held, activity, MapperCounts(), FLOORS)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(metrics: Metrics, *, degraded: bool = False, log: bool = False) -> Samples:
    """Values by name and labels, without the label of the device, which each has."""
    backup = {"backup_degraded": degraded, "backup_bytes": 2 << 30, **dict.fromkeys(LOG_FACTS, 7 if log else None)}
    text = Exposition("vol", 1 << 30, metrics, lambda: backup).text().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("device") == "vol"
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def at(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """A key of samples()."""
    return f"infiniswap_{name}", frozenset(labels.items())


def test_base_units_and_labels(metrics: Metrics) -> None:
    """Pages become bytes, parts of one number a label, words of a peer 0 and 1."""
    found = samples(metrics)
    numbers = metrics.counters()
    assert found[at("read_bytes_total", source="backup")] == numbers["reads_backup_pages"] * 4096 > 0
    assert found[at("requests_total", type="flush")] == numbers["flush_requests"] > 0
    assert found[at("size_bytes")] == 1 << 30
    assert found[at("backup_degraded")] == 0
    assert found[at("backup_bytes")] == 2 << 30
    assert samples(metrics, log=True)[at("backup_log_live_bytes")] == 7 * 4096
    assert samples(metrics, degraded=True)[at("backup_degraded")] == 1
    assert found[at("peer_up", peer="a:1")] == 1
    assert found[at("peer_requests_total", peer="a:1", type="read")] == 3
    assert found[at("peer_read_bytes_total", peer="a:1")] == 3 * 4096


def test_nothing_is_invented(metrics: Metrics) -> None:
    """What is not known of a peer is no sample; nor are connections of no kernel device, nor the log of a raw image."""
    found = {name for name, _ in samples(metrics)}
    unknown = {"peer_free_bytes", "nbd_connections", "backup_log_segments", "backup_log_bad_pages_total"}
    assert not {f"infiniswap_{name}" for name in unknown} & found
    metrics.watch = SimpleNamespace(replaced=5, connections=lambda: 4, dead=lambda: 1)
    watched = samples(metrics)
    assert watched[at("nbd_connections", state="open")] == 3
    assert watched[at("nbd_connections", state="dead")] == 1
    assert watched[at("nbd_connections_replaced_total")] == 5


def test_every_name_of_the_table(metrics: Metrics) -> None:
    """Once all is known each family has a sample, and nothing else is told."""
    metrics.watch = SimpleNamespace(replaced=0, connections=lambda: 0, dead=lambda: 0)
    for peer in metrics._peers:
        peer.total_bytes = 100
    found = {name for name, _ in samples(metrics, log=True)}
    plain = {name for name in found if not name.endswith(("_bucket", "_count", "_sum"))}
    histograms = {name.removesuffix("_bucket") for name in found if name.endswith("_bucket")}
    assert plain | histograms == device_names()


def test_durations_are_cumulated_in_seconds(metrics: Metrics) -> None:
    """A bucket counts all that took at most its edge; the last one all."""
    found = samples(metrics)
    assert found[at("read_duration_seconds_bucket", source="remote", le="+Inf")] == 10
    assert found[at("read_duration_seconds_bucket", source="remote", le="3.2768e-05")] == 0
    assert found[at("read_duration_seconds_bucket", source="remote", le="6.5536e-05")] == 10
    assert found[at("read_duration_seconds_sum", source="remote")] == 0.0005
    assert found[at("write_duration_seconds_bucket", target="remote", le="+Inf")] == 0
    assert found[at("peer_duration_seconds_count", peer="a:1", type="write")] == 3
    assert found[at("peer_duration_seconds_count", peer="a:1", type="read")] == 0


def test_every_sample_is_in_a_bucket() -> None:
    """What is quicker than the first edge is in the first bucket; what takes longer than the last only in +Inf."""
    counts = np.zeros(len(FLOORS), dtype=np.uint64)
    counts[0], counts[-1] = 1, 1
    told = cumulated(counts, FLOORS)
    edges = [float(edge) for edge, _ in told]
    assert edges == sorted(edges)
    assert {count for _, count in told[:-1]} == {1}
    assert told[-1] == ("+Inf", 2)
