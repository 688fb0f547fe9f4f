"""Every scenario is green on a real kernel in a virtual machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DEADLINE_S = 1500  # for an emulated machine on a host that has other work too; most take two or three minutes
HARNESS_S = 1200  # installing packages, fetching the kernel, waiting for another run to end

SCENARIOS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "scripts/vm/scenarios").glob("*.sh"))


def test_all_are_here() -> None:
    """Those that the README names."""
    assert {"attach", "compare", "swap", "swap-kill-daemon", "swap-kill-device", "trim"} <= set(SCENARIOS)


@pytest.mark.vm
@pytest.mark.timeout(DEADLINE_S + HARNESS_S + 120)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(root: Path, tmp_path: Path, scenario: str) -> None:
    """The harness ends with 0 when the scenario does; what it said is the failure."""
    command = [str(root / "scripts/vm/run"), "--results", str(tmp_path), "--deadline", str(DEADLINE_S), scenario]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=DEADLINE_S + HARNESS_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
