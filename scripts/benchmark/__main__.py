"""The command behind scripts/bench."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import format_size, parse_size
from scripts.benchmark import machine
from scripts.benchmark.device_contender import Device, DeviceWithRoom
from scripts.benchmark.kinds import KINDS, LAYOUTS, SEALED, USUAL
from scripts.benchmark.measure import Plan
from scripts.benchmark.places import directory_option, output_option
from scripts.benchmark.run import SLAB_BYTES, Task, run
from scripts.benchmark.terms import as_command, chosen
from scripts.benchmark.wanted.rows import ROWS, Row, Source
from scripts.benchmark.workload import WORKLOADS

ROUNDS_MAX = 1000
RUNTIME_S_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is done unless an option says otherwise."""

    rounds: int
    runtime_s: float
    ramp_s: float
    size: str


NORMAL = Amount(rounds=3, runtime_s=2.0, ramp_s=1.5, size="512MiB")
QUICK = Amount(rounds=1, runtime_s=0.3, ramp_s=0.2, size="128MiB")


def task_of(*, encrypt: bool, layouts: bool, only: str | None, workloads: str | None, rows: str | None) -> Task:
    """What is to be measured. UserError for names that are none, and for options that contradict each other."""
    known = [workload.name for workload in WORKLOADS]
    all_rows = [row.name for row in ROWS]
    if rows is not None:
        if encrypt or layouts or only is not None or workloads is not None:
            raise UserError("--rows says what is measured: leave out --encrypt, --layouts, --only and --workloads")
        names = chosen(rows, all_rows, all_rows, "row")
        picked = [row for row in ROWS if row.name in names]
        return Task(sources=frozenset(source for row in picked for source in row.sources), rows=picked)
    if not encrypt and not layouts and only is None and workloads is None:
        return Task(sources=USUAL, rows=list(ROWS))
    plain = [name for name in KINDS if any(source.contender == name for source in USUAL)]
    usual = [Device.name, DeviceWithRoom.name, *SEALED] if encrypt else [Device.name, *LAYOUTS] if layouts else plain
    contenders = chosen(only, list(KINDS), usual, "contender")
    patterns = chosen(workloads, known, known, "workload")
    sources = frozenset(Source(name, pattern) for name in contenders for pattern in patterns)
    if only is None and not encrypt and not layouts:
        sources &= USUAL
    shown: list[Row] = [row for row in ROWS if row.parts and row.needed <= sources]
    return Task(sources=sources, rows=shown, encrypt=encrypt, layouts=layouts)


def command_of(words: Sequence[str]) -> str:
    """What others type to have the same measured, without where it is written."""
    kept = [word for word in words if word != "--readme" and not word.startswith("--output=")]
    if "--output" in kept:
        at = kept.index("--output")
        kept[at : at + 2] = []
    return " ".join(["./scripts/bench", *kept])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One short round on a small device: shows that it works.")
@click.option("--encrypt", is_flag=True, help="What sealing costs: sealed devices against plain ones, in one run.")
@click.option("--layouts", is_flag=True, help="A log as backup against an image, on this disk and on one made slow.")
@click.option("--rows", metavar="NAME,…", help=f"Of the table: {', '.join(row.name for row in ROWS)}.  [default: all]")
@click.option("--only", metavar="NAME,…", help=f"Contenders: {', '.join(KINDS)}.")
@click.option("--workloads", metavar="NAME,…", help=f"Of {', '.join(w.name for w in WORKLOADS)}.  [default: all]")
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), help=f"[default: {NORMAL.rounds}; quick: {QUICK.rounds}]")
@click.option(
    "--runtime-s",
    type=click.FloatRange(0.1, RUNTIME_S_MAX),
    help=f"Length of a run.  [default: {NORMAL.runtime_s:g}; quick: {QUICK.runtime_s:g}]",
)
@click.option(
    "--ramp-s",
    type=click.FloatRange(0, RUNTIME_S_MAX),
    help=f"Writes before measured writes.  [default: {NORMAL.ramp_s:g}; quick: {QUICK.ramp_s:g}]",
)
@click.option("--size", metavar="SIZE", help=f"Of every contender.  [default: {NORMAL.size}; quick: {QUICK.size}]")
@directory_option("On the disk that is to hold the backup.")
@output_option("bench.json, bench.png and table.md")
@click.option("--readme", is_flag=True, help="Put the table into README.md, too.")
def main(
    quick: bool,
    encrypt: bool,
    layouts: bool,
    rows: str | None,
    only: str | None,
    workloads: str | None,
    rounds: int | None,
    runtime_s: float | None,
    ramp_s: float | None,
    size: str | None,
    directory: Path,
    output: Path,
    readme: bool,
) -> None:
    """Measure the device against nbdkit, a bare relay, and its backup's disk, in turns, on this machine.

    Prints tables with the ratios, and one of what is wanted and whether it is met; writes JSON, a plot and that table.
    Leave the machine alone meanwhile: the ratios are taken within a round, but whatever else runs makes them less sure.
    """
    amount = QUICK if quick else NORMAL
    with as_command():
        task = task_of(encrypt=encrypt, layouts=layouts, only=only, workloads=workloads, rows=rows)
        plan = Plan(
            rounds=rounds or amount.rounds,
            runtime_s=runtime_s or amount.runtime_s,
            ramp_s=amount.ramp_s if ramp_s is None else ramp_s,
            size_bytes=parse_size(size or amount.size),
        )
        if plan.size_bytes < 64 << 20 or plan.size_bytes % SLAB_BYTES:
            raise UserError(f"--size must be a multiple of {format_size(SLAB_BYTES)}, 64MiB at least")
        machine.need_on_disk(directory)
        run(task, plan, directory, output, command_of(sys.argv[1:]), into_readme=readme)


if __name__ == "__main__":
    main(prog_name="bench")
