"""Three memory daemons and a device service over them, on loopback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.processes import Program, Programs

DAEMONS = 3


@dataclass(frozen=True, slots=True)
class BenchmarkCluster:
    """What to start: a device's name and sizes, and further options of it."""

    name: str
    size_bytes: int
    slab_bytes: int
    pending_limit_bytes: int
    options: tuple[str, ...] = ()

    def start(
        self, programs: Programs, folder: Path, socket: Path, run: Callable[[str, list[str]], Program]
    ) -> Program:
        """Start them with run(label, command), the backup in folder; returns the device service, on socket."""
        peers = []
        for number in range(DAEMONS):
            # Placement balances by free memory, but not exactly: two thirds of the device each is room enough.
            memory_bytes = -(-self.size_bytes * 2 // 3 // self.slab_bytes) * self.slab_bytes
            command = [beside_python("infiniswapd"), "--memory", str(memory_bytes), "--listen", "127.0.0.1:0"]
            daemon = run(f"daemon-{number}", command)
            peers.append(programs.ready_line(daemon).removeprefix("http://"))
        command = [beside_python("infiniswap"), "device", "serve", self.name, "--size", str(self.size_bytes)]
        command += ["--slab-size", str(self.slab_bytes), "--backup", str(folder / f"{self.name}.img")]
        command += ["--socket", str(socket), "--map", "eager", "--pending-limit", str(self.pending_limit_bytes)]
        command += self.options
        for peer in peers:
            command += ["--peer", peer]
        service = run("device", command)
        programs.ready_line(service)
        return service


def beside_python(command: str) -> str:
    """Path of a command of this installation."""
    return str(Path(sys.executable).with_name(command))
