"""infiniswap cluster init: an authority for a new cluster, and this host's certificate."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

import click
import psutil

from infiniswap.cli.cluster import days_option, directory_option, folder_of


def own_addresses() -> list[str]:
    """Addresses at which others reach this host."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(each.address.partition("%")[0])
                if not (address.is_loopback or address.is_link_local or address.is_unspecified):
                    found.append(str(address))
    return sorted(set(found))


def make_cluster(folder: Path, name: str, more: Sequence[str], days: float) -> str:
    """An authority and the certificate of this host; what was made, as a sentence. UserError: there is one."""
    from infiniswap.identity.authority import Authority
    from infiniswap.identity.identity import utc_now
    from infiniswap.identity.invitation import LOCAL
    from infiniswap.identity.requests import NAMES_MAX, check_host

    host = check_host(name)
    names = [host, *(more or own_addresses()), *LOCAL][:NAMES_MAX]
    for each in names:
        check_host(each)
    now = utc_now()
    authority = Authority.create(folder, f"infiniswap cluster of {host}", now)
    authority.write_host(names, now, days)
    return f"made an authority and the certificate of {host} in {folder}, for {', '.join(names)}"


@click.command("init")
@click.argument("name", required=False, metavar="[NAME]")
@click.argument("more", nargs=-1, metavar="[ADDRESS]...")
@days_option
@directory_option
def command(name: str | None, more: tuple[str, ...], days: int, directory: Path | None) -> None:
    """Make an authority for a new cluster, and this host's certificate.

    NAME is what this host is called, by default its host name; devices may reach it by that, and by each ADDRESS (or
    further name), by default all addresses that it has. The authority's key, ca.key, never leaves this host: who has
    it can let anybody in.
    """
    click.echo(make_cluster(folder_of(directory), name or socket.gethostname(), more, days))
    click.echo("next: 'infiniswap cluster invite HOST' for each other host")
