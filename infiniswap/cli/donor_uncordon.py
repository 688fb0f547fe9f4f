"""infiniswap donor uncordon: a memory daemon lends again."""

from __future__ import annotations

import click

from infiniswap.cli.donor_address import address_argument
from infiniswap.cli.donor_client import connect
from infiniswap.shared.address import HostPort
from infiniswap.shared.operator_messages import DrainState
from infiniswap.shared.sizes import format_size


@click.command("uncordon")
@address_argument
def command(address: HostPort) -> None:
    """Let the daemon at HOST:PORT lend again. A drain that goes on ends where it is."""
    with connect(address) as donor:
        before = donor.status()
        status = donor.uncordon()
    ended = before.drain is not None and before.drain.state is DrainState.RUNNING
    drain = f"; the drain ended with {status.drain.left} slabs left" if ended and status.drain is not None else ""
    click.echo(f"{address} lending{drain}; {format_size(status.memory.free_bytes)} are free")
