"""infiniswap config show: each option of a device with the value in force and where it was stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options, runtime_dir_option
from infiniswap.cli.table import Column, columns_help, show
from infiniswap.shared.device_client import fetch


def _value(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


COLUMNS = (
    Column("OPTION", "option", "its name in a file; attach.KEY are those of 'device attach'"),
    Column("VALUE", "value", "what is in force; a dash where there is none", format=_value),
    Column("FROM", "where", "default, FILE:LINE, command line, or set at run time"),
    Column("LIVE", "live", "whether 'infiniswap set' can change it", default=False, format=_value),
)


@click.command("show", epilog=columns_help(COLUMNS))
@click.argument("name")
@click.option("--changed", is_flag=True, help="Leave out what is at its default.")
@output_options
@runtime_dir_option
def command(name: str, changed: bool, runtime_dir: Path | None, **output: Any) -> None:
    """Show the options of device NAME, and where each was stated."""
    rows = fetch(name, "/v1/config", runtime_dir)["options"]
    show([row for row in rows if not changed or row["source"] != "default"], COLUMNS, make_output(**output))
