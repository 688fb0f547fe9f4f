"""infiniswap slabs: where each slab of a device lies, once or as a live view."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options, runtime_dir_option
from infiniswap.cli.table import Column, Output, Row, as_decimal, choose, columns_help, lines, show
from infiniswap.shared.device_client import DeviceClient, fetch, runtime_dir_or_default
from infiniswap.shared.errors import UserError

COLUMNS = (
    Column("INDEX", "index", "number of the slab; it begins at this times the slab size", right=True),
    Column("STATE", "state", "unmapped, mapping, mapped or draining"),
    Column("PEER", "peer", "memory daemon that holds it"),
    Column("ACTIVITY", "activity", "page I/O per second, smoothed", right=True, format=as_decimal),
    Column("REMOTE", "remote_pages", "pages whose copy in remote memory is current", right=True),
    Column("BACKUP", "backup_pages", "pages that only the backup holds", right=True),
    Column("PENDING", "pending_pages", "pages not yet on the backup", right=True),
    Column("PAGEINS", "page_ins", "pages read so far", right=True, default=False),
    Column("PAGEOUTS", "page_outs", "pages written so far", right=True, default=False),
)


def summary(rows: Sequence[Row]) -> str:
    """One line: slabs by state, pages by place."""
    states = Counter(str(row["state"]) for row in rows)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    pages = ", ".join(
        f"{sum(int(row[key]) for row in rows)} {word}"
        for key, word in (("remote_pages", "remote"), ("backup_pages", "on backup only"), ("pending_pages", "pending"))
    )
    return f"{len(rows)} slabs: {counts or 'none'}; pages: {pages}"


def frame(name: str, rows: Sequence[Row], columns: Sequence[Column], height: int) -> str:
    """One picture of the live view: the summary and the most active slabs that fit into height lines."""
    room = max(1, height - 3)
    shown = sorted(rows, key=lambda row: (-float(row["activity"]), int(row["index"])))[:room]
    shown.sort(key=lambda row: int(row["index"]))
    head = f"{name}  {time.strftime('%H:%M:%S')}  {summary(rows)}"
    if len(shown) < len(rows):
        head += f"; the {len(shown)} most active:"
    return "\n".join([head, *lines(shown, columns)])


def watch(name: str, runtime_dir: Path, output: Output, interval_s: float) -> None:
    """Show the slabs of device name anew every interval_s until interrupted or until the device ends (UserError)."""
    if output.as_json:
        raise UserError("--watch and --json do not go together; call 'infiniswap slabs NAME --json' again instead")
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    columns = choose(COLUMNS, output.columns)
    console = Console()
    smart = console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, auto_refresh=False, screen=True) if smart else None
    with DeviceClient(name, runtime_dir) as control, live or nullcontext():
        while True:
            text = frame(name, control.get("/v1/slabs"), columns, console.height)
            if live is not None:
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            else:
                click.echo(text + "\n")
            time.sleep(interval_s)


@click.command("slabs", epilog=columns_help(COLUMNS))
@click.argument("name")
@output_options
@click.option("-w", "--watch", "watching", is_flag=True, help="Show it again and again until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two pictures of --watch.",
)
@runtime_dir_option
def command(name: str, watching: bool, interval_s: float, runtime_dir: Path | None, **output: Any) -> None:
    """Show where each slab of device NAME lies and how active it is."""
    how = make_output(**output)
    if watching:
        watch(name, runtime_dir_or_default(runtime_dir), how, interval_s)
    else:
        show(fetch(name, "/v1/slabs", runtime_dir), COLUMNS, how)
