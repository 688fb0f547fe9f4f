"""Runs fio and reads its JSON (fio 3.33; HOWTO, section "JSON output")."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.workload import Workload

# Beyond the time that the jobs themselves take: connecting, laying out, writing the report.
SLACK_S = 30.0
FILL_TIMEOUT_S = 600.0
FILL_BLOCK_BYTES = 1 << 20
FILL_DEPTH = 4
_PERCENTILES = "50:99:99.9"


@dataclass(frozen=True, slots=True)
class FioResult:
    """One measured run. Latencies are fio's completion latencies (submission to completion) in microseconds."""

    iops: float
    mb_per_s: float  # 10^6 bytes
    p50_us: float
    p99_us: float
    p999_us: float
    client_cpu_s_per_mio: float  # CPU seconds of fio's job per million I/Os
    ios: int  # all I/Os of the invocation, those before the measured part included


def parse(output: str, writes: bool) -> FioResult:
    """The last job in fio's JSON output, before which other lines may stand.

    Raises ValueError when there is no such thing in output, or when the job did no I/O or failed.
    """
    start = output.find("{")
    if start < 0:
        raise ValueError(f"fio printed no JSON: {output[:200]!r}")
    report: dict[str, Any] = json.loads(output[start:])
    direction = "write" if writes else "read"
    jobs = report["jobs"]
    job = jobs[-1]
    if job["error"] != 0:
        raise ValueError(f"fio ended with error {job['error']}")
    done = job[direction]
    if done["total_ios"] == 0:
        raise ValueError(f"fio did no {direction}")
    percentiles = done["clat_ns"]["percentile"]
    cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return FioResult(
        iops=done["iops"],
        mb_per_s=done["bw_bytes"] / 1e6,
        p50_us=percentiles["50.000000"] / 1000,
        p99_us=percentiles["99.000000"] / 1000,
        p999_us=percentiles["99.900000"] / 1000,
        client_cpu_s_per_mio=cpu_s / done["total_ios"] * 1e6,
        ios=sum(each[direction]["total_ios"] for each in jobs),
    )


def arguments(
    target: Sequence[str], workload: Workload, size_bytes: int, runtime_s: float, ramp_s: float, seed: int
) -> list[str]:
    """The command line: where ramp_s is given, a job of its own runs before the measured one, without a break.

    target: the engine and where it finds the data. A job of its own, not fio's ramp_time: so all I/Os are counted.
    """
    pattern = [
        *target,
        f"--rw={workload.rw}",
        f"--bs={workload.block_bytes}",
        f"--iodepth={workload.depth}",
        f"--size={size_bytes}",
        "--norandommap",
        "--time_based",
    ]
    command = ["fio", "--output-format=json", "--thread", f"--percentile_list={_PERCENTILES}", "--allrandrepeat=1"]
    if ramp_s > 0:
        command += ["--name=ramp", *pattern, f"--runtime={_ms(ramp_s)}ms", f"--randseed={2 * seed + 1}"]
        command += ["--name=measured", "--stonewall"]
    else:
        command += ["--name=measured"]
    return [*command, *pattern, f"--runtime={_ms(runtime_s)}ms", f"--randseed={2 * seed + 2}"]


def fill_arguments(target: Sequence[str], size_bytes: int) -> list[str]:
    """The command line for writing all of it once with random data, in order."""
    pattern = ["--rw=write", f"--bs={FILL_BLOCK_BYTES}", f"--iodepth={FILL_DEPTH}", f"--size={size_bytes}"]
    return ["fio", "--output-format=json", "--thread", "--name=fill", *target, *pattern]


def run(command: Sequence[str], writes: bool, timeout_s: float) -> FioResult:
    """Run fio to its end. UserError when it fails, takes longer than timeout_s or did nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"fio was not done within {timeout_s:.0f} s: {' '.join(command)}", ExitCode.FAILED) from None
    try:
        if done.returncode != 0:
            raise ValueError(f"exit code {done.returncode}")
        return parse(done.stdout, writes)
    except ValueError as error:
        said = " ".join(done.stderr.split())[-400:]
        raise UserError(f"fio failed ({error}): {' '.join(command)}: {said}", ExitCode.FAILED) from None


def measure(
    target: Sequence[str], workload: Workload, size_bytes: int, runtime_s: float, ramp_s: float, seed: int
) -> FioResult:
    """Run workload for runtime_s seconds, after ramp_s seconds of the same that do not count."""
    command = arguments(target, workload, size_bytes, runtime_s, ramp_s, seed)
    return run(command, workload.writes, runtime_s + ramp_s + SLACK_S)


def fill(target: Sequence[str], size_bytes: int) -> None:
    """Write everything once."""
    run(fill_arguments(target, size_bytes), writes=True, timeout_s=FILL_TIMEOUT_S)


def _ms(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
