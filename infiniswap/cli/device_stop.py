"""infiniswap device stop: an orderly stop, and the wait for it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import on_interrupt, runtime_dir_option
from infiniswap.kernel_shim import sysfs, users
from infiniswap.shared.device_client import TIMEOUT_S, DeviceClient, fetch, runtime_dir_or_default, way_to_stop
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.shard_names import is_shard, whole_of

STOP_TIMEOUT_S = 120.0


def check_unused(
    name: str,
    socket_path: str | None,
    connections: Callable[[], int],
    root: Path = Path("/"),
    *,
    attached_as: str | None = None,
) -> None:
    """UserError REFUSED while anybody is connected: swap, a mounted file system or any other client would stand still.

    connections: how many NBD connections the device has open now. attached_as: by which name the kernel knows it.
    """
    device = sysfs.attached(attached_as or name, root, socket_path)
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


def check_shard_unused(whole: str, shard: Mapping[str, Any], runtime_dir: Path, root: Path = Path("/")) -> None:
    """The same for one shard of a device."""

    def connections() -> int:
        try:
            return int(fetch(shard["name"], "/v1/status", runtime_dir, silence_s=TIMEOUT_S)["connections"])
        except UserError as error:
            if error.code != ExitCode.NOT_FOUND:
                raise
            return 0  # it is dead

    check_unused(whole, shard["socket"], connections, root, attached_as=shard["name"])


@dataclass(frozen=True, slots=True)
class _Asked:
    """A device that was asked to stop. process: a pidfd, opened before, so that it names the right one."""

    process: int
    folders: Mapping[str, Path]  # by service, where each keeps its state: of the device, or of its shards
    dead: Mapping[str, str]  # shards that did not serve then, and why


def _asked(process: int, name: str, status: Mapping[str, Any]) -> _Asked:
    shards, kept = status.get("shards") or (), status.get("state_dir")
    names = [shard["name"] for shard in shards] or [name]
    folders = {} if kept is None else {each: Path(kept).parent / each for each in names}
    return _Asked(process, folders, {row["name"]: row["why"] for row in shards if row["state"] == "dead"})


def _ask_to_stop(name: str, runtime_dir: Path, under_use: bool) -> _Asked:
    """Ask for the stop."""
    with DeviceClient(name, runtime_dir, silence_s=TIMEOUT_S) as control:
        status = control.get("/v1/status")
        pid = int(status["pid"])
        if is_shard(name):
            way_out = way_to_stop(name, runtime_dir)
            raise UserError(f"'{name}' is a part of device '{whole_of(name)}': {way_out}", ExitCode.REFUSED)
        shards = status.get("shards") or ()
        if not under_use and shards:
            for shard in shards:
                check_shard_unused(name, shard, runtime_dir)
        elif not under_use:
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
        return _asked(process, name, status)


def _check_end(name: str, asked: _Asked) -> None:
    """UserError when it has ended, but not in order or with pages lost: its exit code is its supervisor's alone.

    Its state tells all.
    """
    from infiniswap.device.loss import told_loss
    from infiniswap.device.state import stopped_in_order

    ended = {each: stopped_in_order(folder) for each, folder in asked.folders.items()}
    bad = [each for each, well in ended.items() if well is False or (well is None and each in asked.dead)]
    again = f"start '{name}' again before this host goes down"
    good = [each for each in ended if each not in bad]
    lost = {each: pages for each in good if (pages := told_loss(asked.folders[each]))}
    if not bad and lost:
        parts = "" if list(lost) == [name] else f" ({', '.join(f'{pages} of {each}' for each, pages in lost.items())})"
        raise UserError(
            f"device '{name}' has ended in order, but {sum(lost.values())} pages are lost{parts}: their last copy went "
            "with a peer or a disk, and they cannot be read until they are written again",
            ExitCode.FAILED,
        )
    if not bad:
        return
    if bad == [name]:
        raise UserError(
            f"device '{name}' has ended, but not in order: not all is known to be on its backup, and its log says why; "
            f"{again}",
            ExitCode.FAILED,
        )
    words = ", ".join(f"{each} ({asked.dead.get(each) or 'its log says why'})" for each in bad)
    if good:
        fine = ", ".join(f"{each} ({lost[each]} pages are lost)" if each in lost else each for each in good)
        raise UserError(
            f"device '{name}' is stopped in part: {fine} in order, but not {words}, whose last pages may be "
            f"with peers alone; {again}",
            ExitCode.FAILED,
        )
    raise UserError(
        f"device '{name}' has ended, but none of it in order: {words}; its last pages may be with peers alone; {again}",
        ExitCode.NOT_FOUND if len(asked.dead) == len(bad) else ExitCode.FAILED,  # as of one that is dead as a whole
    )


def _check_answers(name: str, asked: _Asked, runtime_dir: Path, timeout_s: float) -> None:
    """UserError where what still runs of it is silent: that one does not write."""
    for each in asked.folders:
        try:
            fetch(each, "/v1/status", runtime_dir)
        except UserError as error:
            if error.code == ExitCode.FAILED:
                raise UserError(f"device '{name}' still stops after {timeout_s:g} s: {error}", error.code) from None


def stop_device(name: str, runtime_dir: Path, timeout_s: float, *, under_use: bool = False) -> None:
    """Stop device name and wait until its process has ended. UserError when that takes longer than timeout_s, or fails.

    under_use: also while clients are connected; the kernel's requests then wait for the next start.
    """
    begun = time.monotonic()
    asked = _ask_to_stop(name, runtime_dir, under_use)
    try:
        left_s = max(0.0, timeout_s - (time.monotonic() - begun))
        ended, _, _ = select.select([asked.process], [], [], left_s)
    finally:
        os.close(asked.process)
    if not ended:
        _check_answers(name, asked, runtime_dir, timeout_s)
        message = (
            f"device '{name}' is still writing to its backup after {timeout_s:g} s and goes on; "
            f"'infiniswap stats {name}' shows what is pending"
        )
        raise UserError(message, ExitCode.FAILED)
    _check_end(name, asked)


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

    Pending pages go to the backup, and leases are given back. Exit code 1 when it has ended, but not all in order, so
    that not all is on its backup; 3 when there was none to stop, or none of its shards served.
    """
    goes_on = f"device '{name}' goes on stopping if it was asked to; 'infiniswap device list' shows whether it runs"
    with on_interrupt(lambda: goes_on):
        stop_device(name, runtime_dir_or_default(runtime_dir), timeout_s, under_use=under_use)
