"""What was measured of evictions: figures of one, and the table of all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchmark.evict.load import BIN_MS

BINS_PER_S = 1000 // BIN_MS
BEFORE_S = 2  # whose rate is what a device does when nothing happens
AFTER_S = 2
COST_MAX = 0.05
HEADS = (
    "evicted with",
    "evictions",
    "by force",
    "notice after ms",
    "memory free after ms",
    "worst ms",
    "op/s before",
    "1st second",
    "2nd second",
    "noise",
    "slowest request ms",
)


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one eviction, seconds since 1970: the limit falls, owners have notice, the memory is the host's again."""

    wanted_s: float
    notice_s: float
    free_s: float
    forced: bool  # taken by force, since its device had not given it up in time
    slowest_ms: float  # request of a client that asks one at a time, from notice on


@dataclass(frozen=True, slots=True)
class Eviction:
    """Figures of one."""

    case: str
    seen_ms: float  # from the want to the notice
    free_ms: float  # from the notice to free memory
    before_iops: float
    costs: tuple[float, ...]  # share of before_iops missing in each second from the notice on; below 0: there was more
    noise: float  # the larger deviation of one second before from before_iops, as a share
    slowest_ms: float
    forced: bool


def figures(case: str, moments: Moments, rates: Mapping[int, float]) -> Eviction:
    """From operations a second in bins of BIN_MS; ValueError when the load was not there all the time."""

    def mean(first: int, count: int) -> float:
        """Of bins; those that are missing had no operation that ended."""
        return sum(rates.get(number, 0.0) for number in range(first, first + count)) / count

    notice = int(moments.notice_s * 1000) // BIN_MS
    wanted = int(moments.wanted_s * 1000) // BIN_MS
    seconds = [mean(wanted - (number + 1) * BINS_PER_S, BINS_PER_S) for number in range(BEFORE_S)]
    before = statistics.fmean(seconds)
    if before <= 0 or notice + AFTER_S * BINS_PER_S > max(rates, default=0):
        raise ValueError("the load was not there all the time")
    costs = [1 - mean(notice + number * BINS_PER_S, BINS_PER_S) / before for number in range(AFTER_S)]
    return Eviction(
        case=case,
        seen_ms=(moments.notice_s - moments.wanted_s) * 1e3,
        free_ms=(moments.free_s - moments.notice_s) * 1e3,
        before_iops=before,
        costs=tuple(costs),
        noise=max(abs(second / before - 1) for second in seconds),
        slowest_ms=moments.slowest_ms,
        forced=moments.forced,
    )


def met(evictions: Sequence[Eviction]) -> bool:
    """In the median no more than COST_MAX is missing in any second after a notice."""
    return all(statistics.median(e.costs[number] for e in evictions) <= COST_MAX for number in range(AFTER_S))


def text(evictions: Sequence[Eviction], titles: Mapping[str, str]) -> str:
    """A table with a line for each case; medians, and what was worst."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" + "|---:" * (len(HEADS) - 1) + "|"]
    for case, title in titles.items():
        mine = [eviction for eviction in evictions if eviction.case == case]
        if not mine:
            continue
        costs = [statistics.median(e.costs[number] for e in mine) for number in range(AFTER_S)]
        cells = [
            title,
            str(len(mine)),
            str(sum(e.forced for e in mine)),
            f"{statistics.median(e.seen_ms for e in mine):.0f}",
            f"{statistics.median(e.free_ms for e in mine):.0f}",
            f"{max(e.free_ms for e in mine):.0f}",
            f"{statistics.median(e.before_iops for e in mine):.0f}",
            *(f"{-100 * cost:+.1f} %" for cost in costs),
            f"{100 * statistics.median(e.noise for e in mine):.1f} %",
            f"{max(e.slowest_ms for e in mine):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(evictions: Sequence[Eviction], about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Everything, for other programs."""
    content = {"machine": about, "settings": settings, "evictions": [asdict(eviction) for eviction in evictions]}
    return json.dumps(content, indent=2) + "\n"
