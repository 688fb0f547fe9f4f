"""Tables for people, in Markdown that can also be read as it is, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from scripts.benchmark.comparison import Verdict, middle, ratio
from scripts.benchmark.measure import REMOTE_SHARE_MIN, Sample
from scripts.benchmark.workload import Workload

STEADY = ("randwrite-4k-qd32", ("infiniswap", "infiniswap-log", "infiniswap-log-slow"))
ROUNDS_MIN, RUNTIME_S_MIN = 3, 1.0  # with less, figures tell nothing of speed
ROOMY = "infiniswap-room"
OTHER_CPU_SHARE_MAX = 0.15  # above this, figures tell of others as well
_HEADINGS = ("contender", "IOPS", "MB/s", "p50 us", "p99 us", "server CPU s/M", "client CPU s/M")
_AGAINST_OTHERS, _AGAINST_PLAIN = ("x nbdkit", "x floor"), ("IOPS x plain", "server CPU x plain", "all CPU x plain")
SEALED_MARK = "-sealed"  # a contender's name without it is that of the plain one
MET = {True: "met", False: "NOT met", None: "-"}


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *rest]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(headings), rule, *map(line, rows)])


def number(value: float | None, digits: int = 0, suffix: str = "") -> str:
    """Rounded, with a space between thousands; '-' for None."""
    return "-" if value is None else f"{value:,.{digits}f}".replace(",", " ") + suffix


def workload_table(samples: Sequence[Sample], workload: str, titles: Mapping[str, str]) -> str:
    """One workload: a row for each contender that was measured, medians over the rounds."""
    rows = []
    sealed = any(SEALED_MARK in name for name in titles)
    for name, title in titles.items():
        if middle(samples, workload, name, "iops") is None:
            continue
        rows.append(
            [
                title,
                number(middle(samples, workload, name, "iops")),
                number(middle(samples, workload, name, "mb_per_s")),
                number(middle(samples, workload, name, "p50_us"), 1),
                number(middle(samples, workload, name, "p99_us"), 1),
                number(middle(samples, workload, name, "server_cpu_s_per_mio"), 1),
                number(middle(samples, workload, name, "client_cpu_s_per_mio"), 1),
                *(_against_plain if sealed else _against_others)(samples, workload, name),
            ]
        )
    return table((*_HEADINGS, *(_AGAINST_PLAIN if sealed else _AGAINST_OTHERS)), rows)


def _against_others(samples: Sequence[Sample], workload: str, name: str) -> list[str]:
    return [number(ratio(samples, workload, name, other), 2) for other in ("nbdkit", "floor")]


def _against_plain(samples: Sequence[Sample], workload: str, name: str) -> list[str]:
    plain, fields = name.replace(SEALED_MARK, ""), ("iops", "server_cpu_s_per_mio", "all_cpu_s_per_mio")
    if plain == name:
        return ["-"] * len(_AGAINST_PLAIN)
    return [number(ratio(samples, workload, name, plain, field), 2) for field in fields]


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The targets and what came out."""
    rows = [[verdict.text, verdict.wanted, verdict.value, MET[verdict.met]] for verdict in verdicts]
    return table(("target", "wanted", "measured", ""), rows)


def warnings(samples: Sequence[Sample]) -> list[str]:
    """What makes samples mean something else than their table says."""
    found = []
    least: dict[str, float] = {}
    for sample in samples:
        what = f"{sample.workload}, {sample.contender}"
        if sample.remote_share is not None and sample.remote_share < REMOTE_SHARE_MIN:
            least[what] = min(sample.remote_share, least.get(what, 1.0))
    for what, share in least.items():
        found.append(f"{what}: in one run only {share:.2%} of the pages came from remote memory")
    workload, names = STEADY
    for name in names:
        waits = [s.pending_waits for s in samples if (s.workload, s.contender) == (workload, name)]
        if 0 in waits:
            found.append(f"{workload}, {name}: the pending buffer was not always full: this is not the steady state")
    roomy = [s for s in samples if s.contender == ROOMY and s.pending_waits]
    if roomy:
        found.append(f"{ROOMY}: writes waited for room in the pending buffer in {len(roomy)} runs")
    others = median(sample.other_cpu_share for sample in samples) if samples else 0.0
    if others > OTHER_CPU_SHARE_MAX:
        found.append(f"other programs and the kernel's own threads used {others:.0%} of the machine's CPU time")
    return found


def warnings_of_amount(rounds: int, runtime_s: float) -> list[str]:
    """What too few or too short runs mean."""
    if rounds >= ROUNDS_MIN and runtime_s >= RUNTIME_S_MIN:
        return []
    return [f"{rounds} rounds of {runtime_s:g} s show that it works, not how fast it is"]


def text(
    samples: Sequence[Sample], workloads: Sequence[Workload], titles: Mapping[str, str], verdicts: Sequence[Verdict]
) -> str:
    """Everything that the command prints at its end."""
    parts = []
    for workload in workloads:
        parts += [f"{workload.name}", "", workload_table(samples, workload.name, titles), ""]
    if verdicts:
        parts += [verdict_table(verdicts), ""]
    return "\n".join(parts).rstrip()


def as_json(
    samples: Sequence[Sample], verdicts: Sequence[Verdict], machine: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """All samples with what they were measured on."""
    report = {
        "machine": dict(machine),
        "settings": dict(settings),
        "targets": [asdict(verdict) for verdict in verdicts],
        "samples": [asdict(sample) for sample in samples],
    }
    return json.dumps(report, indent=2) + "\n"
