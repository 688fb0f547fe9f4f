"""What the shards of a device tell, as one device. Pure: answers of their control APIs in, one answer out.

Slabs and pages are numbered through: those of the second shard come after those of the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infiniswap.device.backup import LOG_FACTS
from infiniswap.shared.slab_choice import SlabChoice

PAGE_BYTES = 4096
Answer = Mapping[str, Any]
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
# Of a status: what adds up. Of the rest the first one's counts, or what the parent says.
_SUMMED = ("size_bytes", "connections", "mapped_slabs", "slabs", "backup_bytes", *LOG_FACTS)
# Where none of them answers.
_NOBODY = {"connections": 0, "mapped_slabs": 0, "peers": 0, "tcp": [], "uri": None, "nbd": None, "backup_state": None}
_SUMMED_KERNEL = ("nbd_connections", "nbd_dead", "nbd_replaced")
_WORST = ("connecting", "down", "held", "leaving", "slow", "up")  # states of a peer
_PEER_SUMS = ("slabs", "reads", "writes", "failures", "mismatches", "in_flight", "bytes_in", "bytes_out", "overdue")
_PEER_SUMS_FLOAT = ("latency_total_us", "latency_count")
_SCRUB_STATES = ("running", "never", "ended", "done")  # the first that any has is that of all


def add(answers: Iterable[Any]) -> Any:
    """Tables of numbers added up by their keys, however deep; of what is no number the first counts."""
    known = list(answers)
    first = known[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for each in known for key in each)
        return {key: add([each[key] for each in known if key in each]) for key in keys}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(each for each in known if isinstance(each, int | float))
    return first


def status(parts: Sequence[Answer], own: Answer) -> dict[str, Any]:
    """A status of the whole. own: what its parent says, which counts."""
    found = dict(parts[0]) if parts else dict(_NOBODY)
    for key in (*_SUMMED, *_SUMMED_KERNEL):
        values = [part[key] for part in parts if part.get(key) is not None]
        if values:
            found[key] = sum(values)
    if parts:
        found["peers"] = max(part["peers"] for part in parts)
        found["tcp"] = [address for part in parts for address in part["tcp"]]
        found["uri"] = " ".join(part["uri"] for part in parts)
        bad = [part for part in parts if part.get("backup_state") != "good"]
        found["backup_state"] = bad[0]["backup_state"] if bad else "good"
        found["backup_problems"] = [f"{part['name']}: {what}" for part in bad for what in part["backup_problems"]]
        nodes = [part["nbd"] for part in parts if part.get("nbd")]
        found["nbd"] = " ".join(nodes) or None
    return {**found, "socket": None, **own}


def merged(histograms: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Buckets [from_ns, to_ns, count] of several histograms of one scale."""
    counts: Counter[tuple[int, int]] = Counter()
    for buckets in histograms:
        for low, high, count in buckets:
            counts[low, high] += count
    return [[low, high, count] for (low, high), count in sorted(counts.items())]


