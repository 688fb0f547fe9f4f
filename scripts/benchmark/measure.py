"""Measures contenders in turns, so that whatever the machine does meanwhile falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from scripts.benchmark import fio
from scripts.benchmark.accounting import busy_seconds, children_cpu_seconds, cpu_seconds
from scripts.benchmark.affinity import on_one_core
from scripts.benchmark.contenders import Contender
from scripts.benchmark.workload import Workload

# A device counts as serving from remote memory when no more of its reads than this came from anywhere else.
REMOTE_SHARE_MIN = 0.999
# For a guess at the whole, what a run takes beyond its time: fio's start and end, what is pending, setting up.
RUN_S, SETTLE_S, SET_UP_S = 0.6, 0.4, 6.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one workload against one contender; rates and latencies as in FioResult."""

    workload: str
    contender: str
    round: int
    iops: float
    mb_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    client_cpu_s_per_mio: float
    server_cpu_s_per_mio: float | None  # all its processes, and until they have settled; None: it has none
    remote_share: float | None  # of the pages read, where the contender knows
    pending_waits: int | None  # how often a write waited for room in the pending buffer, where there is one
    other_cpu_share: float  # of the machine's CPU time during the run: neither fio nor this contender

    @property
    def all_cpu_s_per_mio(self) -> float:
        """Of client and servers: where every core is busy, throughput is the inverse of it."""
        return self.client_cpu_s_per_mio + (self.server_cpu_s_per_mio or 0.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    rounds: int
    runtime_s: float
    ramp_s: float  # before measured writes: a pending buffer fills, a disk's own cache too
    size_bytes: int

    def seconds(self, contender: Contender, workload: Workload) -> tuple[float, float]:
        """(measured, ramp before) of a run."""
        ramp_s = self.ramp_s if workload.writes else 0.0
        return contender.patience * self.runtime_s, contender.patience * ramp_s


class MachineClock:
    """CPU time spent since it was made: by the servers, by children that have ended, by everything else."""

    def __init__(self, pids: Sequence[int]) -> None:
        """pids: the servers."""
        self._pids = pids
        self._begun = (cpu_seconds(pids), children_cpu_seconds(), *busy_seconds())

    def servers_s(self) -> float:
        """Of the servers."""
        return cpu_seconds(self._pids) - self._begun[0]

    def other_share(self) -> float:
        """What neither servers nor children used, as a share of the CPU time that the machine had; 0 to 1."""
        busy_s, all_s = busy_seconds()
        other_s = busy_s - self._begun[2] - self.servers_s() - (children_cpu_seconds() - self._begun[1])
        return min(1.0, max(0.0, other_s / max(all_s - self._begun[3], 1e-9)))


def turns(contenders: Sequence[Contender], round_number: int) -> list[Contender]:
    """The order in a round; each round begins with another contender."""
    first = round_number % len(contenders) if contenders else 0
    return [*contenders[first:], *contenders[:first]]


def measure_once(contender: Contender, workload: Workload, round_number: int, plan: Plan) -> Sample:
    """One run, and the wait for what it leaves behind."""
    reads_before, waits_before = contender.remote_reads(), contender.pending_waits()
    clock = MachineClock(contender.pids())
    runtime_s, ramp_s = plan.seconds(contender, workload)
    command = fio.arguments(contender.target(), workload, plan.size_bytes, runtime_s, ramp_s, round_number)
    where: AbstractContextManager[list[str]] = on_one_core(contender.pids()) if workload.one_core else nullcontext([])
    with where as before:
        result = fio.run([*before, *contender.within(command)], workload.direction, runtime_s + ramp_s + fio.SLACK_S)
    other_cpu_share = clock.other_share()
    contender.settle()
    waits_after = contender.pending_waits()
    return Sample(
        workload=workload.name,
        contender=contender.name,
        round=round_number,
        iops=result.iops,
        mb_per_s=result.mb_per_s,
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        p999_us=result.p999_us,
        client_cpu_s_per_mio=result.client_cpu_s_per_mio,
        server_cpu_s_per_mio=clock.servers_s() / result.ios * 1e6 if contender.pids() else None,
        remote_share=None if workload.writes else remote_share(reads_before, contender.remote_reads()),
        pending_waits=None if waits_before is None or waits_after is None else waits_after - waits_before,
        other_cpu_share=other_cpu_share,
    )


def remote_share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Share of the pages read between two counts of (remote, all) that came from remote memory."""
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def measure(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    plan: Plan,
    say: Callable[[str], None],
    *,
    wanted: Container[tuple[str, str]] | None = None,
) -> Iterator[Sample]:
    """Every workload against every contender that takes it, plan.rounds times; say gets a line before each run.

    wanted: the names of contenders and workloads to be measured; all that are taken unless given.
    """
    for workload in workloads:
        taking = taken(contenders, workload, wanted)
        for round_number in range(plan.rounds):
            for contender in turns(taking, round_number):
                say(f"{workload.name}, round {round_number + 1} of {plan.rounds}: {contender.title}")
                yield measure_once(contender, workload, round_number, plan)


def taken(
    contenders: Sequence[Contender], workload: Workload, wanted: Container[tuple[str, str]] | None
) -> list[Contender]:
    """Those that workload is measured with."""
    return [
        contender
        for contender in contenders
        if contender.takes(workload) and (wanted is None or (contender.name, workload.name) in wanted)
    ]


def expected_s(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    plan: Plan,
    wanted: Container[tuple[str, str]] | None = None,
) -> float:
    """How long that takes, nearly."""
    runs_s = 0.0
    for workload in workloads:
        for contender in taken(contenders, workload, wanted):
            runs_s += RUN_S + sum(plan.seconds(contender, workload)) + (SETTLE_S if workload.writes else 0.0)
    return plan.rounds * runs_s + SET_UP_S * len(contenders)
