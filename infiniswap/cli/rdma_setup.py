"""infiniswap rdma setup: soft-RoCE on a network interface."""

from __future__ import annotations

import click

from infiniswap.kernel_shim import rdma_link
from infiniswap.rdma.path import show_gid


@click.command("setup")
@click.option("--netdev", required=True, metavar="NAME", help="Network interface to make an RDMA port of.")
@click.option("--name", metavar="NAME", help="Name of the RDMA device [default: the first of rxe0, rxe1, … free].")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=rdma_link.READY_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long the port may take to be usable; after that the link is removed again.",
)
def command(netdev: str, name: str | None, timeout_s: float) -> None:
    """Make an RDMA port of a network interface (soft-RoCE).

    Prints the port. One that is there is kept.
    """
    made = rdma_link.setup(netdev, name=name, timeout_s=timeout_s)
    there = "" if made.new else ", there already"
    click.echo(f"{made.port}: soft-RoCE on {made.netdev}, GID {made.gid.index} {show_gid(made.gid.address)}{there}")
