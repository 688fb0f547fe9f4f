"""What scripts/bench prints and writes: whole tables, and a warning wherever figures mean less than they seem to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from scripts.benchmark.comparison import Verdict
from scripts.benchmark.machine import cpu_model, file_system
from scripts.benchmark.measure import Sample
from scripts.benchmark.report import as_json, number, table, text, warnings, workload_table
from scripts.benchmark.workload import WORKLOADS

WRITE_32 = next(workload for workload in WORKLOADS if workload.name == "randwrite-4k-qd32")
EMPTY = Sample(WRITE_32.name, "infiniswap", 0, 4e4, 163.84, 50, 400, 900, 5, 18, None, 7, 0.01)
NBDKIT = dataclasses.replace(
    EMPTY, contender="nbdkit", iops=2e4, server_cpu_s_per_mio=40.0, remote_share=None, pending_waits=None
)
TITLES = {"infiniswap": "device", "nbdkit": "two hops", "disk": "the disk"}


def test_table_is_markdown_with_aligned_columns() -> None:
    """All lines are equally long; the first column stands left, the others right."""
    lines = table(("name", "IOPS"), [("a", "12 345"), ("longer name", "1")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|-------------|-------:|"
    assert lines[2] == "| a           | 12 345 |"


def test_numbers() -> None:
    """Thousands are separated by spaces; what is not there is a dash."""
    assert number(1234567.4) == "1 234 567"
    assert number(12.346, 2) == "12.35"
    assert number(None, 2) == "-"


def test_workload_table_has_a_row_for_each_that_was_measured() -> None:
    """Contenders without samples have no row; ratios are against nbdkit in the same round."""
    lines = workload_table([EMPTY, NBDKIT], WRITE_32.name, TITLES).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells == ["device", "40 000", "164", "50.0", "400.0", "18.0", "5.0", "2.00", "-"]


def test_sealed_rows_are_compared_with_plain_ones() -> None:
    """Where sealed devices are measured, throughput and CPU per I/O stand against the plain device of the same kind."""
    sealed = dataclasses.replace(EMPTY, contender="infiniswap-sealed", iops=3e4, server_cpu_s_per_mio=27.0)
    titles = {"infiniswap": "device", "infiniswap-sealed": "sealed"}
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in workload_table([EMPTY, sealed], WRITE_32.name, titles).splitlines()
    ]
    assert rows[0][-3:] == ["IOPS x plain", "server CPU x plain", "all CPU x plain"]
    assert rows[2] == ["device", "40 000", "164", "50.0", "400.0", "18.0", "5.0", "-", "-", "-"]
    assert rows[3] == ["sealed", "30 000", "164", "50.0", "400.0", "27.0", "5.0", "0.75", "1.50", "1.39"]


def test_quiet_and_right_samples_give_no_warning() -> None:
    """Nothing is said when nothing is wrong."""
    assert warnings([EMPTY, NBDKIT]) == []
    assert warnings([]) == []


def test_warnings() -> None:
    """Not remote, not steady, no room, a busy machine: each is said."""
    assert "not the steady state" in warnings([dataclasses.replace(EMPTY, pending_waits=0)])[0]
    assert "waited for room" in warnings([dataclasses.replace(EMPTY, contender="infiniswap-room")])[0]
    assert "used 40%" in warnings([dataclasses.replace(EMPTY, other_cpu_share=0.4)])[0]
    read = dataclasses.replace(EMPTY, workload="randread-4k-qd1", pending_waits=None, remote_share=0.5)
    assert "only 50.00% of the pages" in warnings([read])[0]
    assert len(warnings([read, dataclasses.replace(read, round=1, remote_share=0.7)])) == 1


def test_text_and_json_hold_everything() -> None:
    """The printed text has the tables and the targets; the JSON every sample."""
    verdicts = [Verdict("faster", ">= 2x", "1.50x", False)]
    printed = text([EMPTY], [WRITE_32], TITLES, verdicts)
    assert WRITE_32.name in printed
    assert "| faster |" in printed
    assert "NOT met" in printed
    report = json.loads(as_json([EMPTY, NBDKIT], verdicts, {"cores": 2}, {"rounds": 1}))
    assert [sample["contender"] for sample in report["samples"]] == ["infiniswap", "nbdkit"]
    assert report["targets"][0]["met"] is False
    assert report["machine"] == {"cores": 2}


def test_file_system_is_that_of_the_longest_mount_point() -> None:
    """A mount inside another one is found, and a name that only begins alike is not taken for it."""
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /var/tmp tmpfs rw 0 0\n"
    assert file_system(Path("/var/tmp/x"), mounts) == "tmpfs"
    assert file_system(Path("/var/tmpfiles"), mounts) == "ext4"


def test_cpu_model() -> None:
    """The first processor's name; where there is none, the architecture."""
    assert cpu_model("processor: 0\nmodel name\t: Some CPU\nmodel name\t: Other\n") == "Some CPU"
    assert cpu_model("")
