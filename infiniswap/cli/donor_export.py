"""infiniswap donor export: an NBD address by which a tool can look at the pages that a device has at a daemon."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from infiniswap.cli.donor_address import address_argument
from infiniswap.cli.donor_client import connect
from infiniswap.shared.address import HostPort, check_name
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import default_state_dir


@click.command("export")
@address_argument
@click.argument("device", metavar="DEVICE")
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="As the device is served with.")
def command(address: HostPort, device: str, state_dir: Path | None) -> None:
    """Print an NBD address of what DEVICE has at the daemon.

    It is good for one connection, within ten seconds: 'nbdinfo $(infiniswap donor export HOST DEVICE)'. DEVICE is one
    of this host, and this must be run by its user, for it takes the secret of its lease. Slab N lies at N times the
    size of a slab; what is not mapped is an error. Looking is harmless, writing is not.
    """
    from infiniswap.device.lease_book import LeaseBook
    from infiniswap.device.state import Header, StateDirectory

    directory = StateDirectory((state_dir or default_state_dir()) / check_name(device))
    header = directory.read_header()
    if not isinstance(header, Header):
        raise UserError(f"{directory.path} holds no state of a device '{device}'; give --state-dir", ExitCode.NOT_FOUND)
    entries = LeaseBook(directory.leases_path).read(header.device_id)
    found = [entry for entry in entries if entry.peer == address]
    if not found:
        peers = ", ".join(str(entry.peer) for entry in entries) or "nobody"
        raise UserError(f"device '{device}' has no lease at {address}, but at {peers}", ExitCode.NOT_FOUND)
    lease = found[0].lease
    with connect(address) as donor:
        ticket = donor.ticket(lease.lease_id, lease.token)
    click.echo(f"nbd://{HostPort(*ticket.address)}/{quote(ticket.export)}")
