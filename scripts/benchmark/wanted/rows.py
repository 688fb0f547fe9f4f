"""The rows of the table: which figures of which runs are put in relation, and what is wanted of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scripts.benchmark.comparison import Verdict, values_ratio
from scripts.benchmark.measure import Sample
from scripts.benchmark.workload import SEQUENTIAL


class Source(NamedTuple):
    """Runs of a contender."""

    contender: str
    workload: str


@dataclass(frozen=True, slots=True)
class Part:
    """A ratio: the median over rounds of that within a round; label: of one that only stands beside, in brackets."""

    ours: Source
    theirs: Source
    field: str = "iops"
    label: str = ""

    def value(self, samples: Sequence[Sample]) -> float | None:
        """None when no round has both."""
        return values_ratio(samples, self.ours, self.theirs, self.field)


@dataclass(frozen=True, slots=True)
class Row:
    """What is wanted: each of parts at least bound, or at most. A row without parts is measured by its own module."""

    name: str
    text: str
    bound: float
    at_least: bool = True
    parts: tuple[Part, ...] = ()
    asides: tuple[Part, ...] = ()
    unit: str = ""
    each: str = ""

    @property
    def wanted(self) -> str:
        """In words."""
        one = f"{'≥' if self.at_least else '≤'} {self.bound:g}{self.unit}{self.each}"
        return "; ".join([one] * max(1, len(self.parts)))

    @property
    def sources(self) -> set[Source]:
        """The runs that it needs, and those that its asides do."""
        return {source for part in (*self.parts, *self.asides) for source in (part.ours, part.theirs)}

    @property
    def needed(self) -> set[Source]:
        """The runs without which it says nothing."""
        return {source for part in self.parts for source in (part.ours, part.theirs)}

    def meets(self, value: float) -> bool:
        """Whether that is what is wanted."""
        return value >= self.bound if self.at_least else value <= self.bound

    def judge(self, samples: Sequence[Sample], absent: Mapping[str, str]) -> Verdict:
        """From the samples; absent: contenders that this machine cannot have, and why."""
        found = [part.value(samples) for part in self.parts]
        reasons = [absent[source.contender] for source in sorted(self.needed) if source.contender in absent]
        if reasons:
            return self.missing(reasons[0])
        shown = "; ".join("-" if value is None else f"{value:.2f}" for value in found)
        beside = [f"{part.label} {value:.2f}" for part in self.asides if (value := part.value(samples)) is not None]
        if beside:
            shown += f" ({', '.join(beside)})"
        known = [value for value in found if value is not None]
        met = None if len(known) < len(found) or not found else all(map(self.meets, known))
        return Verdict(self.text, self.wanted, shown, met)

    def missing(self, reason: str) -> Verdict:
        """It could not be measured."""
        return Verdict(self.text, self.wanted, f"not measured: {' '.join(reason.split())}", None)


def _ours(workload: str, field: str = "iops", against: str = "floor") -> Part:
    return Part(Source("infiniswap", workload), Source(against, workload), field)


def _log(workload: str, field: str = "iops", against: str = "floor") -> Part:
    return Part(Source("infiniswap-log", workload), Source(against, workload), field, "log layout")


def _one_core(workload: str, field: str) -> Part:
    name, depth = f"{workload}-core", workload.partition("qd")[2]
    return Part(Source("infiniswap", name), Source("floor", name), field, f"all on one core, depth {depth}:")


def _beside(contender: str, label: str = "") -> Part:
    return Part(Source(contender, "randread-4k-qd1-beside"), Source(contender, "randread-4k-qd1"), "p99_us", label)


_LOG_TO_RAW = (Source("infiniswap-log", "randwrite-4k-qd32"), Source("infiniswap", "randwrite-4k-qd32"))
PROGRAMS = Row(
    "programs",
    "programs at half memory (`bench --swap`), ours / nbdkit's two hops without backup",
    1.5,
    each=" each",
)
START = Row("start", "start of a device with 100 GiB of log", 2, at_least=False, unit=" s")
ROWS = (
    Row(
        "read",
        "random read 4 KiB, depth 32 / floor; depth 8 / floor",
        0.95,
        parts=(_ours("randread-4k-qd32"), _ours("randread-4k-qd8")),
        asides=(_one_core("randread-4k-qd32", "iops"),),
    ),
    Row(
        "read-1",
        "random read, depth 1: p50 / floor",
        1.05,
        at_least=False,
        parts=(_ours("randread-4k-qd1", "p50_us"),),
        asides=(_one_core("randread-4k-qd1", "p50_us"),),
    ),
    Row(
        "write-log",
        "random write 4 KiB, depth 32, steady, log layout / raw layout on the fast disk",
        1.2,
        parts=(Part(*_LOG_TO_RAW),),
    ),
    Row(
        "write-slow",
        "the same on a disk of 120 IOPS and 100 MB/s (throttled) / its sequential bandwidth",
        0.8,
        parts=(
            Part(Source("infiniswap-log-slow", "randwrite-4k-qd32"), Source("disk-slow", SEQUENTIAL.name), "mb_per_s"),
        ),
    ),
    Row(
        "write-1",
        "random write, depth 1: p50 / floor",
        1.15,
        at_least=False,
        parts=(_ours("randwrite-4k-qd1", "p50_us"),),
        asides=(_log("randwrite-4k-qd1", "p50_us"),),
    ),
    Row(
        "write-128k",
        "write 128 KiB, depth 8 / nbdkit's two hops",
        1.5,
        parts=(_ours("write-128k-qd8", against="nbdkit"),),
        asides=(_log("write-128k-qd8", against="nbdkit"),),
    ),
    Row(
        "mix",
        "mix 50:50, depth 32 / floor",
        0.95,
        parts=(_ours("mix-4k-qd32"),),
        asides=(_log("mix-4k-qd32"),),
    ),
    Row(
        "beside",
        "page-in p99 at depth 1 beside a full write load / alone",
        3,
        at_least=False,
        parts=(_beside("infiniswap"),),
        asides=(
            _beside("infiniswap-log", "log layout"),
            _beside("floor", "floor's own"),
            _beside("nbdkit", "nbdkit's own"),
        ),
    ),
    Row(
        "cpu",
        "CPU per 4 KiB write, all server processes, log / raw",
        0.8,
        at_least=False,
        parts=(Part(*_LOG_TO_RAW, "server_cpu_s_per_mio"),),
    ),
    PROGRAMS,
    START,
)
