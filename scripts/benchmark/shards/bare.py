"""What a second core gives programs that share nothing of ours: as much as a machine can give shards.

Two cores of a virtual machine may be two hyper-threads of one, whatever its kernel says; only running something tells.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark import fio
from scripts.benchmark.accounting import cpu_seconds
from scripts.benchmark.affinity import on_core, pin
from scripts.benchmark.contenders import file_target, nbd_target, prepare_file
from scripts.benchmark.processes import Programs
from scripts.benchmark.shards.clients import Plan, fio_command, run_fio, run_of, together
from scripts.benchmark.shards.results import COMPUTE, Run
from scripts.benchmark.workload import Workload

COMPUTE_SLACK_S = 30.0
_COUNT = """if True:
    import sys, time
    end_s, rounds = time.monotonic() + float(sys.argv[1]), 0
    while time.monotonic() < end_s:
        for number in range(1000):
            rounds += number & 1
    print(rounds)
"""


def computing(name: str, cores: Sequence[int], runtime_s: float, number: int) -> Run:
    """A program on each core that does nothing but count: neither memory nor the kernel is in its way."""
    commands = [on_core(core, [sys.executable, "-c", _COUNT, str(runtime_s)]) for core in cores]
    counts = [int(output) for output in together(commands, runtime_s + COMPUTE_SLACK_S)]
    return Run(name, COMPUTE, number, sum(counts) / runtime_s, 0.0, 0.0, 0.0, None, busy=False)


class Pinned:
    """A client on each core, and what it needs there."""

    def __init__(self, name: str, cores: Sequence[int], plan: Plan) -> None:
        """Whoever derives from this names targets, and servers if there are any."""
        self.name, self._cores, self._plan = name, cores, plan
        self._pids: list[int] = []
        self._targets: list[list[str]] = []

    def takes(self, _workload: Workload) -> bool:
        """All of them."""
        return True

    def settle(self) -> None:
        """Nothing is left to do after a run."""

    def measure(self, workload: Workload, number: int) -> Run:
        """All clients at once."""
        before_s = cpu_seconds(self._pids)
        commands = [
            fio_command(target, workload, self._plan, 10 * number + core, core=core)
            for core, target in zip(self._cores, self._targets, strict=True)
        ]
        found = run_fio(self.name, commands, workload, self._plan)
        return run_of(self.name, workload, number, found, servers_s=cpu_seconds(self._pids) - before_s)


class Relays(Pinned):
    """The floor's relay, and a memory server behind it on TCP: the pinned cases without a device."""

    def __init__(
        self, name: str, cores: Sequence[int], plan: Plan, folder: Path, programs: Programs, build: Path
    ) -> None:
        """Start all and fill the servers' memory. build: where the floor's programs are."""
        super().__init__(name, cores, plan)
        for core in cores:
            label, path = f"{name}-{core}", folder / f"{name}-{core}.sock"
            server = programs.start(f"{label}-server", [str(build / "memory_server"), str(plan.size_bytes)])
            port = programs.ready_line(server)
            relay = programs.start(f"{label}-relay", [str(build / "relay"), str(path), str(plan.slab_bytes), port])
            programs.ready_line(relay)
            for program in (server, relay):
                pin(program.pid, {core})
                self._pids.append(program.pid)
            self._targets.append(nbd_target(path))
            fio.fill(self._targets[-1], plan.size_bytes)


class Files(Pinned):
    """Files on the disk of the backups, past the page cache."""

    def __init__(self, name: str, cores: Sequence[int], plan: Plan, folder: Path) -> None:
        """Write each once."""
        super().__init__(name, cores, plan)
        for core in cores:
            path = folder / f"{name}-{core}.img"
            prepare_file(path, plan.size_bytes)
            self._targets.append(file_target(path))

    def takes(self, workload: Workload) -> bool:
        """Only pages that are written go to the disk."""
        return workload.writes
