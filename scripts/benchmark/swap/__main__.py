"""The command behind scripts/bench --swap."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from infiniswap.kernel_shim.sysfs import read_swaps
from infiniswap.shared import paths
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import parse_size
from scripts.benchmark import machine
from scripts.benchmark.floor_build import build_program
from scripts.benchmark.places import directory_option, output_option
from scripts.benchmark.processes import Programs
from scripts.benchmark.swap import area, results
from scripts.benchmark.swap.cgroup import Cgroup, charges_zswap
from scripts.benchmark.swap.jobs import JOBS, PROGRAMS, Job
from scripts.benchmark.swap.media import (
    Attached,
    BehindZswap,
    BlockDevice,
    Disk,
    Floor,
    HardDisk,
    Infiniswap,
    InfiniswapLog,
    Medium,
    Nbdkit,
    Setting,
    Zram,
)
from scripts.benchmark.swap.results import FULL, Sample
from scripts.benchmark.terms import as_command, chosen, say

KINDS: tuple[type[Medium], ...] = (Infiniswap, InfiniswapLog, Nbdkit, Floor, Disk, HardDisk, Zram)
MEDIA = {medium.name: medium for medium in KINDS}
PERCENT_MIN = 20
ROUNDS_MAX = 100
RUNTIME_S_MAX = 600.0
DATA_BYTES_MIN = 16 << 20
FREE_BYTES_MIN = 256 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done: data_bytes of each job, shares of its memory in percent, seconds of each measurement."""

    rounds: int
    data_bytes: int
    percents: tuple[int, ...]
    runtime_s: float
    warm_up_s: float


def swapped_pages() -> tuple[int, int, int]:
    """Pages swapped in and out by this machine since its boot, and those of the former that zswap gave back.

    A page that zswap took and passed on later (zswpwb) is one page out; the kernel counts it for the device, too.
    """
    counts = {name: int(value) for name, value in map(str.split, Path("/proc/vmstat").read_text().splitlines())}
    from_zswap = counts.get("zswpin", 0)
    pages_out = counts["pswpout"] + counts.get("zswpout", 0) - counts.get("zswpwb", 0)
    return counts["pswpin"] + from_zswap, pages_out, from_zswap


def measure(job: Job, group: Cgroup, plan: Plan, round_number: int, medium: str) -> Iterator[Sample]:
    """All shares of memory of a job that has been started, from the largest down."""
    full_bytes = job.resident_bytes()
    limit_bytes = 0
    for percent in plan.percents:
        if percent != FULL:
            limit_bytes = full_bytes * percent // 100
            group.limit(limit_bytes)
        job.measure(plan.warm_up_s)
        before = swapped_pages()
        figures = job.measure(plan.runtime_s)
        pages_in, pages_out, zswap_in = (now - then for now, then in zip(swapped_pages(), before, strict=True))
        yield Sample(
            round_number,
            medium,
            job.name,
            percent,
            figures,
            pages_in,
            pages_out,
            zswap_in,
            limit_bytes,
            group.used_bytes(),
            group.zswap_bytes(),
        )


def run_job(kind: type[Job], setting: Setting, plan: Plan, round_number: int, medium: str) -> Iterator[Sample]:
    """One job from its start to its end, in a group of its own."""
    with ExitStack() as undo:
        group = Cgroup(f"isw-bench-{os.getpid()}")
        undo.callback(group.remove)
        job = kind(setting.programs, setting.folder, plan.data_bytes)
        undo.callback(job.stop)
        job.start(group)
        yield from measure(job, group, plan, round_number, medium)


def tried(samples: Iterator[Sample], failures: list[str]) -> Iterator[Sample]:
    """What comes of a job, up to its failure: one job that fails must not cost the figures of all others."""
    try:
        yield from samples
    except UserError as error:
        failures.append(str(error))
        say(f"  FAILED: {error}")


