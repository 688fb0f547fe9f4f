"""infiniswap cluster join: this host becomes one of a cluster that has invited it."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from infiniswap.cli.cluster import directory_option, folder_of
from infiniswap.cli.cluster_init import own_addresses
from infiniswap.cli.common_options import on_interrupt
from infiniswap.shared.address import parse_host_port


@click.command("join")
@click.argument("address", metavar="ADDRESS[:PORT]")
@click.argument("code", nargs=-1, metavar="[CODE]")
@click.option("--name", metavar="HOST", help="What this host is called [default: its host name].")
@click.option("--replace", is_flag=True, help="In place of the certificate that this host has.")
@directory_option
def command(address: str, code: tuple[str, ...], name: str | None, replace: bool, directory: Path | None) -> None:
    """Join the cluster whose host at ADDRESS has invited this one.

    The whole line is what 'infiniswap cluster invite' printed there; without CODE it is asked for, so that nobody sees
    it in a list of processes. The key is made here and never leaves this host. Nothing is sent to a server other than
    the one that the code names, and nothing is kept unless all went well.
    """
    from infiniswap.identity.identity import utc_now
    from infiniswap.identity.invitation import JOIN_PORT
    from infiniswap.identity.join_code import JoinCode
    from infiniswap.identity.joining import JoinClient, check_free, lay_out, put, stage, uninterrupted
    from infiniswap.identity.requests import make_request, new_key

    server = parse_host_port(address, "ADDRESS", default_port=JOIN_PORT)
    folder = folder_of(directory)
    check_free(folder, replace=replace)
    invited = JoinCode.parse(" ".join(code) or click.prompt("Code", err=True))
    key = new_key()
    request = make_request([name or socket.gethostname(), *own_addresses()], key)
    with on_interrupt(lambda: "this host has not joined; nothing was written"), stage(folder) as staged:
        with JoinClient(server, invited) as client:
            own = lay_out(staged, key, client.join(request, utc_now()))
            with uninterrupted():
                client.confirm(own.serial)
                put(staged, folder)
    click.echo(
        f"{own.subject} has joined the {own.issuer}, for {', '.join(own.names)}, until {own.not_after:%Y-%m-%d}; "
        f"its files are in {folder}"
    )
