"""The engine's own C tests pass under the address, undefined-behaviour and thread sanitizers, and optimised."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
@pytest.mark.parametrize("configuration", ["asan", "tsan", "plain"])
def test_engine_in_c(root: Path, configuration: str) -> None:
    """Every C test passes; what failed is shown with the seed that replays it."""
    command = [str(root / "infiniswap" / "engine" / "tests" / "run"), configuration]
    environment = {name: value for name, value in os.environ.items() if name != "ISW_TEST_WORKER"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert summary.endswith(" passed, 0 failed"), summary
    assert int(summary.split()[0]) > 60
