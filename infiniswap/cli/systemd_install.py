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

    They are infiniswapd.service, infiniswap-device@.service and infiniswap-swap@.service, with sysusers.d (the memory
    daemon's user, which is made) and tmpfiles.d beside them.
    """
    bin_dir = Path(sys.argv[0]).absolute().parent
    if not (bin_dir / "infiniswap").is_file():
        bin_dir = Path(sys.executable).parent
    docs = Path(__file__).resolve().parents[2] / "docs/vm.md"
    if not docs.exists():
        docs = Path("none")
    for path in units.install(destination, bin_dir, docs):
        click.echo(path)
    if (hidden := units.hidden_from_daemon(bin_dir)) is not None:
        click.echo(f"infiniswap: {hidden}", err=True)
    if destination != units.DESTINATION:
        return
    settings = [str(units.files(destination)[name]) for name in units.SETTINGS]
    orders = [["systemd-sysusers", settings[0]], ["systemd-tmpfiles", "--create", settings[1]]]
    if _SYSTEMD_RUNS.is_dir():
        orders.append(["systemctl", "daemon-reload"])
    for order in orders:
        done = commands.run(order, RELOAD_TIMEOUT_S)
        if done.code != 0:
            click.echo(f"infiniswap: {' '.join(order)} failed: {done.reason}", err=True)
