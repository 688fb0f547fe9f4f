"""infiniswap rdma teardown: removes a soft-RoCE link."""

from __future__ import annotations

import click

from infiniswap.kernel_shim import rdma_link


@click.command("teardown")
@click.argument("name", required=False)
@click.option("--netdev", metavar="NAME", help="The link of this network interface.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=rdma_link.TEARDOWN_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for programs to close it; it goes by itself when the last one does.",
)
@click.option("--if-present", is_flag=True, help="Succeed without a word when there is none.")
def command(name: str | None, netdev: str | None, timeout_s: float, if_present: bool) -> None:
    """Remove a soft-RoCE link.

    NAME is its own, or that of a network interface; without one, the only link there is. Hardware is never touched.
    Devices and daemons that use it go on over TCP.
    """
    link = rdma_link.teardown(
        name,
        netdev,
        timeout_s=timeout_s,
        if_present=if_present,
        say=lambda line: click.echo(f"infiniswap: {line}", err=True),
    )
    if link is not None:
        click.echo(f"{link.name} on {link.netdev} removed")
