"""Ratios and targets of scripts/bench: only runs of one round are compared, and a missing one is no success."""

from __future__ import annotations

import dataclasses

import pytest

from scripts.benchmark.comparison import (
    LAYOUT_TARGETS,
    MIB,
    SEALED_TARGETS,
    Target,
    judge,
    judge_memory,
    middle,
    ratio,
    rss_bound_bytes,
)
from scripts.benchmark.measure import Sample, remote_share
from scripts.benchmark.workload import WORKLOADS

EMPTY = Sample("w", "a", 0, 0, 0, 0, 0, 0, 0, None, None, None, 0)


def samples(contender: str, iops: list[float], **fields: float) -> list[Sample]:
    """One sample a round."""
    first = dataclasses.replace(EMPTY, contender=contender)
    return [
        dataclasses.replace(first, round=number, iops=value, p50_us=fields.get("p50_us", 1.0))
        for number, value in enumerate(iops)
    ]


def test_ratio_is_the_median_of_ratios_within_rounds() -> None:
    """A machine that slows down for a whole round changes nothing: both slow down in it."""
    found = samples("a", [100, 10, 1000]) + samples("b", [50, 5, 500])
    assert ratio(found, "w", "a", "b") == 2.0
    assert middle(found, "w", "a", "iops") == 100


def test_rounds_that_one_of_both_missed_do_not_count() -> None:
    """Only rounds with both enter; with none there is no ratio."""
    found = samples("a", [100, 10]) + samples("b", [50])
    assert ratio(found, "w", "a", "b") == 2.0
    assert ratio(found, "w", "a", "c") is None
    assert ratio(found, "other", "a", "b") is None
    assert ratio(samples("a", [1.0]) + samples("b", [0.0]), "w", "a", "b") is None
    assert middle(found, "w", "c", "iops") is None


def test_values_that_a_contender_has_not_are_left_out() -> None:
    """The disk has no server: no CPU time, not zero CPU time."""
    assert middle(samples("a", [1.0, 2.0]), "w", "a", "server_cpu_s_per_mio") is None


@pytest.mark.parametrize(
    ("ours", "at_least", "met"), [(3.5, True, True), (3.4, True, False), (0.8, False, True), (0.9, False, False)]
)
def test_verdicts(ours: float, at_least: bool, met: bool) -> None:
    """The bound itself is met, on whichever side one has to be."""
    target = Target("t", "w", "iops", "a", "b", 3.5 if at_least else 0.8, at_least)
    verdict = judge(samples("a", [ours]) + samples("b", [1.0]), target)
    assert verdict.met is met
    assert verdict.wanted == (">= 3.5x" if at_least else "<= 0.8x")
    assert verdict.value == f"{ours:.2f}x"


def test_what_was_not_measured_is_not_met() -> None:
    """No samples: neither met nor failed."""
    verdict = judge([], SEALED_TARGETS[0])
    assert verdict.met is None
    assert verdict.value == "not measured"


def test_targets_name_workloads_and_fields_that_exist() -> None:
    """A target with a misspelt name would never be judged."""
    fields = {field.name for field in dataclasses.fields(Sample)}
    for target in (*SEALED_TARGETS, *LAYOUT_TARGETS):
        assert target.workload in {workload.name for workload in WORKLOADS}
        assert target.field in fields


def test_memory_bound() -> None:
    """96 MiB, 2 MiB per GiB of device, and the pending limit; sealed 7 MiB per GiB, and what is pending twice."""
    bound_bytes = rss_bound_bytes(4 << 30, 64 * MIB)
    assert bound_bytes == (96 + 8 + 64) * MIB
    assert rss_bound_bytes(4 << 30, 64 * MIB, sealed=True) == (96 + 28 + 2 * 64) * MIB
    assert judge_memory(bound_bytes, bound_bytes, "x").met is True
    assert judge_memory(bound_bytes + 1, bound_bytes, "x").met is False


def test_remote_share() -> None:
    """Pages from remote memory among those read in between; nothing read or nothing known is no share."""
    assert remote_share((10, 20), (40, 60)) == 0.75
    assert remote_share((10, 20), (10, 20)) is None
    assert remote_share(None, (1, 1)) is None
