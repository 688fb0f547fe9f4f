"""infiniswap device rm: what is kept of a device goes, its backup only when asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import runtime_dir_or_default
from infiniswap.shared.shard_names import whole_of


@click.command("rm")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also where pages are in its peers' memory alone: they are lost.")
@click.option(
    "--backup/--keep-backup", "backup_too", default=None, help="Remove its backup file, too, or not; else it is asked."
)
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="As the device is served with.")
@runtime_dir_option
def command(name: str, force: bool, backup_too: bool | None, state_dir: Path | None, runtime_dir: Path | None) -> None:
    """Remove what is kept of device NAME, which does not run.

    Refused while it runs, and while pages are in its peers' memory alone. Its backup stays unless --backup is given, or
    the question answered with yes; where nobody can be asked it stays.
    """
    check_name(name)
    from infiniswap.device.inventory import folder_of, kept_devices, remove, state_dirs
    from infiniswap.device.shards import refuse_part

    where = runtime_dir_or_default(runtime_dir)
    folders = state_dirs(state_dir, where)
    refuse_part(name, folder_of(name, folders), f"goes with it: 'infiniswap device rm {whole_of(name)}'")
    if backup_too is None:
        known = next((device for device in kept_devices(folders) if device.name == name), None)
        asked = known is not None and known.backup_state == "good" and sys.stdin.isatty()
        backup_too = asked and click.confirm(f"Remove its backup {known.backup if known else ''} as well?", err=True)
    for line in remove(name, folders, where, force=force, backup_too=bool(backup_too)):
        click.echo(f"{name}: {line}")
