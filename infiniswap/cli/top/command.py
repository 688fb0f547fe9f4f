"""infiniswap top: what devices do, live, or line by line for a pipe and for programs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.top.rates import DeviceRates
from infiniswap.cli.top.sampler import Sampler
from infiniswap.shared.device_client import runtime_dir_or_default
from infiniswap.shared.errors import ExitCode

CELLS = 4096  # of the heat picture: for a terminal of 200 × 50 with room for the rest
PIPE_WIDTH = 130


@click.command("top")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time over which rates are counted.",
)
@click.option("--count", "count", type=click.IntRange(min=1), metavar="N", help="End after so many intervals.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a device and interval, for programs.")
@runtime_dir_option
def command(names: Sequence[str], interval_s: float, count: int | None, as_json: bool, runtime_dir: Path | None) -> int:
    """Show what devices do, live: rates, latencies, peers, slabs.

    Without NAME all devices of this host. Where the output is no terminal (or TERM=dumb), one block of plain text an
    interval. Keys: ? lists them.
    """
    sampler = Sampler(names, runtime_dir_or_default(runtime_dir), 1 if as_json else CELLS)
    rows = sampler.first()
    if as_json:
        _in_lines(sampler, interval_s, count, _as_json)
        return ExitCode.OK
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal or console.is_dumb_terminal:
        _in_lines(sampler, interval_s, count, _as_text)
        return ExitCode.OK
    return _live(sampler, rows, console, interval_s, count)


def _as_json(rows: Sequence[DeviceRates]) -> None:
    at = datetime.now().astimezone().isoformat(timespec="milliseconds")
    for row in rows:
        values: dict[str, Any] = asdict(row)
        del values["heat"]  # a picture
        values["findings"] = [{**asdict(finding), "severity": finding.severity.word} for finding in row.findings]
        click.echo(json.dumps({"at": at, **values}))


def _as_text(rows: Sequence[DeviceRates]) -> None:
    from infiniswap.cli.top.screen import plain

    click.echo(plain(rows, time.strftime("%H:%M:%S"), PIPE_WIDTH))


def _in_lines(
    sampler: Sampler, interval_s: float, count: int | None, show: Callable[[Sequence[DeviceRates]], None]
) -> None:
    shown, due_s = 0, time.monotonic()
    while count is None or shown < count:
        # What a slow look took is not made up for by hurry.
        due_s = max(due_s + interval_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))
        show(sampler.look())
        shown += 1


class _Looking:
    """Looks in a thread of its own, so that keys are answered while a device is not."""

    def __init__(
        self, sampler: Sampler, rows: Sequence[DeviceRates], changed: Callable[[], None], interval_s: float
    ) -> None:
        """rows: of the first look, which has no rates yet."""
        self.interval_s = interval_s
        self.paused = False
        self.rows = rows
        self.clock = time.strftime("%H:%M:%S")
        self.looks = 0
        self.failure: Exception | None = None
        self._sampler, self._changed = sampler, changed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="looking", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # not joined: it may be waiting for a device that is silent

    def _run(self) -> None:
        try:
            while not self._over.wait(self.interval_s):
                if not self.paused:
                    self.rows, self.clock = self._sampler.look(), time.strftime("%H:%M:%S")
                    self.looks += 1
                    self._tell()
        except Exception as error:  # noqa: BLE001 - it is raised where the terminal is given back
            self.failure = error
            self._tell()

    def _tell(self) -> None:
        if not self._over.is_set():
            self._changed()


def _live(sampler: Sampler, rows: Sequence[DeviceRates], console: Any, interval_s: float, count: int | None) -> int:
    from infiniswap.cli.top.screen import View, paint, press
    from infiniswap.cli.top.terminal import SignalledError, Terminal

    terminal = Terminal(console)
    view = View(interval_s=interval_s)
    try:
        with terminal.shown(), _Looking(sampler, rows, terminal.wake, interval_s) as looking:
            while count is None or looking.looks < count:
                if looking.failure is not None:
                    raise looking.failure
                terminal.draw(paint(looking.rows, view, *terminal.size, looking.clock))
                for key in terminal.wait(60.0):
                    if key == "quit":
                        return ExitCode.OK
                    view = press(view, key, looking.rows)
                looking.paused, looking.interval_s = view.paused, view.interval_s
    except SignalledError as error:
        return 128 + error.number
    return ExitCode.OK
