"""The command behind scripts/bench."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import format_size, parse_size
from scripts.benchmark import machine, report
from scripts.benchmark.accounting import peak_rss_bytes
from scripts.benchmark.comparison import (
    LAYOUT_TARGETS,
    SEALED_TARGETS,
    TARGETS,
    Verdict,
    judge,
    judge_memory,
    rss_bound_bytes,
)
from scripts.benchmark.contenders import Contender, Disk, Floor, Nbdkit, QemuNbd, Setting
from scripts.benchmark.device_contender import (
    Device,
    DeviceWithRoom,
    LogDevice,
    LogOnSlowDisk,
    OnSlowDisk,
    SealedDevice,
    SealedDeviceWithRoom,
)
from scripts.benchmark.floor_build import build_floor
from scripts.benchmark.measure import Plan, Sample, measure
from scripts.benchmark.places import ROOT, directory_option, output_option
from scripts.benchmark.plot import write_plot
from scripts.benchmark.processes import Programs
from scripts.benchmark.workload import WORKLOADS, Workload

KINDS: dict[str, Callable[[Setting], Contender]] = {
    kind.name: kind
    for kind in (
        *(Device, DeviceWithRoom, Nbdkit, Floor, QemuNbd, Disk),
        *(SealedDevice, SealedDeviceWithRoom, LogDevice, OnSlowDisk, LogOnSlowDisk),
    )
}
SEALED = (SealedDevice.name, SealedDeviceWithRoom.name)
LAYOUTS = (LogDevice.name, OnSlowDisk.name, LogOnSlowDisk.name)
USUAL = tuple(name for name in KINDS if name not in SEALED + LAYOUTS)
SLAB_BYTES = 16 << 20
PENDING_LIMIT_BYTES = 64 << 20
ROUNDS_MAX = 1000
RUNTIME_S_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is done unless an option says otherwise."""

    rounds: int
    runtime_s: float
    ramp_s: float
    size: str


NORMAL = Amount(rounds=5, runtime_s=3.0, ramp_s=2.0, size="1GiB")
QUICK = Amount(rounds=1, runtime_s=1.0, ramp_s=1.0, size="256MiB")


