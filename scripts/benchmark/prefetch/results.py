"""What came out: medians, ratios within rounds, and what is wished for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from scripts.benchmark.comparison import Verdict

# As fio names them; a step of 7 pages leaves 6 out.
WORKLOADS = {"in sequence": "read", "every 7th page": "read:24k", "by chance": "randread"}
WISHES = {"in sequence": 4.0, "every 7th page": 3.0, "by chance": 0.98}


@dataclass(frozen=True, slots=True)
class Run:
    """One workload on one device; guesses and hits are pages."""

    round: int
    workload: str
    prefetch: str
    iops: float
    p50_us: float
    p99_us: float
    guesses: int
    hits: int

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)


def ratio(runs: Sequence[Run], workload: str) -> float | None:
    """Median over rounds of auto / off, in reads a second; None where no round has both."""
    found = {(run.round, run.prefetch): run.iops for run in runs if run.workload == workload}
    pairs = [
        iops / found[number, "off"]
        for (number, name), iops in found.items()
        if name == "auto" and (number, "off") in found
    ]
    return median(pairs) if pairs else None


def judge(runs: Sequence[Run]) -> list[Verdict]:
    """One for each workload."""
    verdicts = []
    for workload, wish in WISHES.items():
        value = ratio(runs, workload)
        text = f"one page at a time {workload}, prefetch auto against off"
        shown = "not measured" if value is None else f"{value:.2f}x"
        verdicts.append(Verdict(text, f">= {wish:g}x", shown, None if value is None else value >= wish))
    return verdicts


def table(runs: Sequence[Run]) -> str:
    """A line for each workload and device."""
    lines = [f"{'':16} {'prefetch':9} {'reads/s':>9} {'p50 us':>8} {'p99 us':>8} {'guesses':>9} {'read':>6}"]
    for workload in WORKLOADS:
        for prefetch in ("off", "auto"):
            of = [run for run in runs if (run.workload, run.prefetch) == (workload, prefetch)]
            if not of:
                continue
            iops, p50, p99 = (median(getattr(run, field) for run in of) for field in ("iops", "p50_us", "p99_us"))
            guesses, hits = (sum(getattr(run, field) for run in of) for field in ("guesses", "hits"))
            share = f"{hits / guesses:.0%}" if guesses else "-"
            lines.append(f"{workload:16} {prefetch:9} {iops:9.0f} {p50:8.0f} {p99:8.0f} {guesses:9} {share:>6}")
    return "\n".join(lines) + "\n"