def compare(
    media: Sequence[Medium], jobs: Sequence[type[Job]], plan: Plan, folder: Path, failures: list[str]
) -> Iterator[Sample]:
    """Every job on every medium, which is the only swap area of its time; what fails is noted in failures."""
    for round_number in range(1, plan.rounds + 1):
        for medium in media:
            place = folder / f"{medium.name}-{round_number}"
            place.mkdir()
            environment = {
                "INFINISWAP_RUNTIME_DIR": str(place / "run"),
                "INFINISWAP_STATE_DIR": str(place / "state"),
            }
            with Programs(place, environment) as programs, ExitStack() as undo:
                setting = Setting(programs, place, 2 * plan.data_bytes)
                (place / "memcached_load").symlink_to(folder / "memcached_load")
                say(f"Setting up: {medium.title}")
                medium.start(setting, undo)
                earlier = medium.sources()
                for kind in jobs:
                    for sample in tried(run_job(kind, setting, plan, round_number, medium.name), failures):
                        say(
                            f"  {medium.name}, {kind.name}, {sample.percent} %: {sample.rate:.0f} op/s, p50 "
                            f"{sample.figures.p50_us:.0f} us, p99 {sample.figures.p99_us:.0f} us, "
                            f"{sample.pages_in} pages in ({sample.zswap_in} from zswap), {sample.pages_out} out, "
                            f"{sample.charged_bytes >> 10} KiB charged, {sample.zswap_bytes >> 10} of them zswap's"
                        )
                        yield sample
                read = {name: count - earlier[name] for name, count in medium.sources().items()}
                if read:
                    say("  pages read: " + ", ".join(f"{name} {count}" for name, count in read.items()))
            shutil.rmtree(place)


def choose_media(
    names: str | None, device: str | None, disks: Sequence[str], zswapped: str | None = None
) -> list[Medium]:
    """The media asked for, or all that this machine has; zswapped: those that are measured behind zswap as well."""
    usual: list[str] = []
    if names is None:
        usual = [Zram.name] if device is not None or disks else [name for name in MEDIA if name != InfiniswapLog.name]
        if not Zram.available():
            usual.remove(Zram.name)
            say("This kernel has no zram: it is left out.")
    media: list[Medium] = []
    if device is not None:
        media.append(Attached(device, paths.default_runtime_dir()))
    for disk in disks:
        name, separator, node = disk.partition("=")
        if not separator or not name.isalnum() or not node:
            raise UserError(f"--disk {disk}: give NAME=/dev/…")
        media.append(BlockDevice(name, Path(node)))
    media += [MEDIA[name]() for name in chosen(names, list(MEDIA), usual, "medium")]
    if zswapped is not None and not BehindZswap.available():
        raise UserError("this kernel has no zswap: leave out --zswap", ExitCode.NOT_FOUND)
    if zswapped is not None and not charges_zswap():
        raise UserError(
            "control groups of version 1 charge zswap's pages to nobody, so what is behind zswap gets more memory than "
            "the rest: leave out --zswap",
            ExitCode.REFUSED,
        )
    behind = chosen(zswapped, [medium.name for medium in media], [], "medium")
    return media + [BehindZswap(medium) for medium in media if medium.name in behind]


def run(
    media: Sequence[Medium], jobs: Sequence[type[Job]], plan: Plan, directory: Path, output: Path, *, plot: bool
) -> None:
    """Compare in a temporary folder in directory, print the tables and write the files."""
    begun_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="isw-swap-", dir=directory))
    samples: list[Sample] = []
    failures: list[str] = []
    try:
        build_program(folder / "memcached_load", [PROGRAMS / "memcached_load.c"])
        samples.extend(compare(media, jobs, plan, folder, failures))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    titles = {medium.name: medium.title for medium in media}
    job_titles = {job.name: job.title for job in jobs}
    settings = {
        "rounds": plan.rounds,
        "data_bytes": plan.data_bytes,
        "percents": plan.percents,
        "runtime_s": plan.runtime_s,
        "media": titles,
        "jobs": job_titles,
        "took_s": round(time.monotonic() - begun_s, 1),
    }
    about = machine.describe(directory)
    output.mkdir(parents=True, exist_ok=True)
    json_path = output / "swap.json"
    json_path.write_text(results.as_json(samples, about, settings))
    print(
        f"{about['cpu']}, {about['cores']} cores, kernel {about['kernel']}, {about['file_system']}; jobs of "
        f"{plan.data_bytes >> 20} MiB, {plan.rounds} rounds of {plan.runtime_s:g} s; percent: of the job's memory\n"
    )
    print(results.text(samples, job_titles, titles, plan.percents))
    say(f"\nWritten: {json_path}")
    if plot:
        redraw(json_path)
    if failures:
        raise UserError(
            f"{len(failures)} jobs failed, their cells are empty; the first: {failures[0]}", ExitCode.FAILED
        )


