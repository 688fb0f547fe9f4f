"""How scripts/bench --shards counts, and what it says to wrong options."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from infiniswap.shared.errors import UserError
from scripts.benchmark.shards.__main__ import main
from scripts.benchmark.shards.bare import computing
from scripts.benchmark.shards.clients import together
from scripts.benchmark.shards.results import COMPUTE, Run, as_json, misplaced, ratios, shares, text


def some(case: str, number: int, iops: float, workload: str = "randread-4k") -> Run:
    """A run."""
    return Run(case, workload, number, iops, 100.0, 200.0, 10.0, 1.0, busy=False)


def test_ratios_are_taken_within_a_round() -> None:
    """A slow round counts for both; a round that lacks one of them for none."""
    runs = [some("one", 1, 100), some("two", 1, 110), some("one", 2, 50), some("two", 2, 45), some("two", 3, 999)]
    assert ratios(runs, "randread-4k", "two", "one") == [1.1, 0.9]


def test_text() -> None:
    """A row for each case that was measured, and each ratio with what is wanted."""
    runs = [some("one", 1, 100), some("two", 1, 90), some("one-core", 1, 50), some("two-cores", 1, 95)]
    lines = text(runs).splitlines()
    assert "| 1 shard, 2 clients, anywhere | 100 | 100.0 | 200.0 | 10.0 | 100% |" in lines
    assert "| 2 shards / 1 shard, same clients | randread-4k | >= 0.95 | 0.90 (0.90 to 0.90) | NOT MET |" in lines
    assert "| 2 cores / 1 core, all pinned | randread-4k | >= 1.80 | 1.90 (1.90 to 1.90) | met |" in lines
    assert json.loads(as_json(runs, {"cores": 2}, {}))["runs"][1]["iops"] == 90


def test_shards_against_what_the_machine_gives() -> None:
    """What a second core gives shards is set against what it gives bare relays in the same round, and both are told."""
    iops = {"one-core": (100, 50), "two-cores": (120, 60), "bare-1": (200, 100), "bare-2": (250, 150)}
    runs = [some(case, number, each[number - 1]) for case, each in iops.items() for number in (1, 2)]
    runs += [some("count-1", 1, 1000, COMPUTE), some("count-2", 1, 1100, COMPUTE)]
    assert shares(runs, "randread-4k") == pytest.approx([1.2 / 1.25, 1.2 / 1.5])
    lines = text(runs).splitlines()
    assert "| the machine: 2 cores / 1 core, bare relays | randread-4k |  | 1.38 (1.25 to 1.50) |  |" in lines
    assert (
        "| the machine: 2 cores / 1 core, a program that only counts | counting |  | 1.10 (1.10 to 1.10) |  |" in lines
    )
    assert (
        "| what 2 cores give shards / give bare relays | randread-4k | >= 0.90 | 0.88 (0.80 to 0.96) | NOT MET |"
        in lines
    )
    assert f"{COMPUTE}:" not in lines  # it has neither latencies nor servers


def test_slabs_on_another_cores_daemon_are_found() -> None:
    """One that is mapped elsewhere, or about to move, is named; one on its own daemon is not."""
    rows = [
        {"index": 0, "state": "mapped", "peer": "a:1"},
        {"index": 1, "state": "mapped", "peer": "b:1"},
        {"index": 2, "state": "draining", "peer": "a:1"},
        {"index": 3, "state": "unmapped", "peer": None},
    ]
    found = ["slab 1 is mapped (b:1)", "slab 2 is draining (a:1)", "slab 3 is unmapped (None)"]
    assert misplaced(rows, "a:1") == found


def test_programs_run_at_the_same_time(tmp_path: Path) -> None:
    """Each of two that wait for the other ends, and one that fails is an error."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for path in (one, two):
        os.mkfifo(path)
    commands = [["sh", "-c", f"echo a >{one}; cat {two}"], ["sh", "-c", f"cat {one}; echo b >{two}"]]
    assert together(commands, 20.0) == ["b\n", "a\n"]
    with pytest.raises(UserError, match="exit code 3"):
        together([["true"], ["sh", "-c", "exit 3"]], 20.0)
    with pytest.raises(UserError, match="not done within"):
        together([["sleep", "60"]], 0.1)


def test_a_program_that_only_counts() -> None:
    """It runs on each core that it is given, and its rounds are counted."""
    run = computing("count-1", [min(os.sched_getaffinity(0))], 0.2, 1)
    assert (run.workload, run.round) == (COMPUTE, 1)
    assert run.iops > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--rounds", "0"], "0 is not in the range"), (["--size", "65MiB"], "must be a multiple of --slab-size")],
)
def test_wrong_options(options: list[str], words: str) -> None:
    """Each ends with one line, before anything is started."""
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 2
    assert words in done.output
