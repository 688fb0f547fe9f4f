"""infiniswap log-level: what a device or a daemon logs, seen and changed while it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.donor_address import without_scheme
from infiniswap.cli.donor_client import connect, tls_option
from infiniswap.shared.address import parse_host_port
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.donor_client import DonorClient

PATH = "/v1/log-level"


def client_of(name: str, runtime_dir: Path | None) -> DeviceClient | DonorClient:
    """Of the daemon at HOST:PORT, or of the device of that name, which has no colon."""
    if ":" in name:
        return connect(parse_host_port(without_scheme(name), "the address"))
    return DeviceClient(name, runtime_dir_or_default(runtime_dir))


@click.command("log-level")
@click.argument("name", metavar="NAME|HOST:PORT")
@click.argument("levels", nargs=-1, metavar="[[MODULE=]LEVEL]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@tls_option
@runtime_dir_option
def command(name: str, levels: tuple[str, ...], as_json: bool, runtime_dir: Path | None) -> None:
    """Show or set what device NAME, or the daemon at HOST:PORT, logs.

    LEVEL is debug, info, warning or error; with MODULE, as lines of the log name it (device.peers), it is of that
    module and what is below it alone, and default takes it away. It lasts until the end of the process. A daemon takes
    it from its own host only.
    """
    with client_of(name, runtime_dir) as client:
        found: Any = client.post(PATH, {"set": list(levels)}) if levels else client.get(PATH)
    if as_json:
        click.echo(json.dumps(found["levels"], indent=2))
        return
    for module, level in found["levels"].items():
        click.echo(f"{module}={level}" if module else level)
