"""fio's NBD engine with verification."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.target import SIZE_BYTES, Target
from tests.support.pace import lighter
from tests.support.tools import fio_arguments, tool

MIB = 1 << 20
PART_BYTES = lighter(SIZE_BYTES, least=4 * MIB)  # what is written and verified, from the export's beginning


@pytest.mark.parametrize(
    "options",
    [
        ("--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1", "--iodepth=32"),
        ("--rw=randwrite", "--bs=4k", "--iodepth=64", "--fsync=64"),
        ("--rw=write", "--bsrange=4k-1m", "--iodepth=8"),
        (
            "--rw=randrw",
            "--bs=4k",
            "--iodepth=32",
            "--verify_backlog=256",
            "--norandommap",
            "--serialize_overlap=1",  # of a page's read and its next write at once, either may come first
            f"--io_size={PART_BYTES * 3 // 2}",
        ),
        ("--rw=randtrimwrite", "--bs=4k", "--iodepth=16"),
    ],
    ids=["any-size", "fsync", "sequential", "mixed", "trim"],
)
def test_one_job(target: Target, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Everything that one deep queue wrote reads back with its checksums."""
    output = tool(*fio_arguments(target.uri, PART_BYTES, *options, "--randseed=7"), folder=tmp_path)
    assert "err= 0" in output


def test_several_jobs(target: Target, tmp_path: Path) -> None:
    """Four connections at once, each with a part of the export and a queue of its own, find what they wrote."""
    part = PART_BYTES // 4
    jobs = [
        "--numjobs=4",
        f"--offset_increment={SIZE_BYTES // 4}",
        "--rw=randwrite",
        "--bsrange=2k-16k",
        "--iodepth=16",
    ]
    output = tool(*fio_arguments(target.uri, part, *jobs, "--randseed=8"), folder=tmp_path)
    assert output.count("err= 0") == 4
