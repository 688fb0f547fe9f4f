"""Tables look as util-linux's do, so that cut, awk and people can read them, and JSON carries everything in bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infiniswap.cli.table import Column, Output, as_decimal, choose, lines, show
from infiniswap.shared.errors import UserError

COLUMNS = (
    Column("NAME", "name", "a name"),
    Column("SIZE", "size_bytes", "a size", right=True, size=True),
    Column("RATE", "rate", "a rate", right=True, format=as_decimal),
    Column("MORE", "more", "not shown by default", default=False),
)
ROWS: list[dict[str, Any]] = [
    {"name": "short", "size_bytes": 1 << 30, "rate": 1.25, "more": "x", "unlisted": 1},
    {"name": "muchlonger", "size_bytes": None, "rate": None, "more": "", "unlisted": 2},
]


def test_columns_line_up() -> None:
    """Text stands left, numbers right, under their headings, without blanks at the end of a line."""
    assert lines(ROWS, choose(COLUMNS, None)) == [
        "NAME        SIZE  RATE",
        "short       1GiB   1.2",
        "muchlonger     -     -",
    ]


def test_unknown_is_a_dash() -> None:
    """A value that is not known, or empty, is a dash: every line has as many words as columns."""
    shown = lines(ROWS, choose(COLUMNS, "more,rate,size,name"), no_headings=True)
    assert [len(line.split()) for line in shown] == [4, 4]
    assert shown[1].split() == ["-", "-", "-", "muchlonger"]


def test_bytes() -> None:
    """-b shows sizes as plain bytes."""
    assert lines(ROWS[:1], choose(COLUMNS, "SIZE"), in_bytes=True, no_headings=True) == ["1073741824"]


def test_choose_in_any_case_and_order() -> None:
    """-o takes names in any case, in the order asked for; + adds to the default ones; a repetition shows once."""
    assert [c.heading for c in choose(COLUMNS, "more,Name")] == ["MORE", "NAME"]
    assert [c.heading for c in choose(COLUMNS, "+more,name")] == ["NAME", "SIZE", "RATE", "MORE"]
    assert [c.heading for c in choose(COLUMNS, "name,name")] == ["NAME"]


@pytest.mark.parametrize("wanted", ["nope", "", "name,", "+"])
def test_unknown_column_is_named(wanted: str) -> None:
    """A column that does not exist is refused, and the message lists those that do."""
    with pytest.raises(UserError, match="there are NAME, SIZE, RATE, MORE"):
        choose(COLUMNS, wanted)


def test_json_has_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints each row unchanged, also what no column shows; with -o only the keys asked for."""
    show(ROWS, COLUMNS, Output(as_json=True))
    assert json.loads(capsys.readouterr().out) == ROWS
    show(ROWS, COLUMNS, Output(as_json=True, columns="size"))
    assert json.loads(capsys.readouterr().out) == [{"size_bytes": 1 << 30}, {"size_bytes": None}]


def test_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    """No rows: nothing at all as a table, as lsblk does it, and an empty list as JSON."""
    show([], COLUMNS, Output())
    assert capsys.readouterr().out == ""
    show([], COLUMNS, Output(as_json=True))
    assert json.loads(capsys.readouterr().out) == []