def latency_us(buckets: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Count, percentiles and maximum in microseconds, as metrics.py tells them."""
    total = sum(count for _, _, count in buckets)
    found: dict[str, Any] = {"count": total, **dict.fromkeys((*_QUANTILES, "max"))}
    if total:
        for name, quantile in _QUANTILES.items():
            found[name] = _quantile_us(buckets, quantile * total)
        found["max"] = round(max(high for _, high, _ in buckets) / 1000, 3)
    return found


def _quantile_us(buckets: Sequence[Sequence[int]], rank: float) -> float:
    running = 0.0
    for low, high, count in buckets:
        if running + count >= rank:
            return round((low + (high - low) * (rank - running) / count) / 1000, 3)
        running += count
    return round(buckets[-1][1] / 1000, 3)


def histograms(parts: Sequence[Answer]) -> dict[str, list[list[int]]]:
    """By source, out of snapshots."""
    sources = parts[0]["histograms_ns"]
    return {source: merged(part["histograms_ns"][source] for part in parts) for source in sources}


def stats(snapshots: Sequence[Answer]) -> dict[str, Any]:
    """As GET /v1/stats answers, out of snapshots: only they have what percentiles of all are made of."""
    told = histograms(snapshots)
    found: dict[str, Any] = add([{**each["stats"], "latency_us": {}} for each in snapshots])
    found["latency_us"] = {source: latency_us(buckets) for source, buckets in told.items()}
    return found


def snapshot(parts: Sequence[Answer], whole: Answer) -> dict[str, Any]:
    """As GET /v1/snapshot answers. whole: the status of all."""
    return {
        "status": whole,
        "stats": stats(parts),
        "histograms_ns": histograms(parts),
        "peers": peers([part["peers"] for part in parts]),
        "slabs": add([part["slabs"] for part in parts]),
        "heat": _heat([part["heat"] for part in parts]),
    }


def _heat(parts: Sequence[Answer]) -> dict[str, Any]:
    """One picture behind the other; shards have equally many slabs, so their cells do, too."""
    lists = {key: [value for part in parts for value in part[key]] for key in parts[0] if key != "slabs_per_cell"}
    return {"slabs_per_cell": parts[0]["slabs_per_cell"], **lists}


def peers(parts: Sequence[Sequence[Answer]]) -> list[dict[str, Any]]:
    """Peers by address: what is counted added up, the worst state of any, and the first error."""
    rows: dict[str, list[Answer]] = {}
    for part in parts:
        for row in part:
            rows.setdefault(row["peer"], []).append(row)
    return [_peer(each) for each in rows.values()]


def _peer(rows: Sequence[Answer]) -> dict[str, Any]:
    worst = min(rows, key=lambda row: _WORST.index(row["state"]) if row["state"] in _WORST else -1)
    found = {**worst, **{key: sum(row[key] for row in rows) for key in (*_PEER_SUMS, *_PEER_SUMS_FLOAT)}}
    count = found["latency_count"]
    found["latency_mean_us"] = round(found["latency_total_us"] / count, 3) if count else None
    for key in ("last_error", "rdma_error", "leaving"):
        found[key] = next((row[key] for row in rows if row.get(key)), None)
    return found


def slabs(parts: Sequence[Sequence[Answer]], counts: Sequence[int], choice: SlabChoice) -> list[Any]:
    """Rows of all, numbered through. counts: how many slabs each shard has."""
    rows, first = [], 0
    for part, count in zip(parts, counts, strict=True):
        rows += [{**row, "index": first + row["index"]} for row in part]
        first += count
    return list(choice.choose(rows))


def scrub(parts: Sequence[Answer]) -> dict[str, Any]:
    """As GET /v1/scrub answers: it goes on while any shard's does."""
    found: dict[str, Any] = add([{**part, "differences": []} for part in parts])
    states = [part["state"] for part in parts]
    found["state"] = next(state for state in _SCRUB_STATES if state in states)
    found["seconds"] = max(part["seconds"] for part in parts)
    first = 0
    for part in parts:
        found["differences"] += [{**each, "page": first + each["page"]} for each in part["differences"]]
        first += part["size_bytes"] // PAGE_BYTES
    return found


def traced(answer: Answer, before: int) -> int:
    """Up to which number an answer goes. A shard of an earlier version, which is taken up as it is, tells no `next`."""
    found = answer["next"] if "next" in answer else max((row["number"] for row in answer["requests"]), default=before)
    return int(found)


def traces(parts: Sequence[tuple[str, int, Answer]], most: int | None) -> list[dict[str, Any]]:
    """Requests of all in the order of their arrival; parts: name, first byte and answer of each. most: of the last."""
    rows = [
        {**row, "offset": first + row["offset"], "page": first // PAGE_BYTES + row["page"], "shard": name}
        for name, first, answer in parts
        for row in answer["requests"]
    ]
    rows.sort(key=lambda row: float(row["time_s"]))
    return rows if most is None else rows[max(len(rows) - most, 0) :]


def changes(parts: Sequence[Answer]) -> dict[str, Any]:
    """Answers to a change that was carried out by all: each change once, and whether all remember it."""
    found = dict(parts[0])
    for key, value in parts[0].items():
        if isinstance(value, list):
            found[key] = []
            for each in (each for part in parts for each in part.get(key, [])):
                if each not in found[key]:
                    found[key].append(each)
        elif isinstance(value, bool):
            found[key] = all(part.get(key) for part in parts)
    return found


def config(part: Answer, own: Answer) -> dict[str, Any]:
    """As GET /v1/config answers: what a shard goes by, and of what is otherwise for it, what the whole was asked to be.

    part: of a shard; own: as the parent was started.
    """
    rows = {row["option"]: row for row in own["options"]}
    options = [row if row["live"] else rows.get(row["option"], row) for row in part["options"]]
    return {**part, "name": own["name"], "files": own["files"], "options": options}
