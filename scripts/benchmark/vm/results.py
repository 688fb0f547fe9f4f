"""What came out of a run in a VM: samples, medians, ratios within a round, the targets, the tables. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from scripts.benchmark.comparison import Verdict
from scripts.benchmark.measure import REMOTE_SHARE_MIN
from scripts.benchmark.report import number, table, verdict_table
from scripts.benchmark.workload import Workload

READ_LATENCY = Workload("read-4k-qd1", "randread", 4096, 1)
WORKLOADS = (
    READ_LATENCY,
    Workload("read-4k-qd16", "randread", 4096, 16),
    Workload("write-4k-qd16", "write", 4096, 16),
    Workload("write-64k-qd16", "write", 64 << 10, 16),
    Workload("write-256k-qd8", "write", 256 << 10, 8),
)

# How the far memory is reached: what is compared with what has to be reached in the same way.
VERBS, ENGINE, SOCKET, KERNEL = "verbs", "engine", "socket", "kernel"
RDMA_DEVICE = "infiniswap-rdma"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tables: one contender, reached in one way."""

    contender: str
    access: str
    title: str

    @property
    def name(self) -> str:
        """In JSON and in messages."""
        return f"{self.contender}/{self.access}"


FLOOR = Row("perftest", VERBS, "ib_read_lat, ib_read_bw, ib_write_bw")
FLOOR_EVENTS = Row("perftest-events", VERBS, "ib_read_lat -e (sleeps, not polls)")


def device_row(transport: str, access: str) -> Row:
    """This project's device over rdma or tcp."""
    ways = {ENGINE: "its engine's own figures", SOCKET: "fio on its socket", KERNEL: "fio on /dev/nbdN"}
    return Row(f"infiniswap-{transport}", access, f"infiniswap over {transport.upper()}: {ways[access]}")


