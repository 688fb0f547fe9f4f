"""Swap areas on this host: a block device out of a file or of an NBD server, swapon, swapoff."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from infiniswap.kernel_shim.sysfs import read_swaps
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.processes import Programs, need

PRIORITY = 32767  # before whatever else the host swaps to
COMMAND_TIMEOUT_S = 300.0
_READY_TIMEOUT_S = 30.0


def run(command: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Its output. UserError with its last line when it fails, or does not come to an end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}", ExitCode.NOT_FOUND) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command)} has not ended in {timeout_s:.0f} s", ExitCode.FAILED) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word why").splitlines()[-1]
        raise UserError(f"{' '.join(command)} failed: {said}", ExitCode.FAILED)
    return done.stdout


class Fuse:
    """An NBD server's export as a file (nbdfuse), for kernels without module nbd."""

    def __init__(self, programs: Programs, folder: Path, label: str, uri: str, connections: int = 4) -> None:
        """Mount uri below folder."""
        self._mountpoint = folder / f"{label}-fuse"
        self._mountpoint.mkdir()
        self.file = self._mountpoint / "nbd"
        command = [need("nbdfuse", "libnbd-bin"), "-C", str(connections), str(self.file), uri]
        program = programs.start(f"{label}-nbdfuse", command)
        programs.wait_until(self.file.exists, program, "does not show its file", _READY_TIMEOUT_S)

    def close(self) -> None:
        """Unmount; nbdfuse ends with that."""
        run([need("fusermount3", "fuse3"), "-u", str(self._mountpoint)])


class Loop:
    """A file as a block device, past the page cache."""

    def __init__(self, file: Path) -> None:
        """Nothing is done yet, so that close() can be arranged before there is anything to close."""
        self._file = file

    def open(self) -> Path:
        """Attach the file to the next free loop device; its node."""
        return Path(run(["losetup", "--direct-io=on", "--find", "--show", str(self._file)]).strip())

    def close(self) -> None:
        """Give the loop device back, if there is one: open() may have been cut short."""
        found = run(["losetup", "--associated", str(self._file), "--noheadings", "--output", "NAME"])
        for node in found.split():
            run(["losetup", "--detach", node])


class SwapArea:
    """A block device that the kernel swaps to."""

    def __init__(self, node: Path) -> None:
        """Nothing is done yet, so that close() can be arranged before there is anything to close."""
        self._node = node

    def open(self) -> None:
        """Mkswap and swapon."""
        run(["mkswap", str(self._node)])
        run(["swapon", "--priority", str(PRIORITY), str(self._node)])

    def close(self) -> None:
        """Swapoff, if it is on."""
        if any(area.path == str(self._node) for area in read_swaps()):
            run(["swapoff", str(self._node)])


def need_root() -> None:
    """UserError unless this process may change swap areas."""
    if os.geteuid() != 0:
        raise UserError("swapon, loop devices and control groups need root", ExitCode.RESOURCES)
