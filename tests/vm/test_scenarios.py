"""Every scenario is green on a real kernel in a virtual machine; those of one machine run one after another."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TIMEOUT_S = 1800

SCENARIOS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "scripts/vm/scenarios").glob("*.sh"))


@pytest.mark.vm
@pytest.mark.timeout(2 * TIMEOUT_S)  # the harness lets one run in at a time, so one may wait for another
@pytest.mark.xdist_group("vm")
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(root: Path, tmp_path: Path, name: str) -> None:
    """The scenario's exit code is 0; what it said is the failure."""
    command = [str(root / "scripts/vm/run"), "--results", str(tmp_path), name]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=2 * TIMEOUT_S - 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
