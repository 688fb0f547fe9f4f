"""Medians, ratios and the targets: arithmetic on samples, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from scripts.benchmark.measure import Sample

MIB = 1 << 20
# The bound that the device service's memory keeps, besides its pending limit.
RSS_FIXED_BYTES = 96 * MIB
RSS_BYTES_PER_GIB = 2 * MIB
RSS_SEALED_BYTES_PER_GIB = 7 * MIB


def values(samples: Sequence[Sample], workload: str, contender: str, field: str) -> dict[int, float]:
    """Field of contender's samples by round; rounds without a value are left out."""
    found = {}
    for sample in samples:
        if sample.workload == workload and sample.contender == contender:
            value = getattr(sample, field)
            if value is not None:
                found[sample.round] = float(value)
    return found


def middle(samples: Sequence[Sample], workload: str, contender: str, field: str) -> float | None:
    """Median over rounds; None when there is nothing."""
    found = values(samples, workload, contender, field)
    return median(found.values()) if found else None


def ratio(
    samples: Sequence[Sample], workload: str, contender: str, reference: str, field: str = "iops"
) -> float | None:
    """Median of the ratios contender / reference within each round; None when no round has both."""
    return values_ratio(samples, (contender, workload), (reference, workload), field)


def values_ratio(samples: Sequence[Sample], ours: tuple[str, str], theirs: tuple[str, str], field: str) -> float | None:
    """The same of two runs, each of a contender and a workload."""
    above, below = (values(samples, workload, contender, field) for contender, workload in (ours, theirs))
    pairs = [above[number] / below[number] for number in above if below.get(number)]
    return median(pairs) if pairs else None


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio to reach: at least bound, or at most."""

    text: str
    workload: str
    field: str
    contender: str
    reference: str
    bound: float
    at_least: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out; met is None when it was not measured."""

    text: str
    wanted: str
    value: str
    met: bool | None


_READ_32, _READ_1, _WRITE_32 = "randread-4k-qd32", "randread-4k-qd1", "randwrite-4k-qd32"
SEALED_TARGETS = (
    Target("random read, depth 32, sealed against plain", _READ_32, "iops", "infiniswap-sealed", "infiniswap", 0.85),
    Target(
        "random write, depth 32, with room, sealed against plain",
        _WRITE_32,
        "iops",
        "infiniswap-sealed-room",
        "infiniswap-room",
        0.85,
    ),
    Target(
        "p50 of a random read, depth 1, sealed against plain",
        _READ_1,
        "p50_us",
        "infiniswap-sealed",
        "infiniswap",
        1.05,
        at_least=False,
    ),
)
LAYOUT_TARGETS = (
    Target("random write, depth 32, steady, log against raw", _WRITE_32, "iops", "infiniswap-log", "infiniswap", 1.2),
    Target(
        "CPU of a random write, depth 32, all server processes, log against raw",
        _WRITE_32,
        "server_cpu_s_per_mio",
        "infiniswap-log",
        "infiniswap",
        0.8,
        at_least=False,
    ),
    Target(
        "random write, depth 32, steady, on a slow disk, log against raw",
        _WRITE_32,
        "iops",
        "infiniswap-log-slow",
        "infiniswap-slow",
        10,
    ),
)


def judge(samples: Sequence[Sample], target: Target) -> Verdict:
    """Whether samples reach target."""
    value = ratio(samples, target.workload, target.contender, target.reference, target.field)
    wanted = f"{'>=' if target.at_least else '<='} {target.bound:g}x"
    if value is None:
        return Verdict(target.text, wanted, "not measured", None)
    met = value >= target.bound if target.at_least else value <= target.bound
    return Verdict(target.text, wanted, f"{value:.2f}x", met)


def rss_bound_bytes(size_bytes: int, pending_limit_bytes: int, *, sealed: bool = False) -> int:
    """Most memory that the service of a device of size_bytes may have resident; sealed: each pending page twice."""
    per_gib, pending = (RSS_SEALED_BYTES_PER_GIB, 2) if sealed else (RSS_BYTES_PER_GIB, 1)
    return RSS_FIXED_BYTES + per_gib * size_bytes // (1 << 30) + pending * pending_limit_bytes


def judge_memory(peak_bytes: int, bound_bytes: int, title: str) -> Verdict:
    """Whether the device service kept its bound."""
    text = f"peak memory of the device service ({title})"
    return Verdict(text, f"<= {bound_bytes / MIB:.0f} MiB", f"{peak_bytes / MIB:.0f} MiB", peak_bytes <= bound_bytes)
