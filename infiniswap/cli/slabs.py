"""infiniswap slabs: where each slab of a device lies, once or as a live view."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options, runtime_dir_option
from infiniswap.cli.table import Column, Output, Row, as_decimal, choose, columns_help, show, shown_lines
from infiniswap.cli.watching import refuse_json, watch, watch_options
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.output import say
from infiniswap.shared.slab_choice import SORTS, STATES, TOP_MAX, SlabChoice

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


MANY = 64  # of more slabs only the first few are shown, unless asked otherwise
FEW = 20


def summary(sums: Mapping[str, Any]) -> str:
    """One line: slabs by state, pages by place."""
    total = sum(int(sums[state]) for state in STATES)
    states = ", ".join(f"{sums[state]} {state}" for state in sorted(STATES) if sums[state])
    places = (("remote_pages", "remote"), ("backup_pages", "on backup only"), ("pending_pages", "pending"))
    pages = ", ".join(f"{sums[key]} {word}" for key, word in places)
    return f"{total} slabs: {states or 'none'}; pages: {pages}"


def read_sums(control: DeviceClient) -> Mapping[str, Any]:
    """Of the whole device, whatever is chosen."""
    sums: Mapping[str, Any] = control.get("/v1/snapshot?cells=1")["slabs"]
    return sums


def read_slabs(control: DeviceClient, choice: SlabChoice) -> list[Row]:
    """Those that are wanted; the device leaves the others out, an older one does not."""
    return choice.choose(control.get("/v1/slabs" + choice.as_query()))


def frame(name: str, control: DeviceClient, choice: SlabChoice, output: Output, height: int) -> str:
    """One picture of the live view: the summary and, of the slabs wanted, as many as fit into height lines."""
    room = max(1, height - 3) if height else FEW
    rows = read_slabs(control, replace(choice, top=min(room, choice.top or room)))
    head = f"{name}  {time.strftime('%H:%M:%S')}  {summary(read_sums(control))}"
    return "\n".join([head, *shown_lines(rows, COLUMNS, output)])


def show_slabs(name: str, control: DeviceClient, choice: SlabChoice, output: Output, *, all_of_them: bool) -> None:
    """Print them; of many the first few after a summary, unless the caller said how many, or wants JSON."""
    free = choice.top is None and not all_of_them and not output.as_json
    if not free:
        show(read_slabs(control, choice), COLUMNS, output, empty=f"device '{name}' has no such slabs")
        return
    rows = read_slabs(control, replace(choice, top=MANY + 1))
    if len(rows) <= MANY:
        show(rows, COLUMNS, output, empty=f"device '{name}' has no such slabs")
        return
    by = "activity" if choice.sort == "index" else choice.sort
    rows = read_slabs(control, replace(choice, sort=by, top=FEW))
    if not output.no_headings:
        click.echo(summary(read_sums(control)))
    show(rows, COLUMNS, output)
    say(f"infiniswap: only the first {FEW} by {by}; --all shows them all, --top N more, --state and --peer others")


@click.command("slabs", epilog=columns_help(COLUMNS))
@click.argument("name")
@click.option("--state", type=click.Choice(STATES), help="Only slabs in this state.")
@click.option("--peer", metavar="HOST[:PORT]", help="Only slabs that this memory daemon holds.")
@click.option("--sort", type=click.Choice(list(SORTS)), default="index", show_default=True, help="In which order.")
@click.option("--top", type=click.IntRange(1, TOP_MAX), metavar="N", help="Only the first N.")
@click.option("--all", "all_of_them", is_flag=True, help=f"All, also where there are more than {MANY}.")
@output_options
@watch_options
@runtime_dir_option
def command(
    name: str,
    state: str | None,
    peer: str | None,
    sort: str,
    top: int | None,
    all_of_them: bool,
    watching: bool,
    interval_s: float,
    runtime_dir: Path | None,
    **output: Any,
) -> int | None:
    """Show where each slab of device NAME lies and how active it is.

    Of more than 64 slabs a summary and the 20 most active are shown, unless --top or --all says otherwise.
    """
    how, choice = make_output(**output), SlabChoice(state, peer, sort, top)
    choose(COLUMNS, how.columns)
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        if not watching:
            show_slabs(name, control, choice, how, all_of_them=all_of_them)
            return None
        refuse_json(how.as_json, "infiniswap slabs NAME")
        # What changes is what one watches for.
        live = replace(choice, sort="activity" if sort == "index" else sort)
        return watch(lambda height: frame(name, control, live, how, height), interval_s)
