"""What scripts/bench tells fio and what it reads out of its report.

fio prints lines before its JSON, reports latencies in ns, and counts the job before the measured one separately.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from infiniswap.shared.errors import UserError
from scripts.benchmark.fio import age_arguments, arguments, fill_arguments, parse, run
from scripts.benchmark.workload import WORKLOADS, Workload

WRITE = Workload("w", "randwrite", 4096, 32)
READ = Workload("r", "randread", 4096, 1)


def job(ios: int, *, iops: float = 0.0, error: int = 0) -> dict[str, Any]:
    """A job as in fio 3.33's report; it wrote ios times, used 60 % of a core for 2 s, and read nothing."""
    nothing = {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "lat_ns": {}}
    percentile = {"50.000000": 52_000, "99.000000": 410_000, "99.900000": 1_500_000}
    done = {"total_ios": ios, "iops": iops, "bw_bytes": int(iops * 4096), "lat_ns": {"percentile": percentile}}
    return {"error": error, "read": nothing, "write": done, "usr_cpu": 20.0, "sys_cpu": 40.0, "job_runtime": 2000}


def output(*jobs: dict[str, Any]) -> str:
    """What fio prints with the nbd engine."""
    return "fio: connected to NBD server\n" + json.dumps({"fio version": "fio-3.33", "jobs": jobs})


def test_reads_the_measured_job_and_counts_all_ios() -> None:
    """The last job is the measured one; I/Os of the one before are in the total, which CPU time is divided by."""
    result = parse(output(job(500, iops=9.0), job(1000, iops=250.0)), "write")
    assert (result.iops, result.ios) == (250.0, 1500)
    assert result.mb_per_s == pytest.approx(250 * 4096 / 1e6)
    assert (result.p50_us, result.p99_us, result.p999_us) == (52.0, 410.0, 1500.0)
    assert result.client_cpu_s_per_mio == pytest.approx(0.6 * 2 / 1000 * 1e6)


@pytest.mark.parametrize(
    ("text", "direction"),
    [
        ("", "write"),
        ("fio: connected to NBD server\n", "write"),
        (output(job(10, error=5)), "write"),
        (output(job(0)), "write"),
        (output(job(10)), "read"),
        ('fio: something\n{"jobs": ', "write"),
    ],
    ids=["nothing", "no JSON", "error", "no I/O", "other direction", "cut off"],
)
def test_a_run_that_measured_nothing_is_no_result(text: str, direction: str) -> None:
    """Whatever fio prints when it failed, parse says so."""
    with pytest.raises(ValueError, match=r"."):
        parse(text, direction)


def test_ramp_is_a_job_before_the_measured_one() -> None:
    """With a ramp both jobs do the same, one after the other, and with different random offsets."""
    words = arguments(["--ioengine=x"], WRITE, 1 << 20, runtime_s=1.5, ramp_s=2, seed=3)
    cut = words.index("--name=measured")
    ramp, measured = words[words.index("--name=ramp") : cut], words[cut:]
    assert "--stonewall" in measured
    assert "--runtime=2000ms" in ramp
    assert "--runtime=1500ms" in measured
    same = {word for word in ramp if not word.startswith(("--name", "--runtime", "--randseed"))}
    assert same <= set(measured)
    assert {"--rw=randwrite", "--bs=4096", "--iodepth=32", "--size=1048576"} <= same
    seeds = {word for word in words if word.startswith("--randseed")}
    assert len(seeds) == 2


def test_no_ramp_no_second_job() -> None:
    """Without a ramp there is one job."""
    words = arguments(["--ioengine=x"], READ, 1 << 20, runtime_s=1, ramp_s=0, seed=0)
    assert [word for word in words if word.startswith("--name")] == ["--name=measured"]


def test_rounds_differ_and_contenders_of_a_round_do_not() -> None:
    """The offsets depend on the round alone."""

    def seeds(seed: int) -> list[str]:
        words = arguments(["--ioengine=x"], WRITE, 1 << 20, 1, 1, seed)
        return [word for word in words if word.startswith("--randseed")]

    assert seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2))


def test_fill_writes_everything_once() -> None:
    """Filling goes through all of it in order and is not limited by time."""
    words = fill_arguments(["--ioengine=x"], 1 << 20)
    assert {"--rw=write", "--size=1048576"} <= set(words)
    assert "--time_based" not in words


def test_all_that_is_run_tells_latencies() -> None:
    """What parse() reads is in the report only if it was asked for: also by what fills and ages."""
    target = ["--ioengine=x"]
    commands = [arguments(target, READ, 1, 1, 0, 0), fill_arguments(target, 1), age_arguments(target, 1)]
    for command in commands:
        assert {"--lat_percentiles=1", "--output-format=json"} < set(command)


def test_workloads_are_the_documented_ones() -> None:
    """Depths and sizes are what the names say; all but readers alone leave something behind."""
    for workload in WORKLOADS:
        kind, block, depth, *beside = workload.name.split("-")
        assert workload.rw == kind.replace("mix", "randrw")
        assert workload.block_bytes == int(block.removesuffix("k")) << 10
        assert workload.depth == int(depth.removeprefix("qd"))
        assert beside == (["core"] if workload.one_core else [] if workload.beside is None else ["beside"])
        assert workload.writes == ("read" not in kind or workload.beside is not None)


def test_a_load_beside_begins_before_and_lasts_until_the_end() -> None:
    """It is a job of its own, at the same time; the measured one comes last, for that is the one that is read."""
    beside = Workload("b", "randread", 4096, 1, beside=WRITE)
    words = arguments(["--ioengine=x"], beside, 1 << 20, runtime_s=3, ramp_s=2, seed=0)
    cut = words.index("--name=measured")
    load, measured = words[words.index("--name=beside") : cut], words[cut:]
    assert {"--rw=randwrite", "--iodepth=32", "--runtime=5000ms"} <= set(load)
    assert {"--rw=randread", "--iodepth=1", "--runtime=3000ms", "--startdelay=2000ms"} <= set(measured)
    assert "--stonewall" not in words


def test_what_reads_and_writes_is_reported_in_one() -> None:
    """fio adds both up, and its report has a part for that alone; all I/Os of it count."""
    words = arguments(["--ioengine=x"], Workload("m", "randrw", 4096, 32), 1 << 20, 1, 0, 0)
    assert "--unified_rw_reporting=mixed" in words
    written = job(1000, iops=250.0)
    mixed = {"mixed": written["write"]} | {name: written[name] for name in written if name not in ("read", "write")}
    result = parse(output(mixed), "mixed")
    assert (result.iops, result.ios) == (250.0, 1000)


def test_a_failed_fio_is_one_clear_error() -> None:
    """What it said is in the message; one that never ends is ended."""
    with pytest.raises(UserError, match=r"exit code 3.*no such engine"):
        run(["sh", "-c", "echo no such engine >&2; exit 3"], "read", timeout_s=20)
    with pytest.raises(UserError, match="not done within"):
        run(["sleep", "60"], "read", timeout_s=0.05)
