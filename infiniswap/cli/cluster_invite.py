"""infiniswap cluster invite: another host joins with one line that is typed there."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from pathlib import Path

import click

from infiniswap.cli.cluster import days_option, directory_option, folder_of
from infiniswap.cli.cluster_init import make_cluster, own_addresses
from infiniswap.cli.common_options import on_interrupt
from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.durations import format_duration, parse_duration
from infiniswap.shared.errors import UserError
from infiniswap.shared.output import say

_NOWHERE = "192.0.2.1"  # RFC 5737: the route to it is the default one; nothing is sent there


def address_towards(host: str) -> str:
    """The address of this host that the other one will see; UserError where that cannot be told."""
    for other in (host, _NOWHERE):
        try:
            found = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
                probe.connect(found[4])  # of a datagram socket: this chooses a route, and sends nothing
                return str(probe.getsockname()[0])
        except (OSError, UnicodeError):
            continue
    if addresses := own_addresses():
        return addresses[0]
    raise UserError("this host has no address that another one could reach; say --listen ADDRESS")


def listen_address(text: str | None, host: str) -> HostPort:
    """What --listen means."""
    from infiniswap.identity.invitation import JOIN_PORT

    if text is None:
        return HostPort(address_towards(host), JOIN_PORT)
    return parse_host_port(text, "--listen", port_min=0, default_port=JOIN_PORT)


def valid_seconds(text: str) -> float:
    """What --valid means. UserError."""
    from infiniswap.identity.invitation import VALID_S_MAX

    seconds = parse_duration(text)
    if not 1 <= seconds <= VALID_S_MAX:
        raise UserError(f"--valid {text} must be from 1s to {format_duration(VALID_S_MAX)}")
    return seconds


@click.command("invite")
@click.argument("host", metavar="HOST")
@click.argument("more", nargs=-1, metavar="[ADDRESS]...")
@click.option(
    "--listen",
    metavar="ADDRESS[:PORT]",
    help="Where HOST reaches this host meanwhile [default: the address on the way to it, port 7403].",
)
@click.option("--valid", default="10m", metavar="DURATION", help="How long the code is good [default: 10m].")
@days_option
@directory_option
def command(
    host: str, more: tuple[str, ...], listen: str | None, valid: str, days: int, directory: Path | None
) -> None:
    """Let HOST into the cluster: print what is to be typed there.

    Waits until that was done. Makes the authority and this host's certificate first where there are none, as init does.
    The line holds a code that is good once, for a while. HOST makes its key itself, and gets a certificate for the name
    HOST, for the address that it comes from, and for each ADDRESS (or further name) that is given here; for no other.
    Exit code 0: it has joined. 1: not in time. 5: too many wrong codes.
    """
    from infiniswap.identity.authority import Authority
    from infiniswap.identity.files import CA_KEY
    from infiniswap.identity.identity import utc_now
    from infiniswap.identity.invitation import JOIN_PORT, Invitation
    from infiniswap.identity.inviting import Inviting
    from infiniswap.identity.requests import check_host
    from infiniswap.nbd.listener import open_tcp_socket

    invitation = Invitation(check_host(host), tuple(map(check_host, more)), days)
    valid_s, address, folder = valid_seconds(valid), listen_address(listen, host), folder_of(directory)
    with open_tcp_socket(address.host, address.port) as listening:
        if not (folder / CA_KEY).exists():
            say(f"infiniswap: {make_cluster(folder, socket.gethostname(), (), days)}")
        inviting = Inviting(Authority.open(folder), invitation, utc_now)
        port = listening.getsockname()[1]
        shown = HostPort(reachable(address.host, host), port)
        there = str(shown) if port != JOIN_PORT or ":" in shown.host else shown.host
        until = (utc_now() + timedelta(seconds=valid_s)).astimezone()

        async def wait() -> str:
            # Said in here: a loop that is interrupted while it is made leaves a traceback.
            click.echo(f"infiniswap cluster join {there} {inviting.code.text}")
            say(f"infiniswap: type that line on {host}, as root, until {until:%H:%M}; waiting for it")
            return await inviting.wait(listening, valid_s)

        with on_interrupt(lambda: "nobody has joined; the code is void"):
            click.echo(asyncio.run(wait()))


def reachable(listening: str, host: str) -> str:
    """The address to be typed, where listening may stand for all."""
    return address_towards(host) if listening in ("0.0.0.0", "::") else listening
