"""infiniswap device stop: an orderly stop, and the wait for it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

import click

from infiniswap.cli.common_options import on_interrupt, runtime_dir_option
from infiniswap.kernel_shim import sysfs, users
from infiniswap.shared.device_client import TIMEOUT_S, DeviceClient, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError

STOP_TIMEOUT_S = 120.0


def check_unused(name: str, socket_path: str | None, connections: Callable[[], int], root: Path = Path("/")) -> None:
    """UserError REFUSED while anybody is connected: swap, a mounted file system or any other client would stand still.

    connections: how many NBD connections the device has open now.
    """
    device = sysfs.attached(name, root, socket_path)
    if device is None:
        count = users.count_open(connections)
        if not count:
            return
        use, way_out = users.describe(count, root), "disconnect first"
    else:
        count = connections()
        mounts = sysfs.mounts_of(device, root)
        if sysfs.swap_on(device, root):
            use = f"the kernel swaps to it ({device.path})"
        elif mounts:
            use = f"{device.path} is mounted on {mounts[0]}"
        else:
            use = f"it is attached as {device.path}"
        use, way_out = f"{use}, {count} NBD connections are open", f"'infiniswap device detach {name}' first"
    raise UserError(f"device '{name}': {use}; {way_out}, or --under-use for a restart", ExitCode.REFUSED)


def _ask_to_stop(name: str, runtime_dir: Path, under_use: bool) -> int:
    """Ask for the stop; returns a pidfd of the device's process, opened before, so that it names the right one."""
    with DeviceClient(name, runtime_dir, silence_s=TIMEOUT_S) as control:
        status = control.get("/v1/status")
        pid = int(status["pid"])
        if not under_use:
            check_unused(name, status.get("socket"), lambda: int(control.get("/v1/status").get("connections", 0)))
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


def stop_device(name: str, runtime_dir: Path, timeout_s: float, *, under_use: bool = False) -> None:
    """Stop device name and wait until its process has ended. UserError when that takes longer than timeout_s.

    under_use: also while clients are connected; the kernel's requests then wait for the next start.
    """
    begun = time.monotonic()
    process = _ask_to_stop(name, runtime_dir, under_use)
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
    default=STOP_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the end; the device stops all the same.",
)
@click.option("--under-use", is_flag=True, help="Also while clients are connected; the next start takes attach's over.")
@runtime_dir_option
def command(name: str, timeout_s: float, under_use: bool, runtime_dir: Path | None) -> None:
    """Stop device NAME in order and wait for its end.

    Pending pages go to the backup, and leases are given back.
    """
    goes_on = f"device '{name}' goes on stopping if it was asked to; 'infiniswap device list' shows whether it runs"
    with on_interrupt(lambda: goes_on):
        stop_device(name, runtime_dir_or_default(runtime_dir), timeout_s, under_use=under_use)
