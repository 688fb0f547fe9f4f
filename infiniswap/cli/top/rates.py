"""What happened between two snapshots of a device (GET /v1/snapshot). Pure: no clock, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infiniswap.policy.health import Finding, of_device

PAGE_BYTES = 4096
READ_SOURCES = ("remote", "pending", "backup", "zero")
WRITE_SOURCES = ("write_remote", "write_backup")
Snapshot = Mapping[str, Any]
Buckets = Mapping[tuple[int, int], int]
"""(from_ns, to_ns) -> count"""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the requests of an interval; the times are None where there were none."""

    count: int = 0
    p50_us: float | None = None
    p99_us: float | None = None


@dataclass(frozen=True, slots=True)
class PeerRates:
    """One memory daemon, as a device sees it."""

    peer: str
    state: str  # up, slow, held, down, connecting
    lending: str | None
    transport: str | None
    slabs: int
    share: float  # of the device's slabs that are mapped, 0 to 1
    free_bytes: int | None
    rtt_us: float | None  # mean time of a page-in in the interval
    in_bytes_s: float | None
    out_bytes_s: float | None
    faults: int | None  # requests that failed and pages that came back changed, in the interval
    error: str | None


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """One device in an interval. What needs two snapshots is None where there is only one, or it was restarted."""

    name: str
    state: str
    seconds: float | None = None
    in_iops: float | None = None
    out_iops: float | None = None
    in_bytes_s: float | None = None
    out_bytes_s: float | None = None
    hits: Mapping[str, float] = field(default_factory=dict)  # source -> share of the pages read, 0 to 1
    reads: Latency = Latency()
    writes: Latency = Latency()
    latency: Mapping[str, Latency] = field(default_factory=dict)  # by source
    pending_bytes: int | None = None
    pending_limit_bytes: int | None = None
    faults: int | None = None  # in the interval
    faults_total: int | None = None
    connections: int | None = None
    peers: Sequence[PeerRates] = ()
    slabs: Mapping[str, int] = field(default_factory=dict)
    slab_bytes: int | None = None
    heat: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Finding] = ()  # what is the matter with it, as infiniswap status says
    why: str = ""  # it could not be asked

    @property
    def hit_ratio(self) -> float | None:
        """Share of the pages read that did not come from the backup."""
        return 1.0 - self.hits["backup"] if self.hits else None


def between(before: Snapshot | None, after: Snapshot) -> DeviceRates:
    """Rates from before to after, two snapshots of one device; before None: there is no earlier one."""
    status, stats = after["status"], after["stats"]
    seconds = _seconds(before, after)
    old = before if seconds is not None else None
    read_pages, written_pages = _grown(old, after, "reads"), _grown(old, after, "writes")
    counters = _grown(old, after, "counters")
    differences = {source: _new_buckets(old, after, source) for source in (*READ_SOURCES, *WRITE_SOURCES, "flush")}
    failures = _grown(old, after, "failures")
    read = sum(read_pages.values())
    known = seconds is not None

    def rate(value: float) -> float | None:
        return None if seconds is None else value / seconds

    return DeviceRates(
        name=str(status["name"]),
        state=str(status["state"]),
        seconds=seconds,
        in_iops=rate(counters.get("read_requests", 0)),
        out_iops=rate(counters.get("write_requests", 0)),
        in_bytes_s=rate(read * PAGE_BYTES),
        out_bytes_s=rate(sum(written_pages.values()) * PAGE_BYTES),
        hits={source: read_pages[source] / read for source in READ_SOURCES} if known and read else {},
        reads=latency(_merged(differences[source] for source in READ_SOURCES)),
        writes=latency(_merged(differences[source] for source in WRITE_SOURCES)),
        latency={source: latency(buckets) for source, buckets in differences.items()},
        pending_bytes=int(stats["pending_bytes"]),
        pending_limit_bytes=int(stats["pending_limit_bytes"]),
        faults=sum(failures.values()) if known else None,
        faults_total=sum(int(value) for value in stats["failures"].values()),
        connections=int(status["connections"]),
        peers=_peers(old, after, seconds),
        slabs=after["slabs"],
        slab_bytes=int(status["slab_bytes"]),
        heat=after["heat"],
        findings=of_device(after),
    )


