"""The command behind scripts/bench --prefetch."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from infiniswap.shared.device_client import fetch
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size, parse_size
from scripts.benchmark import fio, machine
from scripts.benchmark.cluster import beside_python
from scripts.benchmark.contenders import nbd_target
from scripts.benchmark.floor_build import build_program
from scripts.benchmark.places import directory_option, output_option
from scripts.benchmark.prefetch.results import WORKLOADS, Run, judge, table
from scripts.benchmark.processes import Program, Programs
from scripts.benchmark.terms import as_command, say

CONTENDERS = ("off", "auto")
DONOR = "10.231.0.2:7401"  # behind the wire
SLAB_BYTES = 16 << 20
SETTLE_TIMEOUT_S = 120.0
FILL_PASSES_MAX = 5
INSIDE = "INFINISWAP_BENCH_INSIDE"  # set in a network namespace of this benchmark's own


class Bench:
    """A daemon behind a wire, and a device with prefetch and one without on it, filled."""

    def __init__(self, folder: Path, programs: Programs, delay_us: int, size_bytes: int) -> None:
        """Start everything; all pages are in the daemon's memory and on the backup then."""
        self._folder, self._programs, self._size_bytes = folder, programs, size_bytes
        build_program(folder / "wire", [Path(__file__).with_name("wire.c")])
        memory = str(4 * size_bytes)
        command = [str(folder / "wire"), str(delay_us // 2), beside_python("infiniswapd"), "--memory", memory]
        programs.ready_line(programs.start("daemon", [*command, "--listen", DONOR, "--insecure"]))
        for name in CONTENDERS:
            command = [beside_python("infiniswap"), "device", "serve", name, "--size", str(size_bytes)]
            command += ["--slab-size", str(SLAB_BYTES), "--backup", str(folder / f"{name}.img"), "--map", "eager"]
            command += ["--socket", str(self.socket(name)), "--peer", DONOR, "--insecure", "--no-encrypt"]
            service = programs.start(name, [*command, "--prefetch", name])
            programs.ready_line(service)
            self._fill(name, service)

    def socket(self, name: str) -> Path:
        """Of the device with that prefetch."""
        return self._folder / f"{name}.sock"

    def get(self, name: str, path: str) -> Any:
        """From its control API."""
        return fetch(name, path, self._folder / "run")

    def _fill(self, name: str, service: Program) -> None:
        pages = self._size_bytes // 4096
        for _ in range(FILL_PASSES_MAX):
            fio.fill(nbd_target(self.socket(name), name), self._size_bytes)
            self._programs.wait_until(
                lambda: (
                    self.get(name, "/v1/stats")["pending_bytes"] == 0
                    and all(slab["state"] == "mapped" for slab in self.get(name, "/v1/slabs"))
                ),
                service,
                "has not mapped all slabs, or still has pending data",
                SETTLE_TIMEOUT_S,
            )
            if sum(slab["remote_pages"] for slab in self.get(name, "/v1/slabs")) == pages:
                return
        raise UserError(f"not all pages are in remote memory after {FILL_PASSES_MAX} passes", ExitCode.FAILED)

    def measure(self, number: int, runtime_s: float) -> list[Run]:
        """Each workload on both, one after the other; who is first changes from round to round."""
        runs = []
        for name, rw in WORKLOADS.items():
            for contender in CONTENDERS if number % 2 else CONTENDERS[::-1]:
                before = self.get(contender, "/v1/stats")["counters"]
                command = [*fio.fill_arguments(nbd_target(self.socket(contender), contender), self._size_bytes)]
                command = [word for word in command if not word.startswith(("--rw=", "--bs=", "--iodepth="))]
                command += [f"--rw={rw}", "--bs=4096", "--iodepth=1", "--time_based", f"--runtime={runtime_s}s"]
                command += ["--norandommap", "--allrandrepeat=1", f"--randseed={number + 1}"]
                done = fio.run(command, "read", runtime_s + fio.SLACK_S)
                after = self.get(contender, "/v1/stats")["counters"]
                guesses, hits = (after[f"prefetch_{what}"] - before[f"prefetch_{what}"] for what in ("guesses", "hits"))
                runs.append(Run(number, name, contender, done.iops, done.p50_us, done.p99_us, guesses, hits))
                say(f"  {name}, prefetch {contender}: {done.iops:.0f} reads/s, p50 {done.p50_us:.0f} us")
        return runs


def run(delay_us: int, size_bytes: int, rounds: int, runtime_s: float, directory: Path, output: Path) -> bool:
    """Measure, print, write prefetch.json; whether all is as wished."""
    begun_s = time.monotonic()
    runs: list[Run] = []
    folder = Path(tempfile.mkdtemp(prefix="isw-prefetch-", dir=directory))
    environment = {"INFINISWAP_RUNTIME_DIR": str(folder / "run"), "INFINISWAP_STATE_DIR": str(folder / "state")}
    try:
        with ExitStack() as undo:
            programs = undo.enter_context(Programs(folder, environment))
            say("Setting up")
            bench = Bench(folder, programs, delay_us, size_bytes)
            for number in range(1, rounds + 1):
                say(f"Round {number} of {rounds}")
                runs += bench.measure(number, runtime_s)
    finally:
        shutil.rmtree(folder)
    about = machine.describe(directory)
    verdicts = judge(runs)
    output.mkdir(parents=True, exist_ok=True)
    settings = {"delay_us": delay_us, "size_bytes": size_bytes, "took_s": round(time.monotonic() - begun_s, 1)}
    found = {"machine": about, "settings": settings, "runs": [each.as_json() for each in runs]}
    (output / "prefetch.json").write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{about['cpu']}, {about['cores']} cores, kernel {about['kernel']}; device of {format_size(size_bytes)}, "
        f"{delay_us} us of delay to the peer and back; medians of {rounds} rounds\n"
    )
    print(table(runs))
    for verdict in verdicts:
        print(f"{verdict.text}: {verdict.value} ({verdict.wanted}): {'met' if verdict.met else 'NOT MET'}")
    say(f"\nWritten: {output / 'prefetch.json'}")
    return all(verdict.met for verdict in verdicts)


def into_own_namespace() -> None:
    """Begin anew where no network is but that of this benchmark. UserError where that is not allowed."""
    if INSIDE in os.environ:
        return
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None or not Path("/dev/net/tun").exists():
        raise UserError("a network namespace and a wire need root, unshare and /dev/net/tun", ExitCode.RESOURCES)
    command = [unshare, "--net", sys.executable, "-m", "scripts.benchmark.prefetch", *sys.argv[1:]]
    os.execve(unshare, command, {**os.environ, INSIDE: "1"})


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--delay-us", type=click.IntRange(0, 100_000), default=200, show_default=True, help="There and back.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--runtime-s", type=click.FloatRange(0.1, 600), default=3.0, show_default=True, help="Of each run.")
@click.option("--size", default="256MiB", show_default=True, help="Of each device.")
@directory_option("On the disk that is to hold the backups.")
@output_option("prefetch.json")
def main(delay_us: int, rounds: int, runtime_s: float, size: str, directory: Path, output: Path) -> None:
    """Compare a device with --prefetch auto and one with off, one page at a time, over a wire of a chosen delay.

    Device, wire and donor are in network namespaces of their own. Needs root.
    """
    with as_command():
        size_bytes = parse_size(size)
        if size_bytes % SLAB_BYTES or not SLAB_BYTES * 4 <= size_bytes <= 4 << 30:
            raise UserError("--size must be a multiple of 16MiB from 64MiB to 4GiB")
        machine.need_memory(4 * size_bytes + (512 << 20))
        machine.need_disk(directory, 2 * size_bytes)
        into_own_namespace()
        run(delay_us, size_bytes, rounds, runtime_s, directory, output)


if __name__ == "__main__":
    main(prog_name="bench --prefetch")
