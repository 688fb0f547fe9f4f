"""Every fuzz target holds for its seeds and what was once found; each fuzzer runs and finds nothing in short."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.targets import targets

CORPUS = Path(__file__).resolve().parent / "corpus"
C_FUZZERS = Path(__file__).resolve().parents[2] / "infiniswap/engine/tests"
SECONDS = 4
EXECUTIONS_MIN = 2  # the slowest lives through a simulated life each time; what is shown is that it runs at all


@pytest.mark.parametrize("name", targets())
def test_known_inputs(name: str) -> None:
    """What a target begins with, and each input that has found something once, is taken without harm."""
    target = targets()[name]
    known = sorted((CORPUS / name).glob("*"))
    for data in [*target.seeds(), *(path.read_bytes() for path in known), b"", b"\0"]:
        target.run(data)
    target.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_fuzzers(root: Path, tmp_path: Path) -> None:
    """./scripts/fuzz builds and runs every target, C and Python, guided by coverage; none finds anything.

    The same tree is tested with the same inputs each time; new ones are looked for by scripts/soak.
    """
    command = [str(root / "scripts/fuzz"), "--seconds", str(SECONDS), "--seed", "1", "--corpus", str(tmp_path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
    ran = dict(re.findall(r"^ok +(\S+) +(\d+) executions", done.stdout, re.MULTILINE))
    wanted = {
        *targets(),
        *(path.stem.replace("libfuzzer_", "c-").replace("_", "-") for path in C_FUZZERS.glob("libfuzzer_*.c")),
    }
    assert set(ran) == wanted
    assert all(int(count) >= EXECUTIONS_MIN for count in ran.values()), ran
