"""Command line of the harness: which scenarios, in which folders, within what time."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from harness.errors import HarnessError
from harness.kernel import TOOLS, Kernel, fetch, initramfs, install, run_command
from harness.machine import Machine, Plan, free_udp_ports
from harness.scenario import Scenario, find

CHECKOUT = Path(__file__).resolve().parents[3]
SCENARIOS = CHECKOUT / "scripts/vm/scenarios"
DEADLINE_CODE = 124
NO_CODE = 125
LOCK_TIMEOUT_S = 1800
BEFORE_TIMEOUT_S = 1200
SLOTS_MAX = 8
BOOTS_MAX = 3  # a kernel that is emulated by several threads has panicked while it patched its own code
_DRAIN_S = 2.0


def cache_folder() -> Path:
    """Where kernel and initramfs are kept: INFINISWAP_VM_CACHE, or a folder below the user's cache."""
    own = os.environ.get("INFINISWAP_VM_CACHE")
    if own:
        return Path(own).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infiniswap-vm"


def all_there() -> list[Scenario]:
    """All scenarios, whose needs are there before any of them begins.

    A machine's root is the host's: where another run installs something meanwhile, a machine that installs something
    itself (`package`) sees dpkg's work half done, and its apt refuses to go on.
    """
    return [find(str(path), SCENARIOS) for path in sorted(SCENARIOS.iterdir()) if path.is_file()]


def prepare(cache: Path, scenarios: list[Scenario]) -> tuple[Kernel, Path]:
    """Have all there on the host that scenarios ask for: packages, kernel and initramfs, what their commands make."""
    with held([cache / "lock"]):
        install([*TOOLS, *(need for scenario in [*scenarios, *all_there()] for need in scenario.packages)])
        kernel = fetch(cache)
        initrd = initramfs(cache, kernel, CHECKOUT / "scripts/vm/guest/init")
        for command in {scenario.before: None for scenario in scenarios if scenario.before}:
            run_command([str(CHECKOUT / command[0]), *command[1:]], timeout_s=BEFORE_TIMEOUT_S)
    return kernel, initrd


@contextlib.contextmanager
def held(paths: list[Path]) -> Iterator[None]:
    """Hold the lock of one of the files in paths, whichever is free first."""
    limit = time.monotonic() + LOCK_TIMEOUT_S
    told = False
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("w")) for path in paths]
        while not any(_lock(file) for file in files):
            if time.monotonic() > limit:
                raise HarnessError(f"other runs have held {paths[0]} for {LOCK_TIMEOUT_S} s")
            if not told:
                print("waiting for another run to end", flush=True)
                told = True
            time.sleep(0.5)
        yield


