"""infiniswap demo: a whole cluster on this host, real data, a daemon lost in the middle, and the verdict."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil

from infiniswap.cli.common_options import Size
from infiniswap.cli.demo.cluster import DemoCluster, Service
from infiniswap.cli.demo.data import Comparison, Content, Transfer, compare_file, library_folders, pack, random_page_ins
from infiniswap.cli.demo.screen import Screen, Step
from infiniswap.cli.slabs import COLUMNS as SLAB_COLUMNS
from infiniswap.cli.stats import LATENCY_COLUMNS, by_share, latency_rows
from infiniswap.cli.table import lines
from infiniswap.nbd.client import NegotiationError
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

DAEMONS = 3
SIZE_DEFAULT_BYTES = 256 << 20
SIZE_MIN_BYTES = 16 << 20
PATH_SIZE_DEFAULT_BYTES = 1 << 30
SLABS_ABOUT = 32
SLAB_BYTES_MIN, SLAB_BYTES_MAX = 1 << 20, 1 << 30
HEADROOM_BYTES = 256 << 20
MAPPING_TIMEOUT_S = 20.0
PAGE_IN_DURATION_S = 2.0
POLL_INTERVAL_S = 0.25
NAMED_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of everything, bytes."""

    slab: int
    device: int
    daemon: int