ROWS = (
    FLOOR,
    FLOOR_EVENTS,
    *(device_row(transport, access) for transport in ("rdma", "tcp") for access in (ENGINE, SOCKET, KERNEL)),
    Row("nvme-rdma", KERNEL, "nvme-rdma -> nvmet, RAM disk"),
    Row("nvme-tcp", KERNEL, "nvme-tcp -> nvmet, RAM disk"),
    Row("nbdkit", SOCKET, "nbdkit nbd -> nbdkit memory (TCP)"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One workload, one row, one round. Latencies in µs; None: that row does not tell."""

    round: int
    row: str
    workload: str
    mib_per_s: float | None = None
    mean_us: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    remote_share: float | None = None  # of the pages read, where the device tells


def values(samples: Sequence[Sample], row: str, workload: str, field: str) -> dict[int, float]:
    """Field by round; rounds without a value are left out."""
    found: dict[int, float] = {}
    for sample in samples:
        value = getattr(sample, field)
        if (sample.row, sample.workload) == (row, workload) and value is not None:
            found[sample.round] = float(value)
    return found


def middle(samples: Sequence[Sample], row: str, workload: str, field: str) -> float | None:
    """Median over rounds; None when there is nothing."""
    found = values(samples, row, workload, field)
    return median(found.values()) if found else None


def ratio(samples: Sequence[Sample], row: str, reference: str, workload: str, field: str) -> float | None:
    """Median of row / reference within each round; None when no round has both."""
    ours, theirs = values(samples, row, workload, field), values(samples, reference, workload, field)
    pairs = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
    return median(pairs) if pairs else None


def best_ratio(
    samples: Sequence[Sample], row: str, reference: str, workload: str, field: str, *, at_least: bool
) -> float | None:
    """The best round of row against the best one of reference; None when there is none.

    Whatever else the host does only makes a round worse, so this is what the two can do when nobody disturbs them.
    """
    ours = values(samples, row, workload, field).values()
    theirs = values(samples, reference, workload, field).values()
    if not ours or not theirs:
        return None
    best = max if at_least else min
    return best(ours) / best(theirs) if best(theirs) else None


def field_of(workload: Workload) -> str:
    """What counts: the mean latency at depth 1, else the bandwidth."""
    return "mean_us" if workload.depth == 1 else "mib_per_s"


def heading(workload: Workload) -> str:
    """Of a column."""
    way = "write" if workload.writes else "read"
    return f"{way} {workload.block_bytes >> 10} KiB, depth {workload.depth}"


def _measured(samples: Sequence[Sample]) -> list[Row]:
    present = {sample.row for sample in samples}
    return [row for row in ROWS if row.name in present]


def figures_table(samples: Sequence[Sample]) -> str:
    """Medians: latencies at depth 1, MiB/s of the rest."""
    latency = heading(READ_LATENCY)
    headings = ["far memory by", f"{latency}: mean us", "p50 us", "p99 us"]
    headings += [f"{heading(workload)}: MiB/s" for workload in WORKLOADS if workload is not READ_LATENCY]
    rows = []
    for row in _measured(samples):
        cells = [middle(samples, row.name, READ_LATENCY.name, field) for field in ("mean_us", "p50_us", "p99_us")]
        cells += [middle(samples, row.name, w.name, "mib_per_s") for w in WORKLOADS if w is not READ_LATENCY]
        rows.append([row.title, *(number(cell, 1) for cell in cells)])
    return table(headings, rows)


def ratios_table(samples: Sequence[Sample], reference: Callable[[Row], Row]) -> str:
    """Each row against the one that reference names for it, in the same round; rows without any are left out."""
    headings = ["far memory by", *(heading(workload) for workload in WORKLOADS)]
    rows = []
    for row in _measured(samples):
        other = reference(row)
        found = [ratio(samples, row.name, other.name, w.name, field_of(w)) for w in WORKLOADS]
        if any(cell is not None for cell in found):
            rows.append([row.title, *(number(cell, 2, "x") for cell in found)])
    return table(headings, rows) if rows else "(nothing to compare with)"


def same_way_by_rdma(row: Row) -> Row:
    """The device over RDMA reached as row is; perftest is compared with the engine's own figures."""
    return device_row("rdma", ENGINE if row.access == VERBS else row.access)


@dataclass(frozen=True, slots=True)
class Target:
    """The engine over RDMA against the floor. bound None: only told, nothing is asked."""

    text: str
    workload: str
    field: str
    reference: Row
    bound: float | None
    at_least: bool = True


TARGETS = (
    Target("read of 4 KiB at depth 1, remote part / ib_read_lat", "read-4k-qd1", "mean_us", FLOOR, 1.5, False),
    Target("the same / ib_read_lat -e", "read-4k-qd1", "mean_us", FLOOR_EVENTS, None, False),
    Target("writes of 4 KiB, to its daemon / ib_write_bw", "write-4k-qd16", "mib_per_s", FLOOR, 0.8),
    Target("writes of 64 KiB, to its daemon / ib_write_bw", "write-64k-qd16", "mib_per_s", FLOOR, 0.8),
    Target("writes of 256 KiB, to its daemon / ib_write_bw", "write-256k-qd8", "mib_per_s", FLOOR, 0.8),
)


def judge(samples: Sequence[Sample], target: Target) -> Verdict:
    """Whether samples reach target."""
    row = device_row("rdma", ENGINE)
    where = (row.name, target.reference.name, target.workload, target.field)
    value, best = ratio(samples, *where), best_ratio(samples, *where, at_least=target.at_least)
    wanted = "-" if target.bound is None else f"{'>=' if target.at_least else '<='} {target.bound:g}x"
    if value is None or best is None:
        return Verdict(target.text, wanted, "not measured", None)
    shown = f"{value:.2f}x, best {best:.2f}x"
    if target.bound is None:
        return Verdict(target.text, wanted, shown, None)
    return Verdict(target.text, wanted, shown, value >= target.bound if target.at_least else value <= target.bound)


def warnings(samples: Sequence[Sample]) -> list[str]:
    """What makes samples mean something else than their table says."""
    return [
        f"{sample.row}, {sample.workload}, round {sample.round + 1}: only {sample.remote_share:.1%} of the pages read "
        "came from remote memory"
        for sample in samples
        if sample.remote_share is not None and sample.remote_share < REMOTE_SHARE_MIN
    ]


def text(samples: Sequence[Sample], problems: Sequence[str], notes: Sequence[str]) -> str:
    """Everything, in Markdown. problems: what could not be measured; notes: how it was measured."""
    verdicts = [judge(samples, target) for target in TARGETS]
    parts = [
        "Medians over the rounds. Everything is emulated: only ratios mean something, and only those of one run.",
        figures_table(samples),
        "Ratio to perftest in the same round (latency at depth 1: less is better; bandwidth: more is better):",
        ratios_table(samples, lambda _: FLOOR),
        "Ratio to the device over RDMA, reached the same way (perftest: to its engine's own figures):",
        ratios_table(samples, same_way_by_rdma),
        "Targets (median of the ratios within a round; best: the best round of each against that of the other):",
        verdict_table(verdicts),
        "\n".join(notes),
        "\n".join(f"not measured: {problem}" for problem in problems),
        "\n".join(f"warning: {warning}" for warning in warnings(samples)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(
    samples: Sequence[Sample], problems: Sequence[str], machine: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """All samples with what they were measured on."""
    report = {
        "machine": dict(machine),
        "settings": dict(settings),
        "rows": {row.name: row.title for row in _measured(samples)},
        "targets": [asdict(judge(samples, target)) for target in TARGETS],
        "not_measured": list(problems),
        "samples": [asdict(sample) for sample in samples],
    }
    return json.dumps(report, indent=2) + "\n"
