"""infiniswap donor cordon: a memory daemon lends nothing new."""

from __future__ import annotations

import click

from infiniswap.cli.donor_address import address_argument
from infiniswap.cli.donor_client import connect
from infiniswap.shared.address import HostPort
from infiniswap.shared.operator_messages import DonorState


@click.command("cordon")
@address_argument
def command(address: HostPort) -> None:
    """Let the daemon at HOST:PORT lend nothing new.

    Slabs that are lent stay where they are. It lasts until uncordon, and through
    a restart that keeps the daemon's memory.
    """
    with connect(address) as donor:
        status = donor.cordon()
    slabs = sum(lease.holding.slabs for lease in status.leases)
    state = "cordoned" if status.state is DonorState.CORDONED else f"cordoned, and {status.state}"
    click.echo(f"{address} {state}; {slabs} slabs of {len(status.leases)} leases are lent")
