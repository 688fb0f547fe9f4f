"""Times the start of a device service over a full log, from its exec to the line that says ready.

The device has 100 GiB, its log is a sparse file: the map of 150 MiB and the chain behind it are written (full_log.c),
pages that only the map names are holes. Nothing of it is in the page cache when the service starts.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from statistics import median

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark import machine
from scripts.benchmark.cluster import beside_python
from scripts.benchmark.comparison import Verdict
from scripts.benchmark.floor_build import build_program
from scripts.benchmark.measure import Plan
from scripts.benchmark.places import ROOT
from scripts.benchmark.processes import STOP_TIMEOUT_S, Programs, end
from scripts.benchmark.swap.area import run
from scripts.benchmark.terms import say
from scripts.benchmark.wanted.rows import Row

SIZE_BYTES = 100 << 30
CHUNK_PAGES = 250  # full chunks: what a device that is busy writes
NEEDED_BYTES = 3 << 30  # of disk: the chain, the map, and the state file
START_S = 4.0  # with its stop, for a guess
ENGINE = ROOT / "infiniswap" / "engine"


def expected_s(plan: Plan) -> float:
    """How long it takes, nearly."""
    return 2 * START_S * (plan.rounds + 1) + 10.0


def build_full_log(target: Path) -> None:
    """Compile full_log.c, with the engine's own idea of the format."""
    folders = [ENGINE / "include", *(path for path in sorted((ENGINE / "src").iterdir()) if path.is_dir())]
    sources = [Path(__file__).with_name("full_log.c"), ENGINE / "src/log/log_format.c", ENGINE / "src/common/crc32c.c"]
    build_program(target, sources, ["-O2", "-g", *(f"-I{folder}" for folder in folders)])


def forget(*paths: Path) -> None:
    """What the page cache has of these files, once they are on the disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


class Starts:
    """A device of a layout that is started again and again."""

    def __init__(self, programs: Programs, folder: Path, layout: str, peer: str, size_bytes: int) -> None:
        """The device is made: it has been started once."""
        self._programs, self._folder, self._layout = programs, folder, layout
        self.backup = folder / f"start-{layout}.backup"
        self._name = f"start-{layout}"
        self._command = [beside_python("infiniswap"), "device", "serve", self._name, "--size", str(size_bytes)]
        self._command += ["--backup-layout", layout, "--backup", str(self.backup), "--sparse", "--peer", peer]
        self._command += ["--socket", str(folder / f"start-{layout}.sock")]
        self.once()

    def once(self) -> tuple[float, str]:
        """(seconds from exec to ready, what the service logged)."""
        if self.backup.exists():
            forget(self.backup, self._folder / "state" / self._name / "state")
        begun_s = time.monotonic()
        service = self._programs.start(self._name, self._command)
        self._programs.ready_line(service)
        took_s = time.monotonic() - begun_s
        end(service.process, STOP_TIMEOUT_S)
        return took_s, service.log.read_text(errors="replace")


def chunks_read(log: str) -> int:
    """How many chunks behind the checkpoint a start has read, as it says. UserError when it says nothing of that."""
    found = re.search(r"a log, of which (\d+) chunks were read again", log)
    if found is None:
        raise UserError(f"the device service did not say what of its log it has read: {log[-400:]}", ExitCode.FAILED)
    return int(found[1])


def judge_start(row: Row, plan: Plan, folder: Path, programs: Programs, size_bytes: int = SIZE_BYTES) -> Verdict:
    """Measure here and now, in folder. UserError when this machine cannot, or the log is not what it should be."""
    machine.need_disk(folder, NEEDED_BYTES)
    say(f"Starting a device of {size_bytes >> 30} GiB")
    build_full_log(folder / "full_log")
    daemon = programs.start("daemon", [beside_python("infiniswapd"), "--memory", "64MiB", "--listen", "127.0.0.1:0"])
    peer = programs.ready_line(daemon).removeprefix("http://")
    raw, log = (Starts(programs, folder, layout, peer, size_bytes) for layout in ("raw", "log"))
    said = run([str(folder / "full_log"), str(log.backup), str(CHUNK_PAGES)]).strip()
    log.once()  # the state file learns of all the pages
    raw_s, log_s = [], []
    for _ in range(plan.rounds):
        raw_s.append(raw.once()[0])
        took_s, words = log.once()
        log_s.append(took_s)
        if chunks_read(words) != int(said.split()[0]):
            raise UserError(f"{said} stood behind the checkpoint, and {chunks_read(words)} were read", ExitCode.FAILED)
        say(f"  raw layout {raw_s[-1]:.2f} s, log {took_s:.2f} s")
    value = f"{median(log_s):.2f} s (raw layout {median(raw_s):.2f} s; {said} behind the checkpoint)"
    return Verdict(row.text, row.wanted, value, row.meets(median(log_s)))