def make_plan(data_bytes: int) -> Plan:
    """About SLABS_ABOUT slabs that hold the data; two daemons together can hold all of it, so that one can be lost."""
    slab = SLAB_BYTES_MIN
    while slab < SLAB_BYTES_MAX and slab * SLABS_ABOUT < data_bytes:
        slab *= 2
    slabs = -(-data_bytes // slab)
    # Power of two choices fills peers unevenly at times, so each has room for two thirds.
    return Plan(slab, slabs * slab, -(-slabs * 2 // 3) * slab)


def check_room(data_bytes: int, folder: Path) -> None:
    """UserError when so much data, its backup or the lent memory would not fit on this host."""
    device_bytes = make_plan(data_bytes).device
    disk_bytes = shutil.disk_usage(folder).free
    needed_bytes = data_bytes + device_bytes + (64 << 20)
    if disk_bytes < needed_bytes:
        message = (
            f"{folder} has {format_size(disk_bytes)} free and the demo needs {format_size(needed_bytes)}; "
            "choose a smaller --size or another --dir"
        )
        raise UserError(message, ExitCode.RESOURCES)
    memory_bytes = psutil.virtual_memory().available
    # The daemons fill up only with what is written; the headroom, buffers and this program come on top.
    needed_bytes = device_bytes + HEADROOM_BYTES + (512 << 20)
    if memory_bytes < needed_bytes:
        message = (
            f"this host has {format_size(memory_bytes)} of memory free and the demo needs {format_size(needed_bytes)}; "
            "choose a smaller --size"
        )
        raise UserError(message, ExitCode.RESOURCES)


@dataclass(slots=True)
class Verdict:
    """What was checked and how it came out."""

    checks: list[tuple[str, bool]] = field(default_factory=list)

    def note(self, what: str, right: bool) -> None:
        """Add one check."""
        self.checks.append((what, right))

    @property
    def right(self) -> bool:
        """All checks held, and there were some."""
        return bool(self.checks) and all(right for _, right in self.checks)


class Story:
    """The demo's steps, in the order in which tell() takes them."""

    def __init__(self, cluster: DemoCluster, screen: Screen) -> None:
        self.cluster = cluster
        self.screen = screen
        self.verdict = Verdict()
        self.data = cluster.folder / "data.tar"

    def pack(self, source: Path | None, limit_bytes: int) -> int:
        """Make the data set; returns its size in bytes."""
        sources = [source] if source else library_folders()
        with self.screen.step("Packing", limit_bytes) as step:
            files = pack(sources, self.data, limit_bytes, step.advance, repeat=source is None)
            size_bytes = self.data.stat().st_size
            step.end(f"{files} files of {', '.join(map(str, sources))}: {format_size(size_bytes)}")
        return size_bytes

    def start(self, plan: Plan) -> None:
        """Daemons and device."""
        self.cluster.start_daemons(DAEMONS, plan.daemon, HEADROOM_BYTES)
        self.cluster.start_device(plan.device, plan.slab)
        slabs = plan.device // plan.slab
        self.screen.say(
            f"Started {DAEMONS} memory daemons that lend {format_size(plan.daemon)} each, and a device of "
            f"{format_size(plan.device)} in {slabs} slabs of {format_size(plan.slab)}"
        )

    def copy(self, title: str, content: Content, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Write content and flush, so that the step's time tells of data that is safe."""
        done = 0
        with self.screen.step(title, content.size_bytes) as step, self._watched(step):

            def advance(count: int) -> None:
                nonlocal done
                done += count
                step.advance(count)
                on_progress(done)

            begun = time.monotonic()
            with Transfer(self.cluster.connect) as transfer:
                transfer.write(content, advance)
                written_s = time.monotonic() - begun
            client = self.cluster.connect()
            client.flush()
            client.close()
            flushed_s = time.monotonic() - begun
            step.end(f"{rate(content.size_bytes, written_s)}; on the backup as well after {flushed_s:.1f} s")

    def read_back(self, title: str, content: Content) -> None:
        """Read all of content and note whether it is right."""
        content.sha256()  # beforehand, so that it does not count as time of the device
        before = self.cluster.get("/v1/stats")["reads"]
        with self.screen.step(title, content.size_bytes) as step, self._watched(step):
            begun = time.monotonic()
            with Transfer(self.cluster.connect) as transfer:
                comparison = transfer.compare(content, step.advance)
            taken_s = time.monotonic() - begun
            reads = self.cluster.get("/v1/stats")["reads"]
            sources = by_share({source: count - before.get(source, 0) for source, count in reads.items()})
            step.end(f"{rate(content.size_bytes, taken_s)}; pages from: {sources}; {told(comparison)}")
        self.verdict.note(title, comparison.right)

    def wait_for_mapping(self, title: str) -> None:
        """Watch hot slabs become mapped, until all are or nothing changes any more."""
        with self.screen.step(title, None) as step:
            begun = time.monotonic()
            mapped = changed_s = 0.0
            while True:
                status = self.cluster.get("/v1/status")
                step.tell(f"{status['mapped_slabs']} of {status['slabs']} slabs mapped")
                now_s = time.monotonic()
                if status["mapped_slabs"] != mapped:
                    mapped, changed_s = status["mapped_slabs"], now_s
                still_s = now_s - max(changed_s, begun)
                if mapped == status["slabs"] or still_s > 4 or now_s - begun > MAPPING_TIMEOUT_S:
                    break
                time.sleep(POLL_INTERVAL_S)
            held = {row["peer"]: row["slabs"] for row in self.cluster.get("/v1/peers") if row["slabs"]}
            spread = ", ".join(f"{peer}: {slabs}" for peer, slabs in held.items())
            step.end(f"{status['mapped_slabs']} of {status['slabs']} after {now_s - begun:.1f} s ({spread})")

    def copy_and_kill(self, title: str, content: Content) -> None:
        """Write content and kill the daemon that holds most when half of it is written."""
        victim: Service | None = None

        def on_progress(done_bytes: int) -> None:
            nonlocal victim
            if victim is None and done_bytes >= content.size_bytes // 2:
                victim, slabs = self._fullest()
                self.cluster.kill_daemon(victim)
                self.screen.say(f"Killed {victim.label} ({victim.address}) with SIGKILL; it held {slabs} slabs")

        self.copy(title, content, on_progress)

    def page_in(self, content: Content) -> None:
        """Read single pages at random, as swap would."""
        client = self.cluster.connect()
        try:
            times_us, wrong = random_page_ins(client, content, PAGE_IN_DURATION_S, seed=1)
        finally:
            client.close()
        times_us.sort()
        p50, p99 = times_us[len(times_us) // 2], times_us[len(times_us) * 99 // 100]
        self.screen.say(
            f"Random 4KiB page-ins, one at a time: {len(times_us)} in {PAGE_IN_DURATION_S:g} s, "
            f"p50 {p50:.0f} us, p99 {p99:.0f} us as this Python program sees them"
        )
        self.verdict.note("random page-ins", wrong == 0)

    def show_state(self) -> None:
        """The slab table, the sources of reads, the latencies."""
        rows = self.cluster.get("/v1/slabs")
        stats = self.cluster.get("/v1/stats")
        self.screen.say("\n" + "\n".join(lines(rows, [column for column in SLAB_COLUMNS if column.default])))
        self.screen.say(f"\nPages read, all in all: {by_share(stats['reads'])}")
        self.screen.say(f"Pages written: {by_share(stats['writes'])}\n")
        self.screen.say("\n".join(lines(latency_rows(stats), LATENCY_COLUMNS)) + "\n")

    def compare_backup(self, content: Content, when: str) -> None:
        """Hold the backup image against content."""
        title = f"Backup image {when}"
        with self.screen.step(title, content.size_bytes) as step:
            comparison = compare_file(self.cluster.backup, content, step.advance)
            step.end(told(comparison))
        self.verdict.note(title, comparison.right)

    def stop(self) -> None:
        """An orderly stop of the device."""
        clean = self.cluster.stop_device()
        self.screen.say(
            f"Stopped the device: {'clean' if clean else f'NOT clean, see {self.cluster.folder}/device.log'}"
        )
        self.verdict.note("orderly stop", clean)

    def _fullest(self) -> tuple[Service, int]:
        held = {row["peer"]: int(row["slabs"]) for row in self.cluster.get("/v1/peers")}
        victim = max(self.cluster.daemons, key=lambda daemon: held.get(daemon.address, 0))
        return victim, held.get(victim.address, 0)

    @contextmanager
    def _watched(self, step: Step) -> Iterator[None]:
        """Show mapped slabs and pending data beside a step while it runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_INTERVAL_S):
                try:
                    status, stats = self.cluster.get("/v1/status"), self.cluster.get("/v1/stats")
                except UserError:
                    return  # the step itself will say what is wrong
                mapped, pending = status["mapped_slabs"], format_size(stats["pending_bytes"])
                step.tell(f"{mapped} of {status['slabs']} slabs mapped, {pending} pending")

        thread = threading.Thread(target=watch, name="watch")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def rate(size_bytes: int, taken_s: float) -> str:
    """Throughput in words."""
    return f"{taken_s:.1f} s, {size_bytes / max(taken_s, 1e-9) / (1 << 20):.0f} MiB/s"


def told(comparison: Comparison) -> str:
    """A comparison in words."""
    if comparison.right:
        return f"SHA-256 {comparison.sha256[:16]}… is right"
    return f"WRONG: {comparison.wrong_pages} pages differ, the first at offset {comparison.first_wrong_offset}"


def tell(story: Story, source: Path | None, limit_bytes: int, keep: bool) -> bool:
    """All steps; whether everything was right."""
    size_bytes = story.pack(source, limit_bytes)
    first, second = Content(story.data), Content(story.data, shift_pages=1)
    story.start(make_plan(size_bytes))
    story.copy("Copying the data in", first)
    story.wait_for_mapping("Slabs become hot")
    story.read_back("Reading it back", first)
    story.copy_and_kill("Writing it anew, shifted by a page", second)
    story.read_back("Reading back without the lost daemon", second)
    story.wait_for_mapping("Slabs move to the daemons left")
    story.page_in(second)
    story.read_back("Reading back once more", second)
    story.show_state()
    if keep:
        story.compare_backup(second, "after FLUSH")
    else:
        story.stop()
        story.compare_backup(second, "after the stop")
    first.close()
    second.close()
    return story.verdict.right


def what_next(cluster: DemoCluster, script: Path) -> str:
    """What to try with a cluster that was left running."""
    uri = f"nbd+unix:///{cluster.NAME}?socket={cluster.socket}"
    return "\n".join(
        [
            "The cluster runs on. Try:",
            f"  export INFINISWAP_RUNTIME_DIR={cluster.runtime_dir}",
            f"  infiniswap device list; infiniswap slabs {cluster.NAME} --watch",
            f"  infiniswap peers {cluster.NAME}; infiniswap stats {cluster.NAME}",
            f"  nbdinfo '{uri}'",
            f"  nbdcopy --progress '{uri}' null:",
            f"  fio --name=try --ioengine=nbd --uri='{uri}' --rw=randread --bs=4k --iodepth=32 --size=64m",
            "(nbdinfo and nbdcopy come with Debian's libnbd-bin, fio with fio.)",
            f"infiniswap stands in {Path(sys.executable).parent}. End it all with: {script}",
        ]
    )


def run(source: Path | None, limit_bytes: int, keep: bool, parent: Path, screen: Screen) -> int:
    """The whole demo; returns the exit code."""
    check_room(limit_bytes, parent)
    folder = Path(tempfile.mkdtemp(prefix="infiniswap-demo-", dir=parent))
    kept = False
    try:
        with DemoCluster(folder) as cluster:
            story = Story(cluster, screen)
            begun = time.monotonic()
            try:
                right = tell(story, source, limit_bytes, keep)
            except (OSError, NegotiationError) as error:
                raise UserError(f"a client of the device saw an error: {error}", ExitCode.FAILED) from error
            for what, held in story.verdict.checks:
                screen.say(f"{'ok    ' if held else 'WRONG '} {what}")
            taken_s = time.monotonic() - begun
            screen.say(f"\n{'Everything was right' if right else 'Something was WRONG'} (in {taken_s:.0f} s).")
            if keep:
                kept = True
                screen.say("\n" + what_next(cluster, cluster.keep()))
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return ExitCode.OK if right else ExitCode.FAILED


def _raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@click.command("demo")
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--size", "size_bytes", type=Size(), metavar="SIZE", help="Most data to pack. [default: 256MiB; with PATH 1GiB]"
)
@click.option(
    "--dir",
    "parent",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the temporary folder is made. [default: $TMPDIR or /tmp]",
)
@click.option("--keep", is_flag=True, help="Leave everything running and print what to try next.")
def command(path: Path | None, size_bytes: int | None, parent: Path | None, keep: bool) -> int:
    """Show Infiniswap at work on this host, with a daemon killed.

    Three memory daemons, one device, real data. Copies the files of PATH (by default Python's own library) into the
    device, kills a daemon in the middle, reads everything back and compares. The exit code says whether all of it was
    right.
    """
    if size_bytes is None:
        size_bytes = SIZE_DEFAULT_BYTES if path is None else PATH_SIZE_DEFAULT_BYTES
    if size_bytes < SIZE_MIN_BYTES:
        raise UserError(
            f"--size {format_size(size_bytes)} is too small to see anything; at least {format_size(SIZE_MIN_BYTES)}"
        )
    for number in NAMED_SIGNALS:
        signal.signal(number, _raise_interrupt)
    return run(path.resolve() if path else None, size_bytes, keep, parent or Path(tempfile.gettempdir()), Screen())
