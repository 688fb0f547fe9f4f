"""infiniswap cluster renew: a new certificate for this host, before the present one expires."""

from __future__ import annotations

from pathlib import Path

import click

from infiniswap.cli.cluster import days_option, directory_option, folder_of


@click.command("renew")
@days_option
@directory_option
def command(days: int, directory: Path | None) -> None:
    """Issue this host, which has the authority, a new certificate.

    It has the same names. Programs that run take it up within seconds. For other hosts: 'infiniswap cluster issue',
    and copy the folder once more.
    """
    from infiniswap.identity.authority import Authority
    from infiniswap.identity.certificates import describe, read_certificate
    from infiniswap.identity.files import HOST_CERT
    from infiniswap.identity.identity import utc_now

    folder, now = folder_of(directory), utc_now()
    authority = Authority.open(folder)
    before = describe(read_certificate(folder / HOST_CERT))
    authority.write_host([before.subject, *before.names], now, days)
    own = describe(read_certificate(folder / HOST_CERT))
    click.echo(f"{own.subject} has a new certificate, until {own.not_after:%Y-%m-%d}")
