"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from infiniswap.cli.param_type import ParamType
from infiniswap.cli.table import Output
from infiniswap.shared.errors import UserError, one_line
from infiniswap.shared.output import say
from infiniswap.shared.sizes import parse_size

Command = TypeVar("Command", bound=Callable[..., Any])


class Size(ParamType[int]):
    """A size in bytes, written 4096, 64KiB, 512MiB or 1.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; click's usage error for what is no size."""
        try:
            return parse_size(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


@contextmanager
def on_interrupt(told: Callable[[], str]) -> Iterator[None]:
    """Around a wait: Ctrl-C says how things stand, and ends the command as it always does."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"infiniswap: {one_line(told())}")
        raise click.Abort from None


def output_options(command: Command) -> Command:
    """Add -o, -n, -b and --json, handed on as one parameter output."""
    options = (
        click.option(
            "-o", "--output", "columns", metavar="COLUMNS", help="Columns to print; +COLUMN adds to the usual ones."
        ),
        click.option("-n", "--noheadings", is_flag=True, help="Do not print headings."),
        click.option("-b", "--bytes", "in_bytes", is_flag=True, help="Print sizes in bytes."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON (sizes in bytes)."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def make_output(columns: str | None, noheadings: bool, in_bytes: bool, as_json: bool) -> Output:
    """The four options of output_options as one value."""
    return Output(columns, noheadings, in_bytes, as_json)


def runtime_dir_option(command: Command) -> Command:
    """Add --runtime-dir (None: the default one, see shared/paths.py)."""
    return click.option(
        "--runtime-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where devices keep their control sockets [default: $INFINISWAP_RUNTIME_DIR or /run/infiniswap].",
    )(command)
