"""What was measured of shards, and what is made of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

COST_MIN = 0.95  # two shards against one, with the same clients on the same cores
SCALE_MIN = 1.8  # two cores with a shard each against one core with one
SHARE_MIN = 0.9  # of what a second core gives programs without shards: SCALE_MIN of 2
COMPUTE = "counting"  # the workload of a program that has no client
TITLES = {
    "one": "1 shard, 2 clients, anywhere",
    "two": "2 shards, 2 clients, anywhere",
    "one-core": "1 shard, its client and daemon on a core",
    "two-cores": "2 shards, each with a client and a daemon on a core of its own",
    "bare-1": "bare relay, its client and server on a core",
    "bare-2": "2 bare relays, each with a client and a server on a core of its own",
    "disk-1": "a file, written by a client on a core",
    "disk-2": "2 files, each written by a client on a core of its own",
}
OURS = ("one", "two", "one-core", "two-cores")
SCALES = (("two-cores", "one-core"), ("bare-2", "bare-1"))
RATIOS: tuple[tuple[str, str, str, float | None], ...] = (
    ("two", "one", "2 shards / 1 shard, same clients", COST_MIN),
    (*SCALES[0], "2 cores / 1 core, all pinned", SCALE_MIN),
    ("count-2", "count-1", "the machine: 2 cores / 1 core, a program that only counts", None),
    (*SCALES[1], "the machine: 2 cores / 1 core, bare relays", None),
    ("disk-2", "disk-1", "the machine: 2 cores / 1 core, files", None),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One case in one round. cpu: seconds of all server processes per million I/Os."""

    case: str
    workload: str
    round: int
    iops: float
    p50_us: float
    p99_us: float
    cpu_s_per_mio: float
    remote_share: float | None  # of the pages read, 0 to 1; 0 where nothing was read, None where there is no device
    busy: bool  # others used the machine meanwhile


def ratios(runs: Sequence[Run], workload: str, above: str, below: str) -> list[float]:
    """IOPS of one case over another's, round by round."""
    by_round = {(run.case, run.round): run.iops for run in runs if run.workload == workload}
    rounds = sorted({run.round for run in runs})
    return [
        by_round[above, n] / by_round[below, n] for n in rounds if (above, n) in by_round and (below, n) in by_round
    ]


def misplaced(rows: Iterable[Mapping[str, Any]], peer: str) -> list[str]:
    """Slabs, of GET /v1/slabs, that are mapped elsewhere than to peer, or not at all."""
    return [
        f"slab {row['index']} is {row['state']} ({row['peer']})"
        for row in rows
        if (row["state"], row["peer"]) != ("mapped", peer)
    ]


def shares(runs: Sequence[Run], workload: str) -> list[float]:
    """What a second core gives shards, of what it gives bare relays, round by round."""
    ours, bare = (ratios(runs, workload, above, below) for above, below in SCALES)
    return [one / other for one, other in zip(ours, bare, strict=False)]


def _row(title: str, workload: str, least: float | None, each: Sequence[float]) -> str:
    wanted, word = ("", "") if least is None else (f">= {least:.2f}", "met" if median(each) >= least else "NOT MET")
    return f"| {title} | {workload} | {wanted} | {median(each):.2f} ({min(each):.2f} to {max(each):.2f}) | {word} |"


def text(runs: Sequence[Run]) -> str:
    """Tables for people: medians over rounds, then ratios within rounds."""
    lines: list[str] = []
    workloads = list(dict.fromkeys(run.workload for run in runs))
    for workload in (each for each in workloads if each != COMPUTE):
        lines += [
            f"{workload}:",
            "",
            "| case | IOPS | p50 us | p99 us | server CPU s/M | remote |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for case, title in TITLES.items():
            found = [run for run in runs if (run.case, run.workload) == (case, workload)]
            if found:
                iops, p50, p99, cpu = (
                    median(getattr(run, name) for run in found)
                    for name in ("iops", "p50_us", "p99_us", "cpu_s_per_mio")
                )
                remote = [run.remote_share for run in found if run.remote_share is not None]
                share = f"{median(remote):.0%}" if remote else "–"
                lines.append(f"| {title} | {iops:.0f} | {p50:.1f} | {p99:.1f} | {cpu:.1f} | {share} |")
        lines.append("")
    lines += ["| ratio | workload | wanted | measured (lowest to highest round) | |", "|---|---|--:|--:|--:|"]
    for above, below, title, least in RATIOS:
        for workload in workloads:
            if each := ratios(runs, workload, above, below):
                lines.append(_row(title, workload, least, each))
    for workload in workloads:
        if each := shares(runs, workload):
            lines.append(_row("what 2 cores give shards / give bare relays", workload, SHARE_MIN, each))
    return "\n".join(lines)


def as_json(runs: Sequence[Run], about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """All of it."""
    return json.dumps({"machine": about, "settings": settings, "runs": [asdict(run) for run in runs]}, indent=2)
