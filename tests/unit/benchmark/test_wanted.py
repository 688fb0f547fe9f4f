"""The table of scripts/bench: its rows are measured, judged by rounds, told when they cannot be, and in README."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from infiniswap.engine.log_binding import Log, LogFlag, format_log, log_file_bytes
from infiniswap.shared.errors import UserError
from scripts.benchmark.__main__ import command_of, task_of
from scripts.benchmark.comparison import Verdict
from scripts.benchmark.contenders import Setting
from scripts.benchmark.kinds import KINDS, USUAL
from scripts.benchmark.measure import Plan, Sample, expected_s
from scripts.benchmark.processes import Programs
from scripts.benchmark.run import others_s
from scripts.benchmark.start.starts import build_full_log, chunks_read
from scripts.benchmark.swap.area import run
from scripts.benchmark.swap.jobs import JOBS, Figures
from scripts.benchmark.swap.results import Sample as SwapSample
from scripts.benchmark.wanted import table
from scripts.benchmark.wanted.programs import judge_ratios, ratios
from scripts.benchmark.wanted.rows import PROGRAMS, ROWS, START, Row
from scripts.benchmark.workload import WORKLOADS

MINUTES_MAX = 15
NOTHING = {"encrypt": False, "layouts": False, "only": None, "workloads": None, "rows": None}


def sample(contender: str, workload: str, round_number: int = 0, **fields: float) -> Sample:
    """One run."""
    known = {"iops": 1.0, "mb_per_s": 1.0, "p50_us": 1.0, "p99_us": 1.0, "server_cpu_s_per_mio": 1.0} | fields
    return Sample(
        workload=workload,
        contender=contender,
        round=round_number,
        p999_us=1.0,
        client_cpu_s_per_mio=1.0,
        remote_share=None,
        pending_waits=None,
        other_cpu_share=0.0,
        **known,
    )


def row(name: str) -> Row:
    """By its name."""
    return next(row for row in ROWS if row.name == name)


def reads(round_number: int, ours: float, floor: float) -> list[Sample]:
    """Reads at both depths of a round."""
    return [
        sample(contender, f"randread-4k-qd{depth}", round_number, iops=iops)
        for depth in (8, 32)
        for contender, iops in (("infiniswap", ours), ("floor", floor))
    ]


def test_a_row_is_judged_by_the_ratios_within_rounds() -> None:
    """A round in which everything is slow changes nothing; each part must be as wanted."""
    found = [*reads(0, 96, 100), *reads(1, 9.6, 10), *reads(2, 960, 1000)]
    assert row("read").judge(found, {}) == Verdict(
        "random read 4 KiB, depth 32 / floor; depth 8 / floor", "≥ 0.95; ≥ 0.95", "0.96; 0.96", met=True
    )
    shallow = [each for each in found if each.workload == "randread-4k-qd32"]
    slow = [sample("infiniswap", "randread-4k-qd8", iops=5), sample("floor", "randread-4k-qd8", iops=10)]
    assert row("read").judge([*shallow, *slow], {}).met is False
    assert row("read").judge(shallow, {}) == Verdict(row("read").text, row("read").wanted, "0.96; -", met=None)


def test_what_stands_beside_is_told_and_not_judged() -> None:
    """The floor's own p99 beside writes tells how much of it is the machine's."""
    found = [
        *(sample(name, "randread-4k-qd1", p99_us=10) for name in ("infiniswap", "floor")),
        *(sample(name, "randread-4k-qd1-beside", p99_us=us) for name, us in (("infiniswap", 29), ("floor", 50))),
    ]
    verdict = row("beside").judge(found, {})
    assert (verdict.value, verdict.met) == ("2.90 (floor's own 5.00)", True)


def test_what_the_machine_cannot_is_said_in_the_row() -> None:
    """With the reason, and neither as met nor as missed."""
    verdict = row("write-slow").judge([], {"disk-slow": "no io controller"})
    assert (verdict.value, verdict.met) == ("not measured: no io controller", None)


def test_every_row_is_measured_unless_somebody_chooses(tmp_path: Path) -> None:
    """Each source of a row is among the usual ones, exists, and its contender takes the workload."""
    workloads = {workload.name: workload for workload in WORKLOADS}
    setting = Setting(Programs(tmp_path, {}), tmp_path, tmp_path, 1 << 30, 1 << 24, 1 << 26)
    assert {source for each in ROWS for source in each.sources} <= USUAL
    for source in USUAL:
        assert KINDS[source.contender](setting).takes(workloads[source.workload]), source
    assert [each for each in ROWS if not each.parts] == [PROGRAMS, START]


def test_all_of_it_takes_a_quarter_of_an_hour_at_most(tmp_path: Path) -> None:
    """By the guess that is told at the start, for what is measured when nobody chooses."""
    task = task_of(**NOTHING)  # type: ignore[arg-type]
    setting = Setting(Programs(tmp_path, {}), tmp_path, tmp_path, 512 << 20, 1 << 24, 1 << 26)
    plan = Plan(rounds=3, runtime_s=2.0, ramp_s=1.5, size_bytes=512 << 20)
    contenders = [KINDS[name](setting) for name in task.contenders]
    took_s = expected_s(contenders, task.workloads, plan, task.sources) + others_s(task, plan)
    assert MINUTES_MAX / 2 < took_s / 60 <= MINUTES_MAX


def test_options_choose() -> None:
    """Rows bring what they need; contenders and workloads show the rows that come of them; both at once is refused."""
    task = task_of(**NOTHING | {"rows": "read-1,start"})  # type: ignore[arg-type]
    assert [each.name for each in task.rows] == ["read-1", "start"]
    assert task.sources == {
        (contender, f"randread-4k-qd1{where}") for contender in ("infiniswap", "floor") for where in ("", "-core")
    }
    task = task_of(**NOTHING | {"only": "infiniswap,floor", "workloads": "mix-4k-qd32"})  # type: ignore[arg-type]
    assert [each.name for each in task.rows] == ["mix"]
    assert task.contenders == ["infiniswap", "floor"]
    task = task_of(**NOTHING | {"only": "qemu-nbd"})  # type: ignore[arg-type]
    assert (task.rows, len(task.sources)) == ([], len(WORKLOADS))
    for wrong, said in (({"rows": "swim"}, "no row 'swim'"), ({"rows": "mix", "only": "floor"}, "leave out")):
        with pytest.raises(UserError, match=said):
            task_of(**NOTHING | wrong)  # type: ignore[arg-type]


def test_the_command_is_told_without_places() -> None:
    """Where the results go changes nothing about them."""
    assert command_of(["--rounds", "5", "--output", "/tmp/x", "--readme"]) == "./scripts/bench --rounds 5"
    assert command_of(["--output=/tmp/x"]) == "./scripts/bench"


def test_programs_are_compared_within_rounds() -> None:
    """Each must be as wanted; one that failed is told, and nothing is met without it."""
    found = [
        SwapSample(number, medium, job, 50, Figures(rate * (number + 1), 1.0, 1.0, 1.0), 0, 0)
        for number in range(3)
        for job in JOBS
        for medium, rate in (("infiniswap", 160), ("nbdkit", 100), ("floor", 170))
    ]
    assert ratios(found) == dict.fromkeys(JOBS, 1.6)
    verdict = judge_ratios(PROGRAMS, ratios(found), ratios(found, "floor"), [])
    assert verdict.met is True
    assert "(floor's own: touch 1.70, " in verdict.value
    less = [each for each in found if each.job != "redis"]
    verdict = judge_ratios(PROGRAMS, ratios(less), {}, ["it was killed"])
    assert verdict.met is False
    assert "redis failed" in verdict.value
    assert "it was killed" in verdict.value


def test_a_full_log_is_one(tmp_path: Path) -> None:
    """The engine opens what the start is measured with: every page has a place, and the chain is read to its end."""
    size_bytes = 64 << 20
    build_full_log(tmp_path / "full_log")
    file = tmp_path / "log"
    with file.open("x+b") as made:
        made.truncate(log_file_bytes(size_bytes))
        format_log(made.fileno(), size_bytes)
    said = run([str(tmp_path / "full_log"), str(file), "250"])
    fd = os.open(file, os.O_RDWR)
    try:
        log = Log(fd, LogFlag.NONE)
        info = log.info()
        log.close()
    finally:
        os.close(fd)
    assert info.live_pages == size_bytes // 4096
    assert info.replayed_chunks == int(said.split()[0]) > 0
    assert info.torn_pages == 0


def test_a_start_that_read_something_else_is_no_figure() -> None:
    """The service says how much of the chain it has read, and without that nothing is told."""
    assert chunks_read("INFO backup x: a log, of which 1204 chunks were read again\n") == 1204
    with pytest.raises(UserError, match="did not say"):
        chunks_read("INFO ready\n")


def test_table_goes_between_the_marks() -> None:
    """Once and again; a document without marks is left alone."""
    document = f"before\n\n{table.BEGIN}\nold\n{table.END}\n\nbehind\n"
    once = table.with_table(document, "| new |\n")
    assert once == f"before\n\n{table.BEGIN}\n\n| new |\n\n{table.END}\n\nbehind\n"
    assert table.with_table(once, "| new |\n") == once
    with pytest.raises(UserError, match="no place"):
        table.with_table("text\n", "| new |\n")


def test_text_has_the_command_the_disk_and_what_makes_figures_doubtful() -> None:
    """What a reader of README needs to judge the table."""
    about = {"cpu": "Some CPU", "cores": 2, "kernel": "6.1", "disk": "ext4 on vda"}
    settings = {
        "command": "./scripts/bench",
        "size_bytes": 1 << 30,
        "rounds": 3,
        "runtime_s": 2.0,
        "took_s": 600.0,
        "contenders": {"infiniswap": "device"},
    }
    text = table.markdown(
        [Verdict("faster", "≥ 2", "1.50", False)],
        [sample("infiniswap", "mix-4k-qd32", iops=12345.0, p50_us=7.0)],
        about,
        settings,
        ["others were busy"],
    )
    assert text.startswith(
        "    ./scripts/bench\n\nSome CPU, 2 cores, kernel 6.1; backups on ext4 on vda. Devices of 1GiB, 3"
    )
    assert re.search(r"\| faster +\| +≥ 2 \| +1.50 \| NOT met \|", text)
    assert re.search(r"\| mix-4k-qd32 +\| +12 345 \(7\) \|", text)
    assert "warning: others were busy" in text


def test_readme_has_the_rows_of_the_code(root: Path) -> None:
    """The table in README is one that this command printed: the same rows, in the same order, wanting the same."""
    readme = (root / "README.md").read_text()
    inside = readme.partition(table.BEGIN)[2].partition(table.END)[0]
    assert "./scripts/bench" in inside
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in inside.splitlines() if line.startswith("|")]
    rows = [(line[0], line[1]) for line in cells if line[1].startswith(("≥", "≤"))]
    assert rows == [(each.text, each.wanted) for each in ROWS]
