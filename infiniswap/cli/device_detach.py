"""infiniswap device detach: swapoff, then disconnect; nothing is disconnected while pages are out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infiniswap.cli.common_options import on_interrupt, runtime_dir_option
from infiniswap.cli.progress import progress_on
from infiniswap.kernel_shim import detach, shards, stripes, swap, sysfs
from infiniswap.kernel_shim.sysfs import SwapArea
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import TIMEOUT_S, fetch, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError, one_line
from infiniswap.shared.output import say
from infiniswap.shared.shard_names import is_shard, whole_of
from infiniswap.shared.sizes import format_size


def is_served(name: str, runtime_dir: Path) -> bool:
    """Whether the device's service answers."""
    try:
        fetch(name, "/v1/status", runtime_dir, silence_s=TIMEOUT_S)
    except UserError:
        return False
    return True


class _Display:
    """A bar of what swapoff has brought back; on a terminal only."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", start=True, total=None, visible=False)
        self._out_at_first: int | None = None

    def show(self, area: SwapArea) -> None:
        """Bring the bar up to date."""
        if self._out_at_first is None:
            self._out_at_first = area.used_bytes
        self._progress.update(
            self._task,
            total=max(self._out_at_first, 1),
            completed=max(0, self._out_at_first - area.used_bytes),
            description=f"swapoff {area.path}: {format_size(area.used_bytes)} still out",
            visible=True,
        )


def _detach(name: str, runtime_dir: Path, timeout_s: float, served: bool) -> detach.Detached:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with progress_on(None, *columns) as progress:
        display = _Display(progress)
        return detach.detach(
            name,
            runtime_dir,
            served=served or is_served(name, runtime_dir),
            swapoff_timeout_s=timeout_s,
            progress=display.show,
            say=lambda line: say(f"infiniswap: {one_line(line)}"),
        )


def _detach_shards(name: str, runtime_dir: Path, timeout_s: float, served: bool) -> list[int]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with progress_on(None, *columns) as progress:
        displays: dict[str, _Display] = {}

        def show(area: SwapArea) -> None:
            if area.path not in displays:
                displays[area.path] = _Display(progress)
            displays[area.path].show(area)

        return shards.detach_all(
            name,
            runtime_dir,
            served=lambda shard: served or is_served(shard, runtime_dir),
            swapoff_timeout_s=timeout_s,
            progress=show,
            say=lambda line: say(f"infiniswap: {one_line(line)}"),
        )


def interrupted(name: str, root: Path = Path("/"), parts: Sequence[str] = ()) -> str:
    """How the device stands after a Ctrl-C; swapoff was told of that, too, and gives up in order. parts: its shards."""
    again = f"'infiniswap device detach {name}' goes on with it"
    if parts:
        on = [device.path for part in parts if (device := sysfs.attached(part, root)) and sysfs.swap_on(device, root)]
        still = f"swap on {', '.join(on)} is still on, and nothing was disconnected" if on else "no swap is on it"
        return f"interrupted: {still}; {again}"
    device = sysfs.attached(name, root)
    if device is None:
        return f"interrupted; device '{name}' is not attached any more"
    area = sysfs.swap_on(device, root)
    if area is None:
        return f"interrupted: swap on {device.path} is off, and it is still attached; {again}"
    out = format_size(area.used_bytes)
    return f"interrupted: swap on {device.path} is still on, {out} still out, and nothing was disconnected; {again}"


@click.command("detach")
@click.argument("name")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=swap.SWAPOFF_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long swapoff may take; after that the device stays attached.",
)
@click.option(
    "--served", is_flag=True, help="Do not ask whether the device service runs (for one attached by --socket)."
)
@click.option("--if-attached", is_flag=True, help="Succeed without a word when it is not attached.")
@click.option(
    "--if-served",
    is_flag=True,
    help="Leave it attached, and fail, when its service does not answer: for who is about to start that again.",
)
@runtime_dir_option
def command(
    name: str, timeout_s: float, served: bool, if_attached: bool, if_served: bool, runtime_dir: Path | None
) -> None:
    """Take device NAME away from the kernel, after swapoff.

    If swapoff fails nothing is disconnected.
    """
    check_name(name)
    runtime_dir = runtime_dir_or_default(runtime_dir)
    if is_shard(name):
        raise UserError(f"'{name}' is a part of device '{whole_of(name)}'; detach that", ExitCode.REFUSED)
    parts = shards.attached_names(name, runtime_dir)
    as_one = bool(parts) or stripes.find(name) is not None
    if if_attached and not as_one and not detach.is_attached(name, runtime_dir):
        return
    if if_served and not is_served(name, runtime_dir):
        raise UserError(
            f"device '{name}' does not answer, and stays attached until its service has been started again (or is "
            "detached without --if-served)",
            ExitCode.FAILED,
        )
    if as_one:
        with on_interrupt(lambda: interrupted(name, parts=parts)):
            found = _detach_shards(name, runtime_dir, timeout_s, served)
        click.echo("\n".join(f"/dev/nbd{index} detached" for index in found))
        return
    with on_interrupt(lambda: interrupted(name)):
        done = _detach(name, runtime_dir, timeout_s, served)
    click.echo(f"/dev/nbd{done.index} detached")
