"""infiniswap cluster revoke: the certificates of a host count no more."""

from __future__ import annotations

from pathlib import Path

import click

from infiniswap.cli.cluster import directory_option, folder_of


@click.command("revoke")
@click.argument("host", metavar="HOST")
@directory_option
def command(host: str, directory: Path | None) -> None:
    """Take back all certificates that were issued to HOST.

    The list crl.pem says so; it must be copied to the other hosts, where programs that run take it up within seconds.
    """
    from infiniswap.identity.authority import Authority
    from infiniswap.identity.files import CRL
    from infiniswap.identity.identity import utc_now

    folder = folder_of(directory)
    authority = Authority.open(folder)
    count = authority.revoke(host, utc_now())
    others = sorted({entry.host for entry in authority.ledger() if not entry.revoked})
    click.echo(f"revoked {count} certificates of {host}" if count else f"{host} has none that is not revoked already")
    if others:
        click.echo(f"next: copy {folder / CRL} to {', '.join(others)}")
