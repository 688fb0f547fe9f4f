"""Programs that run at the same time, each pinned or not, and what they print."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark import fio
from scripts.benchmark.affinity import on_core
from scripts.benchmark.shards.results import Run
from scripts.benchmark.workload import Workload

DEPTH = 16  # of each client
WORKLOADS = (Workload("randread-4k", "randread", 4096, DEPTH), Workload("randwrite-4k", "randwrite", 4096, DEPTH))
RAMP_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done."""

    rounds: int
    runtime_s: float
    size_bytes: int  # of what each client uses
    slab_bytes: int


def together(commands: Sequence[Sequence[str]], limit_s: float) -> list[str]:
    """What each prints. UserError when one fails or is not done in limit_s; all have ended then."""
    with ExitStack() as undo:
        running = []
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            running.append(undo.enter_context(process))
            undo.callback(process.kill)
        try:
            outputs = [process.communicate(timeout=limit_s)[0] for process in running]
        except subprocess.TimeoutExpired as error:
            raise UserError(f"not done within {limit_s:.0f} s: {error.cmd!r}", ExitCode.FAILED) from None
    for process in running:
        if process.returncode != 0:
            raise UserError(f"exit code {process.returncode}: {process.args!r}", ExitCode.FAILED)
    return outputs


def fio_command(
    target: Sequence[str], workload: Workload, plan: Plan, seed: int, offset_bytes: int = 0, core: int | None = None
) -> list[str]:
    """A client of its part of a target, pinned if a core is given."""
    command = fio.arguments(target, workload, plan.size_bytes, plan.runtime_s, RAMP_S, seed)
    command += [f"--offset={offset_bytes}"]
    return command if core is None else on_core(core, command)


def run_fio(label: str, commands: Sequence[Sequence[str]], workload: Workload, plan: Plan) -> list[fio.FioResult]:
    """All at once."""
    try:
        outputs = together(commands, RAMP_S + plan.runtime_s + fio.SLACK_S)
        return [fio.parse(output, workload.direction) for output in outputs]
    except (UserError, ValueError) as error:
        raise UserError(f"{label}: fio failed: {error}", ExitCode.FAILED) from None


def run_of(
    case: str,
    workload: Workload,
    number: int,
    found: Sequence[fio.FioResult],
    *,
    servers_s: float,
    remote_share: float | None = None,
    busy: bool = False,
) -> Run:
    """All clients as one: rates added up, latencies those of the slowest. servers_s: CPU time of what answered them."""
    return Run(
        case=case,
        workload=workload.name,
        round=number,
        iops=sum(one.iops for one in found),
        p50_us=max(one.p50_us for one in found),
        p99_us=max(one.p99_us for one in found),
        cpu_s_per_mio=servers_s / sum(one.ios for one in found) * 1e6,
        remote_share=remote_share,
        busy=busy,
    )