def latency(buckets: Buckets) -> Latency:
    """Count and percentiles of a histogram."""
    count = sum(buckets.values())
    return Latency(count, percentile_us(buckets, 0.5), percentile_us(buckets, 0.99))


def percentile_us(buckets: Buckets, quantile: float) -> float | None:
    """The quantile (0 to 1) of a histogram in microseconds, interpolated inside its bucket; None of an empty one."""
    total = sum(buckets.values())
    if total <= 0:
        return None
    rank, running = quantile * total, 0
    low_ns, high_ns = 0, 0
    for (low_ns, high_ns), count in sorted(buckets.items()):
        if count > 0 and running + count >= rank:
            return round((low_ns + (high_ns - low_ns) * max(0.0, rank - running) / count) / 1000, 3)
        running += count
    return high_ns / 1000


def _seconds(before: Snapshot | None, after: Snapshot) -> float | None:
    """Between two looks at the same processes; None where one of the second look is another, or no time has passed."""
    if before is None or _processes(before) != _processes(after):
        return None
    seconds = float(after["status"]["uptime_s"]) - float(before["status"]["uptime_s"])
    return seconds if seconds > 0 else None


def _processes(snapshot: Snapshot) -> list[object]:
    """Those whose numbers are told: the device's and, of shards, of each that answers."""
    status = snapshot["status"]
    return [status["pid"], *(shard["pid"] for shard in status.get("shards") or ())]


def _grown(before: Snapshot | None, after: Snapshot, table: str) -> dict[str, int]:
    """By how much each number of the table of statistics has grown; gauges that fell count as 0."""
    old = {} if before is None else before["stats"][table]
    return {key: max(0, int(value) - int(old.get(key, 0))) for key, value in after["stats"][table].items()}


def _new_buckets(before: Snapshot | None, after: Snapshot, source: str) -> dict[tuple[int, int], int]:
    if before is None:
        return {}
    counts = Counter({(low, high): count for low, high, count in after["histograms_ns"].get(source, ())})
    counts.subtract({(low, high): count for low, high, count in before["histograms_ns"].get(source, ())})
    return {edges: count for edges, count in counts.items() if count > 0}


def _merged(parts: Iterable[Buckets]) -> Buckets:
    total: Counter[tuple[int, int]] = Counter()
    for part in parts:
        total.update(part)
    return total


def _peers(before: Snapshot | None, after: Snapshot, seconds: float | None) -> list[PeerRates]:
    old = {} if before is None else {row["peer"]: row for row in before["peers"]}
    mapped = sum(int(row["slabs"]) for row in after["peers"])
    return [_peer(old.get(row["peer"]), row, mapped, seconds) for row in after["peers"]]


def _peer(old: Mapping[str, Any] | None, row: Mapping[str, Any], mapped: int, seconds: float | None) -> PeerRates:
    def grown(key: str) -> float:
        return max(0.0, float(row[key]) - float(old[key])) if old is not None else 0.0

    known = old is not None and seconds is not None
    answered = grown("latency_count")
    return PeerRates(
        peer=str(row["peer"]),
        state=str(row["state"]),
        lending=row["lending"],
        transport=row["transport"],
        slabs=int(row["slabs"]),
        share=int(row["slabs"]) / mapped if mapped else 0.0,
        free_bytes=row["free_bytes"],
        rtt_us=round(grown("latency_total_us") / answered, 3) if answered else None,
        in_bytes_s=grown("bytes_in") / seconds if known and seconds else None,
        out_bytes_s=grown("bytes_out") / seconds if known and seconds else None,
        faults=int(grown("failures") + grown("mismatches")) if known else None,
        error=row["last_error"],
    )
