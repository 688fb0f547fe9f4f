"""infiniswap device stop: an orderly stop, and the wait for it."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import click

from infiniswap.cli.control import Control, runtime_dir_or_default
from infiniswap.cli.options import runtime_dir_option
from infiniswap.errors import ExitCode, UserError

TIMEOUT_S = 120.0


def _ask_to_stop(name: str, runtime_dir: Path) -> int:
    """Ask for the stop; returns a pidfd of the device's process, opened before, so that it names the right one."""
    with Control(name, runtime_dir) as control:
        status = control.get("/v1/status")
        pid = int(status["pid"])
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            message = f"device '{name}': its process {pid} is not to be seen from here (another PID namespace?)"
            raise UserError(message, ExitCode.NOT_FOUND) from None
        try:
            control.post("/v1/stop")
        except BaseException:
            os.close(process)
            raise
        return process


def stop_device(name: str, runtime_dir: Path, timeout_s: float) -> None:
    """Stop device name and wait until its process has ended. UserError when that takes longer than timeout_s."""
    begun = time.monotonic()
    process = _ask_to_stop(name, runtime_dir)
    try:
        left_s = max(0.0, timeout_s - (time.monotonic() - begun))
        ended, _, _ = select.select([process], [], [], left_s)
    finally:
        os.close(process)
    if not ended:
        message = (
            f"device '{name}' is still writing to its backup after {timeout_s:g} s and goes on; "
            f"'infiniswap stats {name}' shows what is pending"
        )
        raise UserError(message, ExitCode.FAILED)


@click.command("stop")
@click.argument("name")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the end; the device stops all the same.",
)
@runtime_dir_option
def command(name: str, timeout_s: float, runtime_dir: Path | None) -> None:
    """Stop device NAME: pending pages go to the backup, leases are given back. Returns when it has ended."""
    stop_device(name, runtime_dir_or_default(runtime_dir), timeout_s)
