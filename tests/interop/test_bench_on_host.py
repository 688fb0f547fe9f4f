"""scripts/bench itself, small: a row of its table is set up, measured, printed and written; nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmark.machine import file_system

DEADLINE_S = 110

pytestmark = pytest.mark.timeout(DEADLINE_S + 20)


def test_a_row_is_measured(root: Path, short_path: Path) -> None:
    """The device and the floor are filled and read; the row has a figure, with the command and the disk beside it."""
    if file_system(short_path.resolve(), Path("/proc/self/mounts").read_text()) == "tmpfs":
        pytest.skip("the temporary folder is in memory")
    command = [sys.executable, "-m", "scripts.benchmark", "--quick", "--size", "64MiB", "--rows", "read-1"]
    done = subprocess.run(
        [*command, "--directory", str(short_path), "--output", str(short_path / "out")],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = (short_path / "out" / "table.md").read_text()
    assert table in done.stdout
    assert "./scripts/bench --quick --size 64MiB --rows read-1" in table
    report = json.loads((short_path / "out" / "bench.json").read_text())
    workloads = ["randread-4k-qd1", "randread-4k-qd1-core"]  # as the kernel places them, and all on one core
    expected = [(workload, contender) for workload in workloads for contender in ("infiniswap", "floor")]
    assert [(sample["workload"], sample["contender"]) for sample in report["samples"]] == expected
    assert report["targets"][0]["met"] is not None
    assert report["machine"]["disk"] in table
    assert [path.name for path in short_path.iterdir()] == ["out"]
