"""infiniswap peer remove: a memory daemon leaves a running device, after its slabs have."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.donor_address import Address
from infiniswap.cli.donor_drain import read_deadline
from infiniswap.cli.peer_add import row_of
from infiniswap.cli.progress import progress_on
from infiniswap.shared.address import HostPort
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.durations import format_duration
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.output import say

POLL_S = 0.25
DEADLINE_S_DEFAULT = 600.0

Row = dict[str, Any]


def progress_line(row: Row) -> str:
    """How far a peer is on its way out."""
    leaving = row["leaving"]
    gone = f"{max(0, leaving['slabs'] - leaving['left'])} of {leaving['slabs']} slabs have left"
    if leaving["waiting"]:
        return f"{gone}; past the deadline, waiting: {leaving['waiting']}"
    return f"{gone}, all at once in {format_duration(leaving['deadline_in_s'])}"


def watch(control: DeviceClient, address: HostPort, row: Row | None, draw: Callable[[Row], None]) -> None:
    """Ask until the peer is gone. UserError when it is kept after all."""
    while row is not None:
        if row["leaving"] is None:
            raise UserError(f"{address} stays: 'infiniswap peer add' kept it", ExitCode.FAILED)
        draw(row)
        time.sleep(POLL_S)
        row = row_of(control, address)


def follow(control: DeviceClient, address: HostPort, row: Row | None) -> None:
    """Wait until the peer is gone, with a bar on a terminal."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with progress_on(None, *columns) as progress:
        task = progress.add_task("", total=None)

        def draw(now: Row) -> None:
            slabs, left = now["leaving"]["slabs"], now["leaving"]["left"]
            done = max(0, slabs - left)
            progress.update(task, total=max(slabs, 1), completed=done, description=progress_line(now))

        watch(control, address, row, draw)


@click.command("remove")
@click.argument("name")
@click.argument("address", type=Address(), metavar="HOST[:PORT]")
@click.option(
    "--deadline",
    metavar="DURATION",
    help="After which slabs that are still there are given up at once, for example 90s or 10m "
    f"[default: {format_duration(DEADLINE_S_DEFAULT)}].",
)
@click.option("--no-wait", is_flag=True, help="Return at once; the device goes on with it.")
@runtime_dir_option
def command(name: str, address: HostPort, deadline: str | None, no_wait: bool, runtime_dir: Path | None) -> None:
    """Remove the memory daemon at HOST:PORT from device NAME.

    Its slabs move to other peers or to the backup first. What is still there at the deadline is given up at once,
    without loss: its pages are served from the backup. Ctrl-C ends the waiting, not the removal: remove again watches
    it, 'peer add' keeps the peer. Exit code 0: it is gone. 1: it was kept meanwhile. 3: it is no peer.
    """
    seconds = read_deadline(deadline)
    begun = time.monotonic()
    content = {"peer": str(address), "deadline_s": DEADLINE_S_DEFAULT if seconds is None else seconds}
    folder = runtime_dir_or_default(runtime_dir)
    try:
        with DeviceClient(name, folder) as control:
            row = control.post("/v1/peers/remove", content)["peer"]
            slabs = row["leaving"]["slabs"] if row and row["leaving"] else 0
            if no_wait:
                click.echo(f"{address} leaves with {slabs} slabs")
                return
            follow(control, address, row)
    except KeyboardInterrupt:  # perhaps in the middle of an answer: what holds is asked anew
        with DeviceClient(name, folder) as control:
            row = row_of(control, address)
        held = progress_line(row) if row is not None and row["leaving"] else "nothing is left"
        say(
            f"infiniswap: the removal of {address} goes on: {held}; 'infiniswap peer remove {name} {address}' "
            f"watches it, 'infiniswap peer add {name} {address}' ends it"
        )
        raise click.Abort from None
    click.echo(f"{address} removed: its {slabs} slabs have left, in {format_duration(time.monotonic() - begun)}")
