"""infiniswap peer add: one more memory daemon for a running device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.donor_address import Address
from infiniswap.shared.address import HostPort
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.sizes import format_size

POLL_S = 0.1
WAIT_S = 5.0


def row_of(control: DeviceClient, address: HostPort) -> dict[str, Any] | None:
    """The peer's row of GET /v1/peers; None where it is no peer."""
    rows = control.get("/v1/peers")
    return next((row for row in rows if row["peer"] == str(address)), None)


@click.command("add")
@click.argument("name")
@click.argument("address", type=Address(), metavar="HOST[:PORT]")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it is reached, to tell how that went.",
)
@runtime_dir_option
def command(name: str, address: HostPort, wait_s: float, runtime_dir: Path | None) -> None:
    """Add the memory daemon at HOST:PORT to device NAME.

    One that is being removed is kept. Exit code 0 also when it cannot be reached yet: it is tried until it is.
    """
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        changed = control.post("/v1/peers/add", {"peer": str(address)})["changed"]
        deadline_s = time.monotonic() + wait_s
        while (row := row_of(control, address)) is not None:
            over = row["state"] in ("up", "slow", "held") or row["last_error"] or time.monotonic() >= deadline_s
            if over:
                break
            time.sleep(POLL_S)
    verb = "added" if changed else "a peer already"
    if row is None:
        click.echo(f"{address} {verb}, and removed again meanwhile")
    elif row["state"] in ("up", "slow"):
        click.echo(f"{address} {verb}: up over {row['transport'] or '?'}, {format_size(row['free_bytes'] or 0)} free")
    else:
        why = row["last_error"] or row["state"]
        click.echo(f"{address} {verb}, not reached yet: {why}; it is tried again")
