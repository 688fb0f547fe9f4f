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
AGE_BLOCK_BYTES, AGE_DEPTH = 4096, 32
_LATENCIES = ("--clat_percentiles=0", "--lat_percentiles=1", "--percentile_list=50:99:99.9")
_FIO = ("fio", "--output-format=json", "--thread", *_LATENCIES)  # what parse() needs


_NOTHING = {"total_ios": 0}


@dataclass(frozen=True, slots=True)
class FioResult:
    """One measured run. Latencies are what a caller waits, in microseconds, from the beginning of the submission on.

    Where a server answers while fio is still submitting, as on a busy machine, completion latencies tell nothing.
    """

    iops: float
    mb_per_s: float  # 10^6 bytes
    p50_us: float
    p99_us: float
    p999_us: float
    client_cpu_s_per_mio: float  # CPU seconds of fio's job per million I/Os
    ios: int  # all I/Os of the invocation, those before the measured part included


def parse(output: str, direction: str) -> FioResult:
    """The last job in fio's JSON output, before which other lines may stand; direction: read, write or mixed.

    Raises ValueError when there is no such thing in output, or when the job did no I/O or failed.
    """
    start = output.find("{")
    if start < 0:
        raise ValueError(f"fio printed no JSON: {output[:200]!r}")
    report: dict[str, Any] = json.loads(output[start:])
    jobs = report["jobs"]
    job = jobs[-1]
    errors = [each["error"] for each in jobs if each["error"] != 0]
    if errors:
        raise ValueError(f"fio ended with error {errors[0]}")
    done = job.get(direction, _NOTHING)
    if done["total_ios"] == 0:
        raise ValueError(f"fio did no I/O of the kind {direction}")
    percentiles = done["lat_ns"]["percentile"]
    cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return FioResult(
        iops=done["iops"],
        mb_per_s=done["bw_bytes"] / 1e6,
        p50_us=percentiles["50.000000"] / 1000,
        p99_us=percentiles["99.000000"] / 1000,
        p999_us=percentiles["99.900000"] / 1000,
        client_cpu_s_per_mio=cpu_s / done["total_ios"] * 1e6,
        ios=sum(each[way]["total_ios"] for each in jobs for way in ("read", "write", "mixed") if way in each),
    )


def arguments(
    target: Sequence[str], workload: Workload, size_bytes: int, runtime_s: float, ramp_s: float, seed: int
) -> list[str]:
    """The command line: where ramp_s is given, a job of its own runs before the measured one, without a break.

    target: the engine and where it finds the data. A job of its own, not fio's ramp_time: so all I/Os are counted.
    What runs beside the measured job begins ramp_s before it.
    """
    command = [*_FIO, "--allrandrepeat=1"]
    pattern = _pattern(target, workload, size_bytes)
    if workload.beside is not None:
        command += ["--name=beside", *_pattern(target, workload.beside, size_bytes)]
        command += [f"--runtime={_ms(ramp_s + runtime_s)}ms", f"--randseed={2 * seed + 1}"]
        command += ["--name=measured", f"--startdelay={_ms(ramp_s)}ms"]
    elif ramp_s > 0:
        command += ["--name=ramp", *pattern, f"--runtime={_ms(ramp_s)}ms", f"--randseed={2 * seed + 1}"]
        command += ["--name=measured", "--stonewall"]
    else:
        command += ["--name=measured"]
    return [*command, *pattern, f"--runtime={_ms(runtime_s)}ms", f"--randseed={2 * seed + 2}"]


def _pattern(target: Sequence[str], workload: Workload, size_bytes: int) -> list[str]:
    return [
        *target,
        f"--rw={workload.rw}",
        *(["--unified_rw_reporting=mixed"] if workload.direction == "mixed" else []),
        f"--bs={workload.block_bytes}",
        f"--iodepth={workload.depth}",
        f"--size={size_bytes}",
        "--norandommap",
        "--time_based",
    ]


def fill_arguments(target: Sequence[str], size_bytes: int) -> list[str]:
    """The command line for writing all of it once with random data, in order."""
    pattern = ["--rw=write", f"--bs={FILL_BLOCK_BYTES}", f"--iodepth={FILL_DEPTH}", f"--size={size_bytes}"]
    return [*_FIO, "--name=fill", *target, *pattern]


def age_arguments(target: Sequence[str], size_bytes: int) -> list[str]:
    """The command line for that: fio's map of what it has written makes it each page once."""
    pattern = ["--rw=randwrite", f"--bs={AGE_BLOCK_BYTES}", f"--iodepth={AGE_DEPTH}", f"--size={size_bytes}"]
    return [*_FIO, "--name=age", *target, *pattern]


def run(command: Sequence[str], direction: str, timeout_s: float) -> FioResult:
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
        return parse(done.stdout, direction)
    except ValueError as error:
        said = " ".join(done.stderr.split())[-400:]
        raise UserError(f"fio failed ({error}): {' '.join(command)}: {said}", ExitCode.FAILED) from None


def fill(target: Sequence[str], size_bytes: int) -> None:
    """Write everything once."""
    run(fill_arguments(target, size_bytes), "write", timeout_s=FILL_TIMEOUT_S)


def age(target: Sequence[str], size_bytes: int) -> None:
    """Write each page once more, at random: what is written in sequence has to be cleaned from then on."""
    run(age_arguments(target, size_bytes), "write", timeout_s=FILL_TIMEOUT_S)


def _ms(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
