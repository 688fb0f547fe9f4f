"""infiniswap systemd install: units for the memory daemon, devices and swap."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from infiniswap.kernel_shim import commands, units

RELOAD_TIMEOUT_S = 60.0
_SYSTEMD_RUNS = Path("/run/systemd/system")  # sd_booted(3)


@click.command("install")
@click.option(
    "--destination",
    type=click.Path(path_type=Path),
    default=units.DESTINATION,
    show_default=True,
    metavar="DIR",
    help="Where to write the units.",
)
def command(destination: Path) -> None:
    """Write the systemd units for this installation.

    They are infiniswapd.service, infiniswap-device@.service and infiniswap-swap@.service.
    """
    bin_dir = Path(sys.argv[0]).absolute().parent
    if not (bin_dir / "infiniswap").is_file():
        bin_dir = Path(sys.executable).parent
    docs = Path(__file__).resolve().parents[2] / "docs/vm.md"
    for path in units.install(destination, bin_dir, docs):
        click.echo(path)
    if destination == units.DESTINATION and _SYSTEMD_RUNS.is_dir():
        done = commands.run(["systemctl", "daemon-reload"], RELOAD_TIMEOUT_S)
        if done.code != 0:
            click.echo(f"infiniswap: systemctl daemon-reload failed: {done.reason}", err=True)
