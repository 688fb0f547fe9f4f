"""infiniswap donor drain: everything that a memory daemon lends goes back, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import click

from infiniswap.cli.common_options import on_interrupt
from infiniswap.cli.donor_address import address_argument
from infiniswap.cli.donor_client import connect
from infiniswap.cli.progress import progress_on
from infiniswap.shared.address import HostPort
from infiniswap.shared.donor_client import DonorClient
from infiniswap.shared.durations import format_duration, parse_duration
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.operator_messages import (
    DEADLINE_S_DEFAULT,
    DEADLINE_S_MAX,
    DonorStatus,
    Drain,
    DrainRequest,
    DrainState,
    Holding,
)

POLL_S = 0.25  # a daemon that stops itself afterwards can be asked for longer
HOLDERS_SHOWN_MAX = 4


def read_deadline(text: str | None) -> float | None:
    """Seconds out of 10m; UserError."""
    if text is None:
        return None
    seconds = parse_duration(text)
    if seconds > DEADLINE_S_MAX:
        raise UserError(f"--deadline {text} must be at most {format_duration(DEADLINE_S_MAX)}")
    return seconds


def holders(holdings: Sequence[Holding]) -> str:
    """Who holds how much: vol (10.0.0.7) 3, swap0 (10.0.0.8) 1; those with most first."""
    holding = sorted((each for each in holdings if each.slabs), key=lambda each: -each.slabs)
    shown = [f"{each.device} ({each.host}) {each.slabs}" for each in holding[:HOLDERS_SHOWN_MAX]]
    more = len(holding) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def progress_line(status: DonorStatus) -> str:
    """How far the last drain of status is."""
    drain = status.drain
    if drain is None:
        return "there was none"
    forced = f", {drain.forced_slabs} taken by force" if drain.forced else ""
    gone = f"{drain.moved} of {drain.slabs} slabs given back{forced}"
    if drain.state is not DrainState.RUNNING:
        return f"{gone}, in {format_duration(drain.elapsed_s)}"
    left = f"; left: {holders([lease.holding for lease in status.leases])}" if drain.left else ""
    return f"{gone}, by force in {format_duration(drain.deadline_in_s)}{left}"


def follow(donor: DonorClient, status: DonorStatus) -> DonorStatus:
    """Wait for the drain's end, with a bar on a terminal; the last status."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with progress_on(None, *columns) as progress:
        task = progress.add_task("", total=None)

        def draw(now: DonorStatus, drain: Drain) -> None:
            done = drain.slabs - drain.left
            progress.update(task, total=max(drain.slabs, 1), completed=done, description=progress_line(now))

        return watch(donor, status, draw)


def watch(donor: DonorClient, status: DonorStatus, draw: Callable[[DonorStatus, Drain], None]) -> DonorStatus:
    """Ask until the drain is over. UserError when the daemon goes away before."""
    while (drain := status.drain) is not None and drain.state is DrainState.RUNNING:
        draw(status, drain)
        time.sleep(POLL_S)
        try:
            status = donor.status()
        except UserError as error:
            message = f"the daemon went away while {drain.left} slabs were still lent: {error}"
            raise UserError(message, error.code) from None
    return status


def verdict(address: HostPort, status: DonorStatus) -> str:
    """What came of the drain, in one line for each thing to say."""
    drain = status.drain
    assert drain is not None
    if drain.state is DrainState.DONE:
        stopping = "; the daemon stops" if drain.stop else ""
        said = f"{address} drained: {progress_line(status)}{stopping}"
    else:
        said = f"{address} draining: {progress_line(status)}"
    if drain.forced:
        return f"{said}\nno answer in time, taken by force from: {holders(drain.forced)}"
    return said


@click.command("drain")
@address_argument
@click.option(
    "--deadline",
    metavar="DURATION",
    help="After which slabs that are still lent are taken by force, for example 90s or 10m "
    f"[default: {format_duration(DEADLINE_S_DEFAULT)}, or that of the drain that goes on].",
)
@click.option("--stop", is_flag=True, help="The daemon ends itself when nothing is lent any more.")
@click.option("--no-wait", is_flag=True, help="Return at once; the daemon goes on with it.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: the daemon's status at the end.")
def command(address: HostPort, deadline: str | None, stop: bool, no_wait: bool, as_json: bool) -> None:
    """Have all that the daemon at HOST:PORT lends given back.

    It lends nothing new, and devices move their pages away. What a device has not given back by the deadline is taken
    by force: it goes on with its backup and loses nothing. Ctrl-C ends the waiting, not the drain: drain again to watch
    it, with --deadline to give it another one; uncordon ends it. Exit code 0: nothing is lent any more. 1: uncordon
    ended it before. 7: the daemon went away before.
    """
    request = DrainRequest(read_deadline(deadline), stop)
    watched, ended = f"infiniswap donor drain {address}", f"infiniswap donor uncordon {address}"
    goes_on = f"the drain goes on; '{watched}' watches it, '{ended}' ends it"
    with connect(address) as donor, on_interrupt(lambda: goes_on):
        status = donor.drain(request)
        if not no_wait:
            status = follow(donor, status)
    if status.drain is None or status.drain.state is DrainState.ENDED:
        left = sum(lease.holding.slabs for lease in status.leases)
        raise UserError(f"{address}: the drain was ended by uncordon with {left} slabs left", ExitCode.FAILED)
    click.echo(json.dumps(status.as_json(), indent=2) if as_json else verdict(address, status))
