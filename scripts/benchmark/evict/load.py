"""A client that keeps a device busy, and what it got done in each tenth of a second."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.fio import SLACK_S
from scripts.benchmark.processes import end

BIN_MS = 100
BLOCK_BYTES = 4096
DEPTH = 16
READ_PERCENT = 70


class Load:
    """fio, verifying nothing: random pages, reads and writes. Use it as a context manager, which waits for its end."""

    def __init__(self, target: Sequence[str], size_bytes: int, runtime_s: float, folder: Path) -> None:
        """Start it for runtime_s; its logs go to folder."""
        self._runtime_s = runtime_s
        self._log = folder / "load"
        self._said = folder / "load.out"
        command = ["fio", "--name=load", "--thread", *target, "--rw=randrw", f"--rwmixread={READ_PERCENT}"]
        command += [f"--bs={BLOCK_BYTES}", f"--iodepth={DEPTH}", f"--size={size_bytes}", "--norandommap"]
        command += ["--time_based", f"--runtime={runtime_s:.0f}", "--randseed=1"]
        command += [f"--write_iops_log={self._log}", f"--log_avg_msec={BIN_MS}", "--log_unix_epoch=1"]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def stop(self) -> None:
        """End it now, whatever it has done."""
        end(self._process, SLACK_S)

    def finish(self) -> dict[int, float]:
        """Wait for its end: operations a second in each tenth of a second since 1970. UserError when it failed."""
        try:
            code = self._process.wait(self._runtime_s + SLACK_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise UserError(f"fio was not done after {self._runtime_s:.0f} s", ExitCode.FAILED) from None
        if code != 0:
            said = " ".join(self._said.read_text(errors="replace").split())[-400:]
            raise UserError(f"fio failed (exit code {code}): {said}", ExitCode.FAILED)
        found: list[str] = []
        for file in sorted(self._log.parent.glob(f"{self._log.name}_iops.*.log")):
            found += file.read_text().splitlines()
        return bins(found)


def bins(lines: Iterable[str]) -> dict[int, float]:
    """Operations a second in each bin, from lines of an fio log (`milliseconds, operations a second, direction, …`)."""
    rates: dict[int, float] = {}
    for line in lines:
        at_ms, rate, *_ = line.split(",")
        number = int(at_ms) // BIN_MS
        rates[number] = rates.get(number, 0.0) + float(rate)  # reads and writes have lines of their own
    return rates
