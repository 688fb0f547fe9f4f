"""infiniswap device detach: swapoff, then disconnect; nothing is disconnected while pages are out."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infiniswap.cli.common_options import on_interrupt, runtime_dir_option
from infiniswap.cli.progress import progress_on
from infiniswap.kernel_shim import detach, swap, sysfs
from infiniswap.kernel_shim.sysfs import SwapArea
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import TIMEOUT_S, fetch, runtime_dir_or_default
from infiniswap.shared.errors import UserError, one_line
from infiniswap.shared.output import say
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


def interrupted(name: str, root: Path = Path("/")) -> str:
    """How the device stands after a Ctrl-C; swapoff was told of that, too, and gives up in order."""
    again = f"'infiniswap device detach {name}' goes on with it"
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
@runtime_dir_option
def command(name: str, timeout_s: float, served: bool, if_attached: bool, runtime_dir: Path | None) -> None:
    """Take device NAME away from the kernel, after swapoff.

    If swapoff fails nothing is disconnected.
    """
    check_name(name)
    runtime_dir = runtime_dir_or_default(runtime_dir)
    if if_attached and not detach.is_attached(name, runtime_dir):
        return
    with on_interrupt(lambda: interrupted(name)):
        done = _detach(name, runtime_dir, timeout_s, served)
    click.echo(f"/dev/nbd{done.index} detached")
