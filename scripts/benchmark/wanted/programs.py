"""The row of programs that have half of their memory: what scripts/bench --swap does, shorter."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from infiniswap.kernel_shim.sysfs import read_swaps
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark import machine
from scripts.benchmark.comparison import Verdict
from scripts.benchmark.floor_build import build_program
from scripts.benchmark.measure import Plan
from scripts.benchmark.processes import need
from scripts.benchmark.report import RUNTIME_S_MIN
from scripts.benchmark.swap import __main__ as swap
from scripts.benchmark.swap import area
from scripts.benchmark.swap.jobs import JOBS, PROGRAMS
from scripts.benchmark.swap.media import Floor, Infiniswap, Nbdkit
from scripts.benchmark.swap.results import Sample
from scripts.benchmark.terms import say
from scripts.benchmark.wanted.rows import Row

HALF = 50
MEDIA = 3  # that are compared
SHARE = 0.5  # of a run's length: with three media, as long would take the whole benchmark beyond a quarter of an hour
DATA_BYTES = 128 << 20
SHORT_DATA_BYTES = 32 << 20  # where runs are too short to tell of speed
JOB_S, MEDIUM_S = 4.0, 4.0  # beyond the runs: filling a program and taking its memory; setting a swap area up and down


def swap_plan(plan: Plan) -> swap.Plan:
    """As many rounds, half as long."""
    data_bytes = SHORT_DATA_BYTES if plan.runtime_s < RUNTIME_S_MIN else DATA_BYTES
    return swap.Plan(plan.rounds, data_bytes, (HALF,), SHARE * plan.runtime_s, SHARE * plan.runtime_s / 2)


def expected_s(plan: Plan) -> float:
    """How long it takes, nearly."""
    return plan.rounds * MEDIA * (MEDIUM_S + len(JOBS) * (JOB_S + 1.5 * SHARE * plan.runtime_s))


def need_means(directory: Path, data_bytes: int) -> None:
    """UserError with what this machine lacks."""
    area.need_root()
    for command, package in (
        *(("nbdkit", "nbdkit"), ("nbdfuse", "libnbd-bin"), ("fusermount3", "fuse3"), ("losetup", "mount")),
        *(("memcached", "memcached"), ("redis-server", "redis-server"), ("redis-benchmark", "redis-tools")),
    ):
        need(command, package)
    if not Path("/dev/fuse").exists():
        raise UserError("this machine has no FUSE, by which it could swap to an NBD server", ExitCode.RESOURCES)
    if others := read_swaps():
        raise UserError(f"this machine swaps to {others[0].path} already", ExitCode.REFUSED)
    machine.need_memory(swap.FREE_BYTES_MIN + 4 * data_bytes)
    machine.need_disk(directory, 4 * data_bytes)


def ratios(samples: Sequence[Sample], above: str = Infiniswap.name) -> dict[str, float]:
    """By job: the median over rounds of operations a second, of medium above (ours) / nbdkit's in the same round."""
    rates = {(sample.job, sample.medium, sample.round): sample.rate for sample in samples}
    found = {}
    for job in JOBS:
        pairs = [
            rate / rates[job, Nbdkit.name, number]
            for (name, medium, number), rate in rates.items()
            if (name, medium) == (job, above) and rates.get((job, Nbdkit.name, number))
        ]
        if pairs:
            found[job] = median(pairs)
    return found


def _shown(found: dict[str, float]) -> str:
    return ", ".join(f"{job} {found[job]:.2f}" if job in found else f"{job} failed" for job in JOBS)


def judge_ratios(row: Row, found: dict[str, float], floor: dict[str, float], failures: Sequence[str]) -> Verdict:
    """Each job's, and what the floor has; one that failed is told, and then the row is not met."""
    shown = _shown(found) + (f" (floor's own: {_shown(floor)})" if floor else "")
    if failures:
        shown += f" ({failures[0]})"
    return Verdict(row.text, row.wanted, shown, len(found) == len(JOBS) and all(map(row.meets, found.values())))


def judge_programs(row: Row, plan: Plan, directory: Path) -> Verdict:
    """Measure here and now. UserError when this machine cannot."""
    todo = swap_plan(plan)
    need_means(directory, todo.data_bytes)
    folder = Path(tempfile.mkdtemp(prefix="isw-swap-", dir=directory))
    failures: list[str] = []
    try:
        say("Programs with half of their memory")
        build_program(folder / "memcached_load", [PROGRAMS / "memcached_load.c"])
        samples = list(swap.compare([Infiniswap(), Nbdkit(), Floor()], list(JOBS.values()), todo, folder, failures))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return judge_ratios(row, ratios(samples), ratios(samples, Floor.name), failures)
