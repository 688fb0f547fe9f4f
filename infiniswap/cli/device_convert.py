"""infiniswap device convert: a backup that is kept another way, with everything that is on it."""

from __future__ import annotations

from pathlib import Path

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.ending import cleared_up
from infiniswap.cli.progress import copying
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.shard_names import is_shard, number_of, shard_name

LAYOUTS = ("raw", "log")  # limits.BACKUP_LAYOUTS, which takes longer to import


@click.command("convert")
@click.argument("name")
@click.option("--to", type=click.Choice(LAYOUTS), required=True, help="How its backup is to be kept.")
@click.option(
    "--backup",
    type=click.Path(path_type=Path),
    metavar="NEWFILE",
    help="Where the new backup is made, also a block device that holds nothing; else in the old one's place.",
)
@click.option("--sparse", is_flag=True, help="Do not allocate the new backup in advance.")
@click.option("--damaged", is_flag=True, help="Also where pages cannot be read: they are lost, and all others taken.")
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="As the device is served with.")
@runtime_dir_option
def command(
    name: str,
    to: str,
    backup: Path | None,
    sparse: bool,
    damaged: bool,
    state_dir: Path | None,
    runtime_dir: Path | None,
) -> None:
    """Keep a stopped device's backup as an image or as a log.

    The new backup is written whole, synced and read back before it counts; there must be room for both. A kill at any
    moment leaves the old one or the new one. With --backup the old one stays as a file, which nothing uses.
    Exit code 1 when pages could not be read: they are lost, and read as errors until they are written.
    """
    check_name(name)
    from infiniswap.device.convert import convert, next_start
    from infiniswap.device.inventory import folder_of, state_dirs
    from infiniswap.device.shards import refuse_shards

    where = runtime_dir_or_default(runtime_dir)
    folder = folder_of(name, state_dirs(state_dir, where))
    each = f"convert each of them ('infiniswap device convert {name}~0 --to {to}' and so on)"
    refuse_shards(name, folder, "converted as one", f"{each}, then start it with --backup-layout {to}")
    mark = shard_name("", number_of(name))
    if is_shard(name) and backup is not None and not backup.name.endswith(mark):
        raise UserError(f"the backup of '{name}' must be called FILE{mark}, and those of the other shards likewise")
    with cleared_up(), copying() as progress:
        done = convert(
            name,
            to,
            folder,
            where,
            backup=None if backup is None else backup.absolute(),
            sparse=sparse,
            damaged=damaged,
            progress=progress,
        )
    stays = "" if done.in_place else f"; {done.old} stays, and is not needed any more"
    click.echo(f"{name}: its backup {done.named} is {to} now{stays}; {next_start(folder / name, done)}")
    if done.lost:
        click.echo(f"{name}: pages could not be read; {done.lost} are lost until they are written", err=True)
        raise click.exceptions.Exit(ExitCode.FAILED)
