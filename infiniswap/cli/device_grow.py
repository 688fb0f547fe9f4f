"""infiniswap device grow: a larger device, with everything that is on it."""

from __future__ import annotations

from pathlib import Path

import click

from infiniswap.cli.common_options import Size, runtime_dir_option
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import device_names
from infiniswap.shared.sizes import format_size


@click.command("grow")
@click.argument("name")
@click.argument("size", type=Size())
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="As the device is served with.")
@click.option("--sparse", is_flag=True, help="Do not allocate now what the backup file gets.")
@runtime_dir_option
def command(name: str, size: int, state_dir: Path | None, sparse: bool, runtime_dir: Path | None) -> None:
    """Make device NAME, which was stopped, larger: SIZE in all.

    Its backup file grows with it; a block device must have that size already. Nothing on it changes, and a kill at any
    moment leaves the old size or the new one.
    """
    check_name(name)
    where = runtime_dir_or_default(runtime_dir)
    if name in device_names(where) and _runs(name, where):
        raise UserError(
            f"'{name}' runs, and took its memory for the size that it has: stop it first, or add a second device "
            "beside it (for swap by priority)",
            ExitCode.IN_USE,
        )
    from infiniswap.device.grow import grow
    from infiniswap.device.inventory import folder_of, state_dirs
    from infiniswap.device.shards import refuse_part, refuse_shards

    folder = folder_of(name, state_dirs(state_dir, where))
    way_out = "add a second device beside it (for swap by priority), or make a new one"
    refuse_part(name, folder, f"cannot be grown: {way_out}")
    refuse_shards(name, folder, "grown", way_out)
    growth = grow(name, size, folder, where, sparse=sparse)
    where_said = next_start(folder / name, size)
    click.echo(
        f"{name}: grew from {format_size(growth.from_bytes)} to {format_size(growth.to_bytes)}, with its backup "
        f"{growth.backup}; {where_said}"
    )


def next_start(folder: Path, size: int) -> str:
    """How the device is started with that size now."""
    from infiniswap.device import remembered

    known = remembered.read(folder)
    if known is not None and "size" in known.given:
        return "its name alone starts it with that size"
    if known is not None and known.file is not None:
        return f"write size = {size} into {known.file} before it is started"
    return f"start it with --size {size}"


def _runs(name: str, runtime_dir: Path) -> bool:
    from infiniswap.shared.device_client import DeviceClient

    try:
        with DeviceClient(name, runtime_dir) as control:
            control.get("/v1/status")
    except UserError as error:
        return error.code != ExitCode.NOT_FOUND
    return True
