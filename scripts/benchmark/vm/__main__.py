"""The command behind scripts/bench --vm: boots the machine, waits, brings back what it measured."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.measure import MachineClock
from scripts.benchmark.places import ROOT, output_option
from scripts.benchmark.processes import end
from scripts.benchmark.report import OTHER_CPU_SHARE_MAX
from scripts.benchmark.terms import as_command, say
from scripts.benchmark.vm.guest import RDMA_POLL_US, ROUNDS_MAX, RUNTIME_S_MAX

SCENARIO = ROOT / "scripts/vm/bench/rdma.sh"
FILES = ("bench-vm.json", "bench-vm.md")
# The harness has deadlines of its own: half an hour each for its set-up and for each of its slots, and the scenario's.
HARNESS_TIMEOUT_S = 4 * 3600
END_TIMEOUT_S = 30
RDMA_POLL_US_MAX = 10_000  # of the device
NORMAL, QUICK = (5, 1.5), (1, 1.0)  # rounds, seconds of each run


def scenario_text(text: str, path: Path, arguments: str) -> str:
    """A scenario that asks for the same machine as text, the scenario at path, and runs that with arguments.

    Nothing but the name of a file reaches a machine from outside, so the arguments have to stand in a file.
    """
    head = [line for line in text.splitlines() if line.startswith(("# vm:", "# needs:"))]
    return "\n".join(["#!/bin/bash", *head, f'BENCH_ARGUMENTS="{arguments}"', f'. "{path}"', ""])


def run_machine(scenario: Path, results: Path, began: Callable[[], None]) -> None:
    """Run the scenario, its output going to stderr; calls began when the machine speaks. UserError when it fails."""
    command = [str(ROOT / "scripts/vm/run"), "--alone", "--results", str(results), str(scenario)]
    end_s = time.monotonic() + HARNESS_TIMEOUT_S
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        output, first = process.stdout.fileno(), True
        while select.select([output], [], [], max(0.0, end_s - time.monotonic()))[0]:
            piece = os.read(output, 65536)
            if not piece:
                break
            if first and b"[" in piece:  # the harness puts the time before what the machine says
                first = False
                began()
            sys.stderr.write(piece.decode(errors="replace"))
            sys.stderr.flush()
        else:
            raise UserError(f"the machine's run has not ended in {HARNESS_TIMEOUT_S} s", ExitCode.FAILED)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
    finally:
        end(process, END_TIMEOUT_S)  # the machine goes with it
    if process.returncode != 0:
        raise UserError(f"the machine's run ended with exit code {process.returncode}; see above", ExitCode.FAILED)


def run(rounds: int, runtime_s: float, rdma_poll_us: int, output: Path) -> None:
    """Measure, copy the files to output, print the tables."""
    with tempfile.TemporaryDirectory(prefix="isw-bench-vm-") as temporary:
        folder = Path(temporary)
        scenario = folder / "bench.sh"
        arguments = f"--rounds {rounds} --runtime-s {runtime_s:g} --rdma-poll-us {rdma_poll_us}"
        scenario.write_text(scenario_text(SCENARIO.read_text(), SCENARIO, arguments))
        clocks: list[MachineClock] = []
        run_machine(scenario, folder / "results", lambda: clocks.append(MachineClock([])))
        other_share = clocks[0].other_share() if clocks else 0.0
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(folder / "results" / scenario.stem / "out1" / name, output / name)
    if other_share > OTHER_CPU_SHARE_MAX:
        with (output / FILES[1]).open("a") as report:
            report.write(f"\nwarning: other programs used {other_share:.0%} of this machine's CPU time meanwhile\n")
    print((output / FILES[1]).read_text())
    say("Written: " + ", ".join(str(output / name) for name in FILES))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round of a second each: shows that it works.")
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), help=f"[default: {NORMAL[0]}; quick: {QUICK[0]}]")
@click.option(
    "--runtime-s",
    type=click.FloatRange(0.5, RUNTIME_S_MAX),
    help=f"Length of each run.  [default: {NORMAL[1]:g}; quick: {QUICK[1]:g}]",
)
@click.option(
    "--rdma-poll-us",
    type=click.IntRange(0, RDMA_POLL_US_MAX),
    default=RDMA_POLL_US,
    show_default=True,
    help="The device's option of that name. Its own default is made for networks that are not emulated.",
)
@output_option("bench-vm.json and bench-vm.md")
def main(quick: bool, rounds: int | None, runtime_s: float | None, rdma_poll_us: int, output: Path) -> None:
    """Compare ways to remote memory in one emulated machine with soft-RoCE.

    They are perftest's ib_read_lat, ib_read_bw and ib_write_bw as the floor, this device over RDMA and over TCP, the
    kernel's nvme-rdma and nvme-tcp to a RAM disk, and nbdkit's two hops.

    Everything is emulated and slow; only the ratios of one run mean something. Leave the machine alone meanwhile.
    """
    usual = QUICK if quick else NORMAL
    with as_command():
        try:
            run(rounds or usual[0], runtime_s or usual[1], rdma_poll_us, output)
        except OSError as error:
            raise UserError(str(error), ExitCode.RESOURCES) from None


if __name__ == "__main__":
    main(prog_name="bench --vm")
