"""infiniswap cluster issue: a certificate for another host of the cluster, as a folder to be copied there."""

from __future__ import annotations

from pathlib import Path

import click

from infiniswap.cli.cluster import days_option, directory_option, folder_of
from infiniswap.shared.paths import tls_dir


@click.command("issue")
@click.argument("host", metavar="HOST")
@click.argument("more", nargs=-1, metavar="[ADDRESS]...")
@days_option
@directory_option
def command(host: str, more: tuple[str, ...], days: int, directory: Path | None) -> None:
    """Issue a certificate to HOST, as a folder to be copied there.

    Devices may reach its daemon as HOST and by each ADDRESS (or further name). An earlier certificate of the host stays
    good until it expires, or is revoked.
    """
    from infiniswap.identity.authority import Authority
    from infiniswap.identity.identity import utc_now
    from infiniswap.identity.invitation import LOCAL

    authority = Authority.open(folder_of(directory))
    bundle = authority.write_bundle([host, *more, *LOCAL], utc_now(), days)
    click.echo(f"issued to {host}: {bundle}")
    there = tls_dir()
    click.echo(f"next: ssh {host} mkdir -p -m 700 {there} && scp -p {bundle}/* {host}:{there}/ && rm -r {bundle}")
