"""The command behind scripts/bench --evict."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from infiniswap.nbd.client import NbdClient
from infiniswap.shared.device_client import DeviceClient
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size, parse_size
from scripts.benchmark import fio, machine
from scripts.benchmark.cluster import beside_python
from scripts.benchmark.contenders import nbd_target
from scripts.benchmark.evict.donor import Donor, DonorGroup
from scripts.benchmark.evict.load import Load
from scripts.benchmark.evict.results import AFTER_S, BEFORE_S, Eviction, Moments, as_json, figures, met, text
from scripts.benchmark.places import directory_option, output_option
from scripts.benchmark.processes import Program, Programs
from scripts.benchmark.terms import as_command, say

TITLES = {"alone": "no other donor", "other": "another donor with room"}
HEADROOM_BYTES = 64 << 20
SIZE_BYTES_MAX = 4 << 30
PENDING_LIMIT_BYTES = 64 << 20
FILL_PASSES_MAX = 5
SETTLE_TIMEOUT_S = 120.0
EVICTION_TIMEOUT_S = 20.0
EVICTIONS_MAX = 100
PAUSE_S = 3.0  # beside what is measured, between two evictions: a device may bring a slab elsewhere meanwhile
START_S = 2.0  # of a load, before anything is measured
PROBE_S = 0.005  # between two looks
NAME = "bench"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done in each case."""

    evictions: int
    size_bytes: int
    slab_bytes: int

    @property
    def runtime_s(self) -> float:
        """Of the load, with room for evictions that are slow to begin."""
        return START_S + self.evictions * (BEFORE_S + AFTER_S + PAUSE_S + 1) + AFTER_S