def redraw(json_path: Path) -> None:
    """The plot of results that were written to json_path, beside them."""
    try:
        samples, settings = results.from_json(json_path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {json_path}: {error}", ExitCode.NOT_FOUND) from None
    percents = sorted({sample.percent for sample in samples}, reverse=True)
    plot_path = json_path.with_suffix(".png")
    results.write_plot(plot_path, samples, settings["jobs"], settings["media"], percents)
    say(f"Written: {plot_path}")


def parse_percents(text: str) -> tuple[int, ...]:
    """Shares of memory from an option, largest first."""
    try:
        found = sorted({int(word) for word in text.split(",")}, reverse=True)
    except ValueError:
        raise UserError(f"--percent {text}: give numbers separated by commas, such as 100,75,50") from None
    if not all(PERCENT_MIN <= percent <= FULL for percent in found):
        raise UserError(f"--percent: numbers from {PERCENT_MIN} to {FULL}")
    return tuple(found)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--media",
    metavar="NAME,…",
    help=f"Of {', '.join(MEDIA)}.  [default: those that this kernel has, without {InfiniswapLog.name}]",
)
@click.option("--jobs", metavar="NAME,…", help=f"Of {', '.join(JOBS)}.  [default: all]")
@click.option("--percent", default="100,75,50", show_default=True, help="Shares of the job's memory it gets.")
@click.option("--data", default="256MiB", show_default=True, help="What each job holds.")
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), default=1, show_default=True)
@click.option(
    "--runtime-s",
    type=click.FloatRange(0.5, RUNTIME_S_MAX),
    default=5.0,
    show_default=True,
    help="Of each measurement; it is warmed up for half as long.",
)
@click.option("--device", metavar="NAME", help="A device that runs, by the kernel's nbd, instead of one set up here.")
@click.option("--disk", "disks", multiple=True, metavar="NAME=/dev/…", help="A block device to be made swap.")
@click.option("--zswap", "zswapped", metavar="NAME,…", help="Of the media: those to be measured behind zswap as well.")
@directory_option("On the disk that holds backup and swap files.")
@output_option("swap.json and swap.png")
@click.option("--plot/--no-plot", default=True, show_default=True, help="Draw swap.png.")
@click.option(
    "--redraw",
    "redraw_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the plot of a swap.json measured elsewhere, and do nothing else.",
)
def main(
    media: str | None,
    jobs: str | None,
    percent: str,
    data: str,
    rounds: int,
    runtime_s: float,
    device: str | None,
    disks: tuple[str, ...],
    zswapped: str | None,
    directory: Path,
    output: Path,
    plot: bool,
    redraw_path: Path | None,
) -> None:
    """Compare what programs get when they have less memory than they need, on several things to swap to.

    Each program runs in a memory control group of its own; all else on this machine keeps its memory. Needs root.
    """
    with as_command():
        if redraw_path is not None:
            redraw(redraw_path)
            return
        plan = Plan(rounds, parse_size(data), parse_percents(percent), runtime_s, runtime_s / 2)
        if plan.data_bytes < DATA_BYTES_MIN:
            raise UserError(f"--data must be at least {DATA_BYTES_MIN >> 20}MiB, or nothing would be swapped")
        kinds = [JOBS[name] for name in chosen(jobs, list(JOBS), list(JOBS), "job")]
        area.need_root()
        wanted = choose_media(media, device, disks, zswapped)
        others = read_swaps()
        if others:
            raise UserError(
                f"this machine swaps to {others[0].path} already: swapoff first, or figures would be of both"
            )
        if device is None:
            machine.need_memory(FREE_BYTES_MIN + 4 * plan.data_bytes)
            machine.need_disk(directory, 4 * plan.data_bytes)
        run(wanted, kinds, plan, directory, output, plot=plot)


if __name__ == "__main__":
    main()