def say(line: str) -> None:
    """A line of progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def chosen(text: str | None, known: Sequence[str], usual: Sequence[str], what: str) -> list[str]:
    """Names in a comma-separated option, in the order of known; UserError when one is unknown."""
    if text is None:
        return list(usual)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(f"no {what} '{', '.join(unknown)}': there are {', '.join(known)}")
    return [name for name in known if name in names]


def memory_needed_bytes(contenders: Sequence[Contender], size_bytes: int) -> int:
    """Roughly what all of them hold at once: each its data, a device with room its pending buffers too."""
    sizes = {"infiniswap-room": 2.3, "infiniswap-sealed-room": 3.3, "qemu-nbd": 0.1, "disk": 0.0}
    return (512 << 20) + int(sum(sizes.get(contender.name, 1.3) for contender in contenders) * size_bytes)


def judge_all(samples: Sequence[Sample], contenders: Sequence[Contender], size_bytes: int) -> list[Verdict]:
    """The targets, and the memory of each device service that runs."""
    sealed = any(contender.name in SEALED for contender in contenders)
    layouts = any(contender.name in LAYOUTS for contender in contenders)
    targets = SEALED_TARGETS if sealed else LAYOUT_TARGETS if layouts else TARGETS
    verdicts = [judge(samples, target) for target in targets]
    for contender in contenders:
        if isinstance(contender, Device) and contender.service is not None:
            bound_bytes = rss_bound_bytes(size_bytes, contender.pending_limit_bytes(), sealed=contender.sealed)
            verdicts.append(judge_memory(peak_rss_bytes(contender.service.pid), bound_bytes, contender.title))
    return verdicts


def run(names: Sequence[str], workloads: Sequence[Workload], plan: Plan, directory: Path, output: Path) -> None:
    """Set everything up in a temporary folder in directory, measure, print the tables and write the files."""
    begun_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="isw-bench-", dir=directory))
    try:
        environment = {"INFINISWAP_RUNTIME_DIR": str(folder / "run"), "INFINISWAP_STATE_DIR": str(folder / "state")}
        with Programs(folder, environment) as programs:
            build = ROOT / "build" / "floor"
            setting = Setting(programs, folder, build, plan.size_bytes, SLAB_BYTES, PENDING_LIMIT_BYTES)
            contenders = [KINDS[name](setting) for name in names]
            machine.need_memory(memory_needed_bytes(contenders, plan.size_bytes))
            machine.need_disk(directory, 4 * plan.size_bytes)
            build_floor(build)
            about = machine.describe(directory)
            for contender in contenders:
                say(f"Setting up: {contender.title}")
                contender.start()
            samples = list(measure(contenders, workloads, plan, say))
            verdicts = judge_all(samples, contenders, plan.size_bytes)
    finally:
        shutil.rmtree(folder)
    titles = {contender.name: contender.title for contender in contenders}
    settings = {
        "rounds": plan.rounds,
        "runtime_s": plan.runtime_s,
        "ramp_s": plan.ramp_s,
        "size_bytes": plan.size_bytes,
        "slab_bytes": SLAB_BYTES,
        "pending_limit_bytes": PENDING_LIMIT_BYTES,
        "contenders": titles,
        "took_s": round(time.monotonic() - begun_s, 1),
    }
    output.mkdir(parents=True, exist_ok=True)
    json_path, plot_path = output / "bench.json", output / "bench.png"
    json_path.write_text(report.as_json(samples, verdicts, about, settings))
    write_plot(plot_path, samples, workloads, titles)
    print(
        f"{about['cpu']}, {about['cores']} cores, kernel {about['kernel']}, {about['file_system']}; "
        f"device of {format_size(plan.size_bytes)}, {plan.rounds} rounds of {plan.runtime_s:g} s, medians; "
        "CPU seconds are per million I/Os; x: ratio of IOPS within a round\n"
    )
    print(report.text(samples, workloads, titles, verdicts))
    say(f"\nWritten: {json_path}, {plot_path}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round of a second each on a small device: shows that it works.")
@click.option("--encrypt", is_flag=True, help="What sealing costs: sealed devices against plain ones, in one run.")
@click.option("--layouts", is_flag=True, help="A log as backup against an image, on this disk and on one made slow.")
@click.option("--only", metavar="NAME,…", help=f"Contenders: {', '.join(KINDS)}.  [default: all]")
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
@output_option("bench.json and bench.png")
def main(
    quick: bool,
    encrypt: bool,
    layouts: bool,
    only: str | None,
    workloads: str | None,
    rounds: int | None,
    runtime_s: float | None,
    ramp_s: float | None,
    size: str | None,
    directory: Path,
    output: Path,
) -> None:
    """Measure the device against nbdkit, a bare relay, and its backup's disk, in turns, on this machine.

    Prints tables with the ratios and whether the targets are met; writes JSON and a plot. Leave the machine alone
    meanwhile: the ratios are taken within a round, but whatever else runs makes them less sure.
    """
    amount = QUICK if quick else NORMAL
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs started here are ended too
    try:
        usual = (
            [Device.name, DeviceWithRoom.name, *SEALED] if encrypt else [Device.name, *LAYOUTS] if layouts else USUAL
        )
        names = chosen(only, list(KINDS), usual, "contender")
        known = [workload.name for workload in WORKLOADS]
        wanted = chosen(workloads, known, known, "workload")
        plan = Plan(
            rounds=rounds or amount.rounds,
            runtime_s=runtime_s or amount.runtime_s,
            ramp_s=amount.ramp_s if ramp_s is None else ramp_s,
            size_bytes=parse_size(size or amount.size),
        )
        if plan.size_bytes < 64 << 20 or plan.size_bytes % SLAB_BYTES:
            raise UserError(f"--size must be a multiple of {format_size(SLAB_BYTES)}, 64MiB at least")
        run(names, [workload for workload in WORKLOADS if workload.name in wanted], plan, directory, output)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(prog_name="bench")
