"""The model of lives in its short form: as many seeds as fit, every one of which keeps every promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pace import paced

SECONDS = 150
SEEDS = 300
FLOOR_SEEDS = 15  # on the slowest machine that counts; each runs a dozen steps
NTH_SECONDS = 30
NTH_FLOOR = 3  # on the slowest machine that counts
TIMEOUT_S = paced(900)
# Deaths, and ways to keep a backup, that even that many seeds hold.
KINDS = (
    "kill",
    "stop",
    "stop_recovering",
    "kill_recovering",
    "reboot",
    "other_state",
    "daemon_",
    "state_",
    "disk_",
    "backup raw",
    "backup log",
)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("what", ["control", "page", "state"])
def test_each_fails_once(root: Path, what: str) -> None:
    """The first, the second, the third … request to a daemon or change of the state fails, and nothing is lost."""
    command = [sys.executable, "-m", "tests.faults.lives", "--nth", what, "--seconds", str(NTH_SECONDS)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"1 to (\d+) failed", done.stdout)[1]) >= NTH_FLOOR, done.stdout  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
def test_seeds(root: Path, tmp_path: Path) -> None:
    """Whatever dies, lies, fills up or comes back in whatever order, no acknowledged byte is lost or old."""
    summary = tmp_path / "summary.json"
    command = [sys.executable, "-m", "tests.faults.lives", "--seeds", str(SEEDS), "--seconds", str(SECONDS)]
    command += ["--first", os.environ.get("INFINISWAP_TEST_SEED", "0"), "--keep", str(root / "build/lives/failed")]
    done = subprocess.run(
        [*command, "--summary", str(summary)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)  # the seed that failed stands last
    found = json.loads(summary.read_text())
    assert found["seeds"] >= FLOOR_SEEDS, done.stdout
    assert found["failed"] == []
    assert found["answers"] > 100 * FLOOR_SEEDS
    missing = [kind for kind in KINDS if not any(what.startswith(kind) for what in found["happened"])]
    assert not missing, f"{missing} never happened:\n{done.stdout}"