class Bench:
    """A donor whose host wants its memory back, a device on it, and a client of the device."""

    def __init__(self, case: str, plan: Plan, folder: Path, programs: Programs, undo: ExitStack) -> None:
        """Start everything and fill the device; all of its pages are in donors' memory then."""
        self.case, self.plan, self._folder, self._programs = case, plan, folder, programs
        group = DonorGroup(f"isw-evict-{folder.name}")
        undo.callback(group.remove)
        undo.enter_context(programs)
        self.donor = Donor(programs, "donor", plan.size_bytes, HEADROOM_BYTES, group)
        peers = [self.donor.address]
        if case == "other":
            peers.append(Donor(programs, "other", plan.size_bytes, HEADROOM_BYTES).address)
        self.socket = folder / f"{NAME}.sock"
        command = [beside_python("infiniswap"), "device", "serve", NAME, "--size", str(plan.size_bytes)]
        command += ["--slab-size", str(plan.slab_bytes), "--backup", str(folder / f"{NAME}.img")]
        command += ["--socket", str(self.socket), "--map", "eager", "--pending-limit", str(PENDING_LIMIT_BYTES)]
        for peer in peers:
            command += ["--peer", peer]
        self.service: Program = programs.start("device", command)
        programs.ready_line(self.service)
        self.control = undo.enter_context(DeviceClient(NAME, folder / "run"))
        self._fill()

    def _fill(self) -> None:
        target, pages = nbd_target(self.socket, NAME), self.plan.size_bytes // 4096
        for _ in range(FILL_PASSES_MAX):
            fio.fill(target, self.plan.size_bytes)
            self._wait(lambda: all(slab["state"] == "mapped" for slab in self.control.get("/v1/slabs")), "maps not all")
            self.settle()
            if sum(slab["remote_pages"] for slab in self.control.get("/v1/slabs")) == pages:
                return
        raise UserError(f"not all pages are in remote memory after {FILL_PASSES_MAX} passes", ExitCode.FAILED)

    def settle(self) -> None:
        """Until nothing is on its way to the backup."""
        self._wait(lambda: self.control.get("/v1/stats")["pending_bytes"] == 0, "still has pending data")

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        self._programs.wait_until(condition, self.service, complaint, SETTLE_TIMEOUT_S)

    def measure(self) -> Iterator[Eviction]:
        """One eviction after the other under load."""
        load = Load(nbd_target(self.socket, NAME), self.plan.size_bytes, self.plan.runtime_s, self._folder)
        moments: list[Moments] = []
        try:
            time.sleep(START_S)
            with NbdClient(self.socket, NAME) as client:
                for _ in range(self.plan.evictions):
                    time.sleep(BEFORE_S)
                    moments.append(self._evict(client))
                    time.sleep(PAUSE_S)
            rates = load.finish()
        finally:
            load.stop()
        for one in moments:
            try:
                yield figures(self.case, one, rates)
            except ValueError as error:
                raise UserError(f"{self.case}: {error}", ExitCode.FAILED) from None

    def _evict(self, client: NbdClient) -> Moments:
        """Want half a slab back, which is a whole one, and look until its memory is free and costs are counted."""
        before, lent_bytes = self._counts(), self.donor.lent_bytes()
        if lent_bytes < 2 * self.plan.slab_bytes:
            raise UserError(f"{self.case}: the donor holds too little for another eviction", ExitCode.FAILED)
        wanted_s = time.time()
        self.donor.want_back(self.plan.slab_bytes // 2)
        notice_s = free_s = 0.0
        slowest_ms, page = 0.0, 0
        while not free_s or time.time() < notice_s + AFTER_S:
            if not free_s and time.time() > wanted_s + EVICTION_TIMEOUT_S:
                raise self.donor.program.failed("has not got its memory back")
            if not notice_s and self._counts()["notices"] > before["notices"]:
                notice_s = time.time()
            if notice_s and not free_s and self.donor.lent_bytes() <= lent_bytes - self.plan.slab_bytes * 7 // 8:
                free_s = time.time()
            page = (page + 977) % (self.plan.size_bytes // 4096)
            begun_s = time.monotonic()
            client.read(page * 4096, 4096)
            if notice_s:
                slowest_ms = max(slowest_ms, (time.monotonic() - begun_s) * 1e3)
            time.sleep(PROBE_S)
        after = self._counts()
        forced = after["evicted_by_force"] > before["evicted_by_force"]
        return Moments(wanted_s, notice_s, free_s, forced, slowest_ms)

    def _counts(self) -> dict[str, int]:
        counts = self.donor.stats()["counts"]
        assert isinstance(counts, dict)
        return counts


def run(plan: Plan, directory: Path, output: Path) -> bool:
    """Both cases, in a temporary folder in directory; prints the table and writes evict.json. Whether costs are low."""
    begun_s = time.monotonic()
    evictions: list[Eviction] = []
    moved: dict[str, Any] = {}
    for case, title in TITLES.items():
        say(f"Setting up: {title}")
        folder = Path(tempfile.mkdtemp(prefix="isw-evict-", dir=directory))
        environment = {"INFINISWAP_RUNTIME_DIR": str(folder / "run"), "INFINISWAP_STATE_DIR": str(folder / "state")}
        try:
            with ExitStack() as undo:
                bench = Bench(case, plan, folder, Programs(folder, environment), undo)
                say(f"{plan.evictions} evictions under load")
                evictions += bench.measure()
                moved[case] = bench.control.get("/v1/stats")["counters"]
        finally:
            shutil.rmtree(folder)
    about = machine.describe(directory)
    settings = {
        "evictions": plan.evictions,
        "size_bytes": plan.size_bytes,
        "slab_bytes": plan.slab_bytes,
        "titles": TITLES,
        "counters": moved,
        "took_s": round(time.monotonic() - begun_s, 1),
    }
    output.mkdir(parents=True, exist_ok=True)
    json_path = output / "evict.json"
    json_path.write_text(as_json(evictions, about, settings))
    print(
        f"{about['cpu']}, {about['cores']} cores, kernel {about['kernel']}, {about['file_system']}; device of "
        f"{format_size(plan.size_bytes)}, slabs of {format_size(plan.slab_bytes)}; medians\n"
    )
    print(text(evictions, TITLES))
    good = met(evictions)
    print(f"\nat most 5 % missing in any second after a notice: {'met' if good else 'NOT MET'}")
    say(f"\nWritten: {json_path}")
    return good


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--evictions", type=click.IntRange(1, EVICTIONS_MAX), default=5, show_default=True, help="In each case.")
@click.option("--size", default="256MiB", show_default=True, help="Of the device.")
@click.option("--slab-size", default="16MiB", show_default=True)
@directory_option("On the disk that is to hold the backup.")
@output_option("evict.json")
def main(evictions: int, size: str, slab_size: str, directory: Path, output: Path) -> None:
    """Measure what a busy device loses when a donor takes slabs back, one at a time, and how soon their memory is free.

    The donor is in a memory control group of its own, whose limit falls by what is wanted. Needs root.
    """
    with as_command():
        plan = Plan(evictions, parse_size(size), parse_size(slab_size))
        if plan.size_bytes % plan.slab_bytes or not (evictions + 2) * 2 * plan.slab_bytes <= plan.size_bytes:
            raise UserError(f"--size must be a multiple of --slab-size and hold {2 * (evictions + 2)} slabs or more")
        if plan.size_bytes > SIZE_BYTES_MAX:
            raise UserError(f"--size must be {format_size(SIZE_BYTES_MAX)} at most")
        machine.need_memory(4 * plan.size_bytes + (512 << 20))
        machine.need_disk(directory, 2 * plan.size_bytes)
        run(plan, directory, output)


if __name__ == "__main__":
    main(prog_name="bench --evict")
