"""The engine's own tests in C, each suite under another pair of eyes: sanitizers for memory, behaviour and threads."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TIMEOUT_S = 1800  # for a machine several times slower than one that needs five minutes


def what_it_said(done: subprocess.CompletedProcess[str]) -> str:
    """Its output without the tests that passed: a report that is cut short somewhere shows the failure still."""
    lines = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
    return "\n".join([*lines, done.stderr])[-20_000:]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("configuration", ["asan", "tsan", "plain"])
def test_suite(root: Path, configuration: str) -> None:
    """Every C test passes; what failed is shown with the seed that replays it."""
    command = [str(root / "infiniswap" / "engine" / "tests" / "run"), "-j", "2", configuration]
    done = subprocess.run(
        command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    told = what_it_said(done)
    assert done.returncode == 0, told
    counted = re.search(r"^(\d+) passed, 0 failed", done.stdout, re.MULTILINE)
    assert counted, told
    assert int(counted[1]) > 60, told


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize(("configuration", "seeds"), [("plain", 2500), ("asan", 150)])
def test_simulation(root: Path, configuration: str, seeds: int) -> None:
    """Whole lives of the device from seeds: what was acknowledged is there; a seed that fails is shrunk and shown."""
    command = [str(root / "infiniswap" / "engine" / "tests" / "simulate"), "--seeds", str(seeds)]
    done = subprocess.run(
        [*command, "--configuration", configuration],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    told = what_it_said(done)
    assert done.returncode == 0, told
    assert re.search(rf"^{seeds} seeds, \d+ operations, 0 failed", done.stdout, re.MULTILINE), told
