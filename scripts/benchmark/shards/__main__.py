"""The command behind scripts/bench --shards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size, parse_size
from scripts.benchmark import machine
from scripts.benchmark.affinity import two_cores
from scripts.benchmark.floor_build import build_floor
from scripts.benchmark.places import ROOT, directory_option, output_option
from scripts.benchmark.processes import Programs
from scripts.benchmark.shards.bare import Files, Relays, computing
from scripts.benchmark.shards.cases import Case
from scripts.benchmark.shards.clients import DEPTH, WORKLOADS, Plan
from scripts.benchmark.shards.results import OURS, TITLES, Run, as_json, text
from scripts.benchmark.terms import as_command, say

SIZE_BYTES_MAX = 2 << 30


def set_up(plan: Plan, folder: Path, programs: Programs, cores: Sequence[int]) -> list[Case | Relays | Files]:
    """All that clients are measured with, in the order of the tables."""
    build = ROOT / "build" / "floor"
    build_floor(build)
    cases: list[Case | Relays | Files] = []
    for name in OURS:
        say(f"Setting up: {TITLES[name]}")
        cases.append(Case(name, plan, folder, programs, cores))
    say("Setting up: bare relays, and files")
    cases += [Relays(f"bare-{number}", cores[:number], plan, folder, programs, build) for number in (1, 2)]
    return [*cases, *(Files(f"disk-{number}", cores[:number], plan, folder) for number in (1, 2))]


def run(plan: Plan, directory: Path, output: Path) -> list[Run]:
    """All cases, round after round in turns; prints the tables and writes shards.json."""
    runs: list[Run] = []
    *cores, apart = two_cores(os.sched_getaffinity(0))
    folder = Path(tempfile.mkdtemp(prefix="isw-shards-", dir=directory))
    environment = {"INFINISWAP_RUNTIME_DIR": str(folder / "run"), "INFINISWAP_STATE_DIR": str(folder / "state")}
    try:
        with Programs(folder, environment) as programs:
            cases = set_up(plan, folder, programs, cores)
            for number in range(1, plan.rounds + 1):
                for workload in WORKLOADS:
                    for case in (each for each in cases if each.takes(workload)):
                        say(f"Round {number}, {workload.name}: {TITLES[case.name]}")
                        runs.append(case.measure(workload, number))
                        case.settle()
                say(f"Round {number}: a program that only counts")
                runs += [computing(f"count-{used}", cores[:used], plan.runtime_s, number) for used in (1, 2)]
    finally:
        shutil.rmtree(folder)
    about = machine.describe(directory)
    settings: dict[str, Any] = {
        "rounds": plan.rounds,
        "runtime_s": plan.runtime_s,
        "bytes_a_client": plan.size_bytes,
        "depth": DEPTH,
    }
    settings |= {"pinned_to": cores, "physical_cores": 2 if apart else 1}
    output.mkdir(parents=True, exist_ok=True)
    (output / "shards.json").write_text(as_json(runs, about, settings))
    print(
        f"{about['cpu']}, {about['cores']} cores, kernel {about['kernel']}, {about['file_system']}; "
        f"{format_size(plan.size_bytes)} and depth {DEPTH} a client, TCP on loopback; medians"
    )
    print(f"Pinned to cores {cores[0]} and {cores[1]}: by the kernel's word {'two' if apart else 'threads of one'}\n")
    print(text(runs))
    if any(one.busy for one in runs):
        print("\nwarning: others used more than 10 % of the machine in some runs (busy in shards.json)")
    say(f"\nWritten: {output / 'shards.json'}")
    return runs


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One short round: whether it works, not how fast it is.")
@click.option("--rounds", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--runtime-s", type=click.FloatRange(0.2, 600), default=3.0, show_default=True, help="Of each run.")
@click.option("--size", default="128MiB", show_default=True, help="Of what each client uses.")
@click.option("--slab-size", default="8MiB", show_default=True)
@directory_option("On the disk that is to hold the backups.")
@output_option("shards.json")
def main(quick: bool, rounds: int, runtime_s: float, size: str, slab_size: str, directory: Path, output: Path) -> None:
    """Measure a device with two shards against one without, and what a second core gives.

    The same two clients use one service or two, anywhere on the machine: shards must cost nothing. Then a service, its
    client and its daemon on one core, against two such on two cores: throughput must add up, as far as it does for
    a program that only counts, for bare relays, and for writes to files without us.
    """
    with as_command():
        plan = Plan(rounds, runtime_s, parse_size(size), parse_size(slab_size))
        if quick:
            plan = replace(plan, rounds=1, runtime_s=min(runtime_s, 0.5), size_bytes=min(plan.size_bytes, 64 << 20))
        if plan.size_bytes % plan.slab_bytes or plan.size_bytes > SIZE_BYTES_MAX:
            raise UserError(f"--size must be a multiple of --slab-size, and {format_size(SIZE_BYTES_MAX)} at most")
        if len(os.sched_getaffinity(0)) < 2:
            raise UserError("one core cannot show what a second one gives", ExitCode.RESOURCES)
        machine.need_memory(20 * plan.size_bytes + (1 << 30))
        machine.need_disk(directory, 12 * plan.size_bytes)
        run(plan, directory, output)


if __name__ == "__main__":
    main(prog_name="bench --shards")
