"""An application beside a memory daemon: takes memory by steps and tells how long its control group was short of it.

application.py GROUP HEADROOM_MIB: GROUP is the folder of a memory control group (v2) with a limit, its own one. Reads
orders from stdin, one a line, and answers each with one line:
    step MIB WAIT_S   takes so much at once, then waits until HEADROOM is free in the group again: `restored MS MIB`
                      (after so long; the least that was free), or `short MIB` when WAIT_S are over
    rush MIB          takes so much as fast as it can and waits for nothing: `taken MS`
    free              how much is free in the group: `free MIB`
    check             every page holds what was written: `right MIB`
Ends at the end of stdin. Free is what the limit leaves, with file pages that nobody would miss, as the daemon counts.
"""

import mmap
import sys
import time
from pathlib import Path

PAGE = 4096
MIB = 1 << 20
TAKEN_MAX = 4096  # MiB: what an order of a scenario gone wrong may take
LOOK_S = 0.05


class Group:
    """A memory control group with a limit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._limit_bytes = int((folder / "memory.max").read_text())

    def free_bytes(self) -> int:
        """What the limit leaves."""
        stat = dict(line.split() for line in (self._folder / "memory.stat").read_text().splitlines())
        idle = int(stat["inactive_file"]) + int(stat["active_file"]) // 2
        return self._limit_bytes - int((self._folder / "memory.current").read_text()) + idle


class Application:
    """What it holds."""

    def __init__(self, group: Group, headroom_bytes: int) -> None:
        self._group = group
        self._headroom_bytes = headroom_bytes
        self._held: list[mmap.mmap] = []

    def take(self, mib: int, flags: int = 0) -> None:
        """Memory whose pages tell which they are."""
        if mib + sum(len(memory) for memory in self._held) // MIB > TAKEN_MAX:
            raise ValueError(f"more than {TAKEN_MAX} MiB are asked for")
        memory = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
        self._held.append(memory)
        for at in range(0, len(memory), PAGE):
            memory[at : at + 8] = (len(self._held) << 32 | at).to_bytes(8, "little")

    def step(self, mib: int, wait_s: float) -> str:
        """See above."""
        if mib:
            self.take(mib)
        begun_s = time.monotonic()
        least = free = self._group.free_bytes()
        while free < self._headroom_bytes:
            if time.monotonic() - begun_s > wait_s:
                return f"short {(self._headroom_bytes - free) // MIB}"
            time.sleep(LOOK_S)
            free = self._group.free_bytes()
            least = min(least, free)
        return f"restored {(time.monotonic() - begun_s) * 1e3:.0f} {least // MIB}"

    def rush(self, mib: int) -> str:
        """See above."""
        begun_s = time.monotonic()
        self.take(mib, mmap.MAP_POPULATE)  # by the kernel, which no program could do as fast
        return f"taken {(time.monotonic() - begun_s) * 1e3:.0f}"

    def check(self) -> str:
        """See above."""
        for number, memory in enumerate(self._held, 1):
            for at in range(0, len(memory), PAGE):
                if int.from_bytes(memory[at : at + 8], "little") != (number << 32 | at):
                    return f"wrong {number} {at}"
        return f"right {sum(len(memory) for memory in self._held) // MIB}"

    def obey(self, order: list[str]) -> str:
        """The answer to an order."""
        match order:
            case ["step", mib, wait_s]:
                return self.step(int(mib), float(wait_s))
            case ["rush", mib]:
                return self.rush(int(mib))
            case ["free"]:
                return f"free {self._group.free_bytes() // MIB}"
            case ["check"]:
                return self.check()
        return f"unknown {' '.join(order)}"


def main() -> int:
    """0 at the end of the orders."""
    application = Application(Group(Path(sys.argv[1])), int(sys.argv[2]) * MIB)
    for line in sys.stdin:
        print(application.obey(line.split()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
