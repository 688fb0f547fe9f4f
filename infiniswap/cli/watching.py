"""--watch: the same text again and again, on a full screen, or block by block in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from infiniswap.cli.table import Column, Output, Row, choose, show, shown_lines
from infiniswap.shared.errors import ExitCode, UserError

INTERVAL_MIN_S, INTERVAL_MAX_S = 0.1, 3600.0
Command = TypeVar("Command", bound=Callable[..., Any])
Draw = Callable[[int], str]
"""The text, for so many lines as there are; in a pipe as many as it likes (0)."""


def watch_options(command: Command) -> Command:
    """Add -w/--watch and --interval, handed on as watching and interval_s."""
    options = (
        click.option("-w", "--watch", "watching", is_flag=True, help="Show it again and again until q or Ctrl-C."),
        click.option(
            "--interval",
            "interval_s",
            type=click.FloatRange(min=INTERVAL_MIN_S, max=INTERVAL_MAX_S),
            default=1.0,
            show_default=True,
            metavar="SECONDS",
            help="Time between two pictures of --watch.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def refuse_json(as_json: bool, command: str) -> None:
    """UserError where --watch stands beside --json; command: what to call instead."""
    if as_json:
        raise UserError(f"--watch and --json do not go together; call {command} with --json again instead")


def show_or_watch(
    look: Callable[[], Sequence[Row]],
    columns: Sequence[Column],
    output: Output,
    watching: bool,
    interval_s: float,
    empty: str,
) -> int | None:
    """A table of what look returns, once or again and again. empty: what is said where there are no rows."""
    if not watching:
        show(look(), columns, output, empty=empty)
        return None
    refuse_json(output.as_json, "the command")
    choose(columns, output.columns)

    def draw(_height: int) -> str:
        rows = look()
        clock = time.strftime("%H:%M:%S")
        return "\n".join([clock, *(shown_lines(rows, columns, output) if rows else [empty])])

    return watch(draw, interval_s)


def watch(draw: Draw, interval_s: float) -> int:
    """Show draw's text every interval_s until q or a signal; the exit code. What draw raises ends it."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        while True:
            click.echo(draw(0) + "\n")
            time.sleep(interval_s)
    from infiniswap.cli.top.terminal import SignalledError, Terminal

    terminal = Terminal(console)
    try:
        with terminal.shown():
            return _on_screen(terminal, draw, interval_s)
    except SignalledError as error:
        return 128 + error.number


def _on_screen(terminal: Any, draw: Draw, interval_s: float) -> int:
    from rich.text import Text

    due_s, lines = time.monotonic(), [""]
    while True:
        _, height = terminal.size
        if time.monotonic() >= due_s:
            lines, due_s = draw(height).split("\n"), time.monotonic() + interval_s
        terminal.draw([Text(line, no_wrap=True, overflow="ellipsis") for line in lines[:height]])
        if "quit" in terminal.wait(max(0.0, due_s - time.monotonic())):
            return ExitCode.OK
