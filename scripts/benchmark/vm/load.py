"""fio's load, with the latency that a caller sees: from the submission's begin to the completion.

Some devices do all their work while a request is being submitted (nvme-tcp sends there); fio's completion latency,
which the other comparisons use, leaves that out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark import fio
from scripts.benchmark.swap.area import run
from scripts.benchmark.workload import Workload

SLACK_S = 120.0  # an emulated machine takes its time to start fio
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """One measured run; runtime_s: how long the requests took, without fio's own start and end."""

    mib_per_s: float
    mean_us: float
    p50_us: float
    p99_us: float
    runtime_s: float


def parse(output: str, writes: bool) -> Load:
    """The only job in fio's JSON output, before which other lines may stand; ValueError when it did nothing."""
    start = output.find("{")
    if start < 0:
        raise ValueError(f"fio printed no JSON: {output[:200]!r}")
    report: dict[str, Any] = json.loads(output[start:])
    job = report["jobs"][-1]
    if job["error"] != 0:
        raise ValueError(f"fio ended with error {job['error']}")
    done = job["write" if writes else "read"]
    if done["total_ios"] == 0 or done["runtime"] == 0:
        raise ValueError(f"fio did no {'write' if writes else 'read'}")
    latency = done["lat_ns"]
    return Load(
        mib_per_s=done["bw_bytes"] / MIB,
        mean_us=latency["mean"] / 1000,
        p50_us=latency["percentile"]["50.000000"] / 1000,
        p99_us=latency["percentile"]["99.000000"] / 1000,
        runtime_s=done["runtime"] / 1000,
    )


def arguments(
    target: Sequence[str], workload: Workload, size_bytes: int, runtime_s: float, round_number: int
) -> list[str]:
    """The command line."""
    command = fio.arguments(target, workload, size_bytes, runtime_s, 0.0, round_number)
    return [command[0], "--lat_percentiles=1", "--clat_percentiles=0", *command[1:]]


def measure(target: Sequence[str], workload: Workload, size_bytes: int, runtime_s: float, round_number: int) -> Load:
    """Run workload for runtime_s seconds. UserError when fio fails, does not come to an end, or did nothing."""
    command = arguments(target, workload, size_bytes, runtime_s, round_number)
    said = run(command, runtime_s + SLACK_S)
    try:
        return parse(said, workload.writes)
    except (ValueError, KeyError) as error:
        raise UserError(f"fio failed ({error}): {' '.join(command)}", ExitCode.FAILED) from None
