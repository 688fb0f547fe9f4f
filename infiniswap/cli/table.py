"""Tables in the manner of util-linux: plain columns that people and scripts read alike, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from infiniswap.cli import terminal
from infiniswap.shared.errors import UserError, one_line
from infiniswap.shared.output import say
from infiniswap.shared.sizes import format_size
from infiniswap.shared.suggest import did_you_mean

Row = Mapping[str, Any]
Format = Callable[[Any], str]


def as_text(value: Any) -> str:
    """What stands in a cell; nothing known is a dash, as a blank would shift the columns that scripts split at.

    Names come from elsewhere, too: line ends and control characters are shown as escapes.
    """
    if value is None or value == "":
        return "-"
    return one_line(str(value))


def as_decimal(value: Any) -> str:
    """One digit behind the point."""
    return "-" if value is None else f"{float(value):.1f}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: heading (upper case, also its name for -o), key in the row, what it says."""

    heading: str
    key: str
    help: str
    right: bool = False
    size: bool = False  # bytes: shown with a unit unless -b is given
    default: bool = True
    format: Format = as_text
    spare: int = 0  # on a terminal that is too narrow the highest go first; 0: never

    def cell(self, row: Row, in_bytes: bool) -> str:
        """Text of this column in row."""
        value = row.get(self.key)
        if self.size and not in_bytes and value is not None:
            return format_size(int(value))
        return self.format(value)


@dataclass(frozen=True, slots=True)
class Output:
    """How the caller wants it: what -o, -n, -b and --json said."""

    columns: str | None = None
    no_headings: bool = False
    in_bytes: bool = False
    as_json: bool = False


def choose(columns: Sequence[Column], wanted: str | None) -> list[Column]:
    """Columns named in wanted (comma-separated, any case; a leading + adds to the default ones).

    Raises UserError that lists the names for one that does not exist.
    """
    default = [column for column in columns if column.default]
    if wanted is None:
        return default
    by_name = {column.heading: column for column in columns}
    chosen = default if wanted.startswith("+") else []
    for name in wanted.removeprefix("+").split(","):
        column = by_name.get(name.strip().upper())
        if column is None:
            hint = did_you_mean(name.strip(), by_name)
            raise UserError(f"no column '{name.strip()}'{hint or ';'} there are {', '.join(by_name)}")
        if column not in chosen:
            chosen = [*chosen, column]
    return chosen


def lines(
    rows: Iterable[Row], columns: Sequence[Column], *, no_headings: bool = False, in_bytes: bool = False
) -> list[str]:
    """The table, one string a line, cells two spaces apart and numbers to the right."""
    cells = [[column.cell(row, in_bytes) for column in columns] for row in rows]
    if not no_headings:
        cells.insert(0, [column.heading for column in columns])
    widths = [max((len(line[i]) for line in cells), default=0) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in cells
    ]


def fit(rows: Sequence[Row], columns: Sequence[Column], output: Output, width: int) -> list[Column]:
    """The columns without those that may go, as many as must for the table to be no wider than width."""
    kept = list(columns)
    for column in sorted((each for each in columns if each.spare), key=lambda each: -each.spare):
        text = lines(rows, kept, no_headings=output.no_headings, in_bytes=output.in_bytes)
        if max(map(len, text), default=0) <= width:
            break
        kept.remove(column)
    return kept


def show(rows: Sequence[Row], columns: Sequence[Column], output: Output, *, empty: str = "") -> None:
    """Print rows: as JSON every key of each row (with -o the chosen ones, sizes in bytes), else as a table.

    empty: what is said, on stderr, where there are no rows. On a terminal the table is no wider than that: columns
    that may go are left out, unless -o says which are wanted, and lines are cut.
    """
    chosen = choose(columns, output.columns)
    if output.as_json:
        keys = [column.key for column in chosen] if output.columns is not None else None
        shown = rows if keys is None else [{key: row.get(key) for key in keys} for row in rows]
        click.echo(json.dumps(list(shown), indent=2))
        return
    if not rows:
        if empty:
            say(empty)
        return
    click.echo("\n".join(shown_lines(rows, columns, output)))


def shown_lines(rows: Sequence[Row], columns: Sequence[Column], output: Output) -> list[str]:
    """The table as show() prints it."""
    chosen = choose(columns, output.columns)
    width = terminal.width()
    if width is not None and output.columns is None:
        chosen = fit(rows, chosen, output, width)
    text = lines(rows, chosen, no_headings=output.no_headings, in_bytes=output.in_bytes)
    return text if width is None else [line if len(line) <= width else line[: width - 1] + "…" for line in text]


def columns_help(columns: Sequence[Column]) -> str:
    """Paragraph for --help that lists the columns (click keeps its line breaks)."""
    width = max(len(column.heading) for column in columns)
    listed = [f"  {column.heading.ljust(width)}  {column.help}" for column in columns]
    return "\b\nColumns for -o:\n" + "\n".join(listed)