@contextlib.contextmanager
def held_all(paths: list[Path]) -> Iterator[None]:
    """Hold the locks of all files in paths, taken in their order: two who want all of them do not block each other."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(held([path]))
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def slots(cache: Path) -> list[Path]:
    """Locks for as many runs at a time as there are cores: more would starve each other into their deadlines."""
    return [cache / f"slot{number}" for number in range(min(os.cpu_count() or 1, SLOTS_MAX))]


def _watch(machines: list[Machine], deadline_s: float) -> tuple[int, str] | None:
    """Print what the machines say, each line with the seconds since the start; code and word of a run that had no end.

    The run is over when the first machine is: the second one is its partner, not a test of its own. A partner whose
    kernel panicked ends it, too.
    """
    start = time.monotonic()

    def show(machine: Machine, line: str) -> None:
        who = f" vm{machine.number}" if len(machines) > 1 else ""
        print(f"[{time.monotonic() - start:7.2f}{who}] {line}", flush=True)

    limit = start + deadline_s
    while not machines[0].closed and not any(machine.closed and machine.panicked for machine in machines):
        left = limit - time.monotonic()
        if left <= 0:
            return DEADLINE_CODE, f"not done after {deadline_s:.0f} s, machine ended"
        waiting = [machine for machine in machines if not machine.closed]
        for machine in waiting:
            if machine.stands_still():
                return NO_CODE, f"machine {machine.number} stood still: the emulator has lost its timers"
        ready, _, _ = select.select([machine.output for machine in waiting], [], [], min(left, 1.0))
        for machine in waiting:
            if machine.output in ready:
                machine.read(lambda line, machine=machine: show(machine, line))  # type: ignore[misc]
    return None


def run(scenario: Scenario, kernel: Kernel, initrd: Path, results: Path | None, deadline_s: float) -> int:
    """Boot the scenario's machines, wait for the first one's end, return its exit code.

    results: folder that receives what the machines wrote to $OUT (out1, out2).
    """
    for left in reversed(range(BOOTS_MAX)):
        code = _run_once(scenario, kernel, initrd, results, deadline_s)
        if code is not None:
            return code
        print(
            f"{scenario.name}: a kernel panicked before it was up{'; it is started again' if left else ''}", flush=True
        )
    return NO_CODE


def _run_once(scenario: Scenario, kernel: Kernel, initrd: Path, results: Path | None, deadline_s: float) -> int | None:
    """As run(); None: a machine's kernel panicked before it was up, so nothing of the scenario was seen."""
    machines: list[Machine] = []
    with tempfile.TemporaryDirectory(prefix="infiniswap-vm-") as temporary:
        plan = Plan(scenario, kernel, initrd, CHECKOUT, Path(temporary), free_udp_ports())
        try:
            for number in range(1, scenario.machines + 1):
                machines.append(Machine(plan, number))  # noqa: PERF401  (what started must be ended)
            ended_early = _watch(machines, deadline_s)
        finally:
            for machine in machines:
                machine.end()
                source = plan.folder / f"out{machine.number}"
                if results is not None and source.is_dir():
                    shutil.copytree(source, results / source.name, dirs_exist_ok=True)
        if ended_early is not None:
            code_of_run, word = ended_early
            print(f"{scenario.name}: {word}", flush=True)
            return code_of_run
        for machine in machines:
            if machine.panicked and not machine.begun:
                return None
            if machine.panicked:
                print(f"{scenario.name}: the kernel of machine {machine.number} panicked", flush=True)
                return NO_CODE
        code = machines[0].exit_code()
        if code is None or code < 0:
            print(f"{scenario.name}: the machine ended without an exit code (kernel panic?)", flush=True)
            return NO_CODE
        return code


def _interrupted(number: int, _frame: FrameType | None) -> None:
    raise HarnessError(f"interrupted by {signal.Signals(number).name}", 128 + number)


def main(arguments: list[str]) -> int:
    """Run the scenarios one after another; the exit code is that of the first one that failed, or 0."""
    parser = argparse.ArgumentParser(prog="scripts/vm/run", description="Run scenarios in emulated virtual machines.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="a name from scripts/vm/scenarios, or a path")
    parser.add_argument("--list", action="store_true", help="show the names and end")
    parser.add_argument("--results", type=Path, metavar="DIR", help="copy what the machines wrote to $OUT here")
    parser.add_argument("--prepare", action="store_true", help="before any: install and build what all of them need")
    parser.add_argument("--alone", action="store_true", help="let no other run go on meanwhile, as measuring wants it")
    parser.add_argument("--deadline", type=float, metavar="S", help="seconds instead of what the scenario says")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print("\n".join(sorted(path.stem for path in SCENARIOS.iterdir() if path.is_file())))
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupted)
    try:
        if not chosen.scenarios and not chosen.prepare:
            raise HarnessError("which scenario? See --list", 2)
        scenarios = [find(word, SCENARIOS) for word in chosen.scenarios]
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        first_failure = 0
        kernel, initrd = prepare(cache, all_there() if chosen.prepare else scenarios)
        with (held_all if chosen.alone else held)(slots(cache)):
            for scenario in scenarios:
                results = chosen.results / scenario.name if chosen.results else None
                start = time.monotonic()
                code = run(scenario, kernel, initrd, results, chosen.deadline or scenario.deadline_s)
                verdict = "ok" if code == 0 else f"exit code {code}"
                print(f"{scenario.name}: {verdict}, {time.monotonic() - start:.1f} s", flush=True)
                first_failure = first_failure or code
        return first_failure
    except HarnessError as error:
        print(f"scripts/vm/run: {error}", file=sys.stderr)
        return error.code
