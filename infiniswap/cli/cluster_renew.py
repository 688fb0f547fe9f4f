"""infiniswap cluster renew: a new certificate for a host, before the present one expires."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from infiniswap.cli.cluster import days_option, directory_option, folder_of
from infiniswap.shared.errors import UserError


@click.command("renew")
@click.argument("host", required=False, metavar="[HOST]")
@click.option(
    "--from",
    "source",
    type=click.File("rb"),
    metavar="FILE",
    help="On HOST: take what 'renew HOST' printed on the authority's host; - for standard input.",
)
@days_option
@directory_option
def command(host: str | None, source: BinaryIO | None, days: int, directory: Path | None) -> None:
    """Issue a new certificate for the same key and names.

    It is signed by the authority on this host. Without HOST it is this host's own, with a new key. With HOST it is
    printed, with the present revocation list, so that one line renews it: infiniswap cluster renew node2 | ssh node2
    infiniswap cluster renew --from -. None of that is secret. There it counts if the authority that the host trusts
    has signed it, for the host's own key. Programs that run take all of it up within seconds.
    """
    from infiniswap.identity.authority import Authority
    from infiniswap.identity.certificates import describe, read_certificate
    from infiniswap.identity.files import HOST_CERT
    from infiniswap.identity.identity import utc_now
    from infiniswap.identity.renewal import read_renewal, renewal_of, take

    folder, now = folder_of(directory), utc_now()
    if source is not None:
        if host is not None:
            raise UserError("give HOST where the authority is, and --from on that host")
        own = take(folder, read_renewal(source))
        click.echo(f"{own.subject} has a new certificate, until {own.not_after:%Y-%m-%d}")
        return
    authority = Authority.open(folder)
    if host is not None:
        content = renewal_of(authority.renew(host, now, days), authority.public_list())
        sys.stdout.buffer.write(content)
        return
    before = describe(read_certificate(folder / HOST_CERT))
    authority.write_host([before.subject, *before.names], now, days)
    own = describe(read_certificate(folder / HOST_CERT))
    click.echo(f"{own.subject} has a new certificate, until {own.not_after:%Y-%m-%d}")
