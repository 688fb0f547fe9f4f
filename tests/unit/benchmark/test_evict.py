"""How scripts/bench --evict counts what an eviction costs, and what it says to wrong options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infiniswap.shared.errors import UserError
from scripts.benchmark.evict.__main__ import main
from scripts.benchmark.evict.donor import DonorGroup
from scripts.benchmark.evict.load import bins
from scripts.benchmark.evict.results import Eviction, Moments, as_json, figures, met, text

NOTICE = 1_000_000  # the number of a tenth of a second


def rates(*seconds: float) -> dict[int, float]:
    """Seconds of equal rates, the third of which begins with the notice."""
    return {NOTICE - 20 + 10 * second + part: rate for second, rate in enumerate(seconds) for part in range(10)}


def moments(**changes: float) -> Moments:
    """A want whose notice comes at once, and whose memory is free 150 ms later."""
    start_s = NOTICE / 10
    content = {"wanted_s": start_s + 0.01, "notice_s": start_s + 0.02, "free_s": start_s + 0.17, "slowest_ms": 4.0}
    return Moments(forced=False, **{**content, **changes})


def test_reads_and_writes_of_a_bin_count_together() -> None:
    """fio's log has a line for each direction, and bins of one tenth of a second."""
    lines = ["1000000100, 700, 0, 4096, 0", "1000000130, 300, 1, 4096, 0", "1000000200, 50, 1, 4096, 0"]
    assert bins(lines) == {10000001: 1000.0, 10000002: 50.0}


def test_costs_are_seconds_from_the_notice_on() -> None:
    """A second with a tenth less costs a tenth; the one behind it, with as much as before, nothing."""
    found = figures("alone", moments(), rates(1000, 1000, 900, 1000, 1000))
    assert found.costs == pytest.approx((0.1, 0.0))
    assert found.before_iops == pytest.approx(1000)
    assert found.seen_ms == pytest.approx(10, abs=0.1)
    assert found.free_ms == pytest.approx(150, abs=0.1)
    assert found.noise == pytest.approx(0)


def test_a_bin_without_operations_is_none_at_all() -> None:
    """Where nothing was answered for half a second fio writes no line: that is a loss of half a second."""
    made = rates(1000, 1000, 1000, 1000, 1000)
    for number in range(5):
        del made[NOTICE + number]
    assert figures("alone", moments(), made).costs == pytest.approx((0.5, 0.0))


def test_seconds_before_that_differ_are_noise() -> None:
    """What a quiet second differs by tells how much a busy one's difference is worth."""
    assert figures("alone", moments(), rates(900, 1100, 1000, 1000, 1000)).noise == pytest.approx(0.1)


def test_a_load_that_ended_early_gives_no_figures() -> None:
    """Neither does one that never began."""
    with pytest.raises(ValueError, match="not there all the time"):
        figures("alone", moments(), rates(1000, 1000, 1000))
    with pytest.raises(ValueError, match="not there all the time"):
        figures("alone", moments(), {})


def some(*costs: tuple[float, float], case: str = "alone") -> list[Eviction]:
    """Evictions of such costs."""
    return [Eviction(case, 400, 30, 9000, both, 0.02, 3, case == "other") for both in costs]


def test_medians_are_judged() -> None:
    """One bad second among three does not count; a bad median does, in whichever second."""
    assert met(some((0.04, 0.0), (0.3, 0.0), (0.01, 0.01)))
    assert not met(some((0.06, 0.0), (0.3, 0.0), (0.01, 0.01)))
    assert not met(some((0.0, 0.06)))


def test_table_and_file() -> None:
    """A line for each case that was measured, and everything in JSON."""
    evictions = [*some((0.04, -0.01)), *some((0.02, 0.0), case="other")]
    lines = text(evictions, {"alone": "no other donor", "other": "another", "third": "not measured"}).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| no other donor | 1 | 0 | 400 | 30 | 30 | 9000 | -4.0 % | +1.0 % | 2.0 % | 3 |"
    assert {line.count("|") for line in lines} == {12}
    assert json.loads(as_json(evictions, {"cores": 2}, {}))["evictions"][1]["case"] == "other"


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_of_either_version(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is written where that version has it, and idle file pages do not count as used."""
    parent = tmp_path if version == 2 else tmp_path / "memory"
    parent.mkdir(exist_ok=True)
    if version == 2:
        (tmp_path / "cgroup.controllers").write_text("memory")
    names = (
        ("memory.max", "memory.current", "")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    )
    make = Path.mkdir

    def with_files(path: Path) -> None:
        """What the kernel does for a new group."""
        make(path)
        (path / names[0]).write_text("max")
        (path / names[1]).write_text("1000")
        (path / "memory.stat").write_text(f"{names[2]}inactive_file 100\n{names[2]}active_file 50\n")

    monkeypatch.setattr(Path, "mkdir", with_files)
    group = DonorGroup("donor", tmp_path)
    assert group.used_bytes() == 1000 - 100 - 25
    group.limit(4096)
    assert (parent / "donor" / names[0]).read_text() == "4096"


def test_without_a_memory_controller(tmp_path: Path) -> None:
    """A host without control groups is told so, and nothing is left behind."""
    (tmp_path / "cgroup.controllers").write_text("")
    with pytest.raises(UserError, match="no memory controller"):
        DonorGroup("donor", tmp_path)
    assert not (tmp_path / "donor").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "100MiB"], "must be a multiple of --slab-size"),
        (["--size", "128MiB"], "hold 14 slabs or more"),
        (["--size", "8GiB"], "4GiB at most"),
        (["--evictions", "0"], "0 is not in the range"),
    ],
)
def test_wrong_options(options: list[str], said: str) -> None:
    """One line that says what is wrong."""
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 2
    assert said in done.output
