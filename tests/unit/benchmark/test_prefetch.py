"""Figures of scripts/bench --prefetch, and its options."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from scripts.benchmark.prefetch.__main__ import main
from scripts.benchmark.prefetch.results import Run, judge, ratio, table


def a_run(number: int, workload: str, prefetch: str, iops: float) -> Run:
    """With what else is needed."""
    return Run(number, workload, prefetch, iops, 1e6 / iops, 2e6 / iops, 100, 90)


RUNS = [
    a_run(1, "in sequence", "off", 1000),
    a_run(1, "in sequence", "auto", 5000),
    a_run(2, "in sequence", "auto", 9000),
    a_run(2, "in sequence", "off", 3000),
    a_run(3, "in sequence", "auto", 1),
    a_run(1, "by chance", "off", 1000),
    a_run(1, "by chance", "auto", 950),
]


def test_ratios_are_of_one_round() -> None:
    """A round that has only one of the two tells nothing."""
    assert ratio(RUNS, "in sequence") == 4.0
    assert ratio(RUNS, "every 7th page") is None


def test_verdicts() -> None:
    """Met, not measured, not met."""
    assert [(each.value, each.met) for each in judge(RUNS)] == [
        ("4.00x", True),
        ("not measured", None),
        ("0.95x", False),
    ]


def test_the_table_has_a_line_for_each() -> None:
    """Medians, and the share of guesses that were read."""
    lines = table(RUNS).splitlines()
    assert len(lines) == 5
    assert lines[2].split() == ["in", "sequence", "auto", "5000", "200", "400", "300", "90%"]


@pytest.mark.parametrize(
    "options", [["--size", "100MiB"], ["--size", "32MiB"], ["--rounds", "0"], ["--delay-us", "-1"]]
)
def test_wrong_options(options: list[str]) -> None:
    """Told before anything is begun."""
    assert CliRunner().invoke(main, options).exit_code == 2
