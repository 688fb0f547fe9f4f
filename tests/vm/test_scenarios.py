"""Every scenario is green on a real kernel in a virtual machine.

One test for all of them: they run one after another, and must not hold up a second worker that waits for its turn.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TIMEOUT_S = 7200  # each scenario has a deadline of its own; this one is for a harness that hangs

SCENARIOS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "scripts/vm/scenarios").glob("*.sh"))


@pytest.mark.vm
@pytest.mark.timeout(TIMEOUT_S)
def test_scenarios(root: Path, tmp_path: Path) -> None:
    """The harness ends with 0 when every scenario has; what they said is the failure."""
    assert len(SCENARIOS) >= 5
    done = subprocess.run(
        [str(root / "scripts/vm/run"), "--results", str(tmp_path), *SCENARIOS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S - 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
