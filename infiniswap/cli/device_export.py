"""infiniswap device export: a raw image of a device, whichever way its backup is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.ending import cleared_up
from infiniswap.cli.progress import copying
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.output import STDOUT_FD, was_closed


@click.command("export")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="In place of a file that is there.")
@click.option("--damaged", is_flag=True, help="Also where pages cannot be read: they are zeroes, and all others taken.")
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="As the device is served with.")
@runtime_dir_option
def command(
    name: str, file: Path, force: bool, damaged: bool, state_dir: Path | None, runtime_dir: Path | None
) -> None:
    """Write a raw image of a stopped device to a file.

    FILE may be - for standard output. Else it is sparse, and gets its name when all is written, synced and read back.
    Exit code 1 when pages of the device are lost: they are zeroes in it, and FILE.lost says where.
    """
    check_name(name)
    dash = str(file) == "-"
    if dash and sys.stdout.isatty():
        raise UserError("the image would go to this terminal; redirect the output, or name a file", ExitCode.REFUSED)
    if dash and was_closed(STDOUT_FD):
        raise UserError("the image would go nowhere: standard output is closed; redirect it", ExitCode.FAILED)
    from infiniswap.device.export import export
    from infiniswap.device.export_lost import write_list
    from infiniswap.device.inventory import folder_of, state_dirs
    from infiniswap.device.shards import refuse_shards

    where = runtime_dir_or_default(runtime_dir)
    folder = folder_of(name, state_dirs(state_dir, where))
    way_out = f"export each of them ('infiniswap device export {name}~0 FILE' and so on), or attach it and copy that"
    refuse_shards(name, folder, "exported as one image", way_out)
    to = sys.stdout.fileno() if dash else file.absolute()
    with cleared_up(), copying() as show:
        lost = export(name, folder, where, to, force=force, damaged=damaged, show=show)
    if not dash:
        click.echo(f"{name}: its content is in {file}")
    if len(lost):
        listed = "" if dash else f"; {write_list(file, lost)} says where"
        click.echo(f"{name}: {len(lost)} pages are lost, and are zeroes there{listed}", err=True)
        raise click.exceptions.Exit(ExitCode.FAILED)
