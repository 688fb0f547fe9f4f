"""Every scenario is green on a real kernel in a virtual machine."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

DEADLINE_S = 3600  # for an emulated machine on a slow host that has other work too; most take two or three minutes
NO_CODE = 125  # the machine ended without the scenario's word
LINES_SHOWN = 150
COLLECT_TIMEOUT_S = 120
SAID_OVER_AND_OVER = ("speed is unknown", "stop running (")
# Each seen once, and once is not a pattern: a scenario that meets one is run again.
NOT_OURS = (
    (("Kernel panic", "[rdma_rxe]"), "soft-RoCE took the machine's kernel down"),  # its own worker faults, in 6.12
    # It ran a breakpoint that the kernel, rewriting its own code, had taken away already.
    (("Kernel panic", "int3: 0000"), "the emulator ran old code of the kernel's"),
    # No program in a machine can keep its kernel from having timers.
    (("stood still: the emulator",), "a machine stood still"),
)
HARNESS_S = 1200  # installing packages, fetching the kernel, waiting for another run to end

# The longest go on beside the tests of this host, one at a time; then the others, two at a time, in this order, so that
# both workers come to an end together.
BESIDE = ("package", "rdma-two-vms")
LONGEST_FIRST = (
    "swap",
    "attach",
    "rdma-faults",
    "rdma-fallback",
    "pressure",
    "evict-pressure",
    "rdma-loopback",
)
FOUND = {path.stem for path in (Path(__file__).resolve().parents[2] / "scripts/vm/scenarios").glob("*.sh")}
SCENARIOS = [*BESIDE, *LONGEST_FIRST, *sorted(FOUND.difference(LONGEST_FIRST, BESIDE))]


def test_all_are_here() -> None:
    """Those that the README names."""
    assert {
        "attach",
        "evict-pressure",
        "package",
        "pressure",
        "rdma-fallback",
        "rdma-faults",
        "rdma-link",
        "rdma-loopback",
        "rdma-two-vms",
        "swap",
    } <= FOUND
    assert set(SCENARIOS) == FOUND


def test_named_tests_are_there(root: Path) -> None:
    """Each test that a scenario names, with its parameters, is one that pytest finds."""
    texts = [path.read_text() for path in (root / "scripts/vm/scenarios").glob("*.sh")]
    named = sorted({name for text in texts for name in re.findall(r"tests/[^\s\"'\\]+", text)})
    assert any("[" in name for name in named)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *named]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=COLLECT_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.vm
@pytest.mark.timeout(2 * (DEADLINE_S + HARNESS_S) + 120)
@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=[pytest.mark.beside] if name in BESIDE else []) for name in SCENARIOS]
)
def test_scenario(root: Path, tmp_path: Path, scenario: str) -> None:
    """The harness ends with 0 when the scenario does; what it said is the failure."""
    done = run_once_more_where_it_is_not_ours(lambda: run(root, tmp_path, scenario), scenario)
    assert done.returncode == 0, what_it_said(done)


def test_what_is_not_ours_is_run_again() -> None:
    """Once, and with a warning that fails nothing, though any other does."""
    panic = subprocess.CompletedProcess([], NO_CODE, "Kernel panic - not syncing ... [rdma_rxe]")
    for ended, code in (([panic, good()], 0), ([panic, panic, good()], NO_CODE), ([good()], 0)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("error")
            left = iter(ended)
            assert run_once_more_where_it_is_not_ours(partial(next, left), "x").returncode == code
        assert [str(each.message).partition("\n")[0] for each in said] == [
            "x: soft-RoCE took the machine's kernel down; run again" for _ in ended[1:2]
        ]


def good() -> subprocess.CompletedProcess[str]:
    """A scenario that did not fail."""
    return subprocess.CompletedProcess([], 0, "all right")


def run_once_more_where_it_is_not_ours(
    again: Callable[[], subprocess.CompletedProcess[str]], scenario: str
) -> subprocess.CompletedProcess[str]:
    """What again() has come to, or its second time, where the first one was ended by what is not ours to mend."""
    done = again()
    fault = whose_fault(done.stdout) if done.returncode == NO_CODE else None
    if fault is None:
        return done
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # else it would be an error, as all others are
        warnings.warn(f"{scenario}: {fault}; run again\n{done.stdout}", stacklevel=1)
    return again()


def whose_fault(said: str) -> str | None:
    """What ended a machine that is not ours to mend, in words."""
    return next((words for signs, words in NOT_OURS if all(sign in said for sign in signs)), None)


def what_it_said(done: subprocess.CompletedProcess[str]) -> str:
    """The end of its output, without what the kernel and systemd say over and over."""
    lines = [line for line in done.stdout.splitlines() if not any(text in line for text in SAID_OVER_AND_OVER)]
    return "\n".join(lines[-LINES_SHOWN:])


def run(root: Path, results: Path, scenario: str) -> subprocess.CompletedProcess[str]:
    """Run one scenario to its end."""
    command = [str(root / "scripts/vm/run"), "--results", str(results), "--deadline", str(DEADLINE_S), scenario]
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=DEADLINE_S + HARNESS_S,
        check=False,
    )
