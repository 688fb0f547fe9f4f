"""infiniswap device trace: where a device's slow requests spent their time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.param_type import ParamType
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.durations import parse_microseconds
from infiniswap.shared.errors import UserError

POLL_S = 0.5
LAST_DEFAULT = 20
LAST_MAX = 4096
HEADING = (
    f"{'TIME':<15} {'WHAT':<12} {'PAGE':>10} {'LENGTH':>7}  {'LOCK':>8} {'BEGUN':>8} {'ANSWER':>8} {'DONE':>8}  FROM"
)


class Microseconds(ParamType[int]):
    """A short duration: 200us, 5ms, 1.5s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Microseconds; click's usage error for what is none."""
        try:
            return parse_microseconds(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)


def took(us: float | None) -> str:
    """A time for the table."""
    if us is None:
        return "-"
    return f"{us:.0f}us" if us < 10_000 else f"{us / 1000:.1f}ms" if us < 10_000_000 else f"{us / 1e6:.1f}s"


def reached(found: Mapping[str, Any], before: object) -> object:
    """What to ask for as `after` next. A service from before `next`, which an upgrade leaves running, has numbers."""
    if "next" in found:
        return found["next"]
    return max((request["number"] for request in found["requests"]), default=before)


def line(request: Mapping[str, Any]) -> str:
    """One request for people; times are since its arrival."""
    at = datetime.fromtimestamp(request["time_s"]).astimezone().strftime("%H:%M:%S.%f")
    steps = [took(request[f"{step}_us"]) for step in ("locked", "begun", "answered", "done")]
    where = " ".join(str(word) for word in (request["source"], request["peer"]) if word) or "-"
    failed = f" error={request['error']}" if request["error"] else ""
    failed += f" shard={request['shard']}" if request.get("shard") else ""
    columns = " ".join(f"{step:>8}" for step in steps)
    return f"{at:<15} {request['command']:<12} {request['page']:>10} {request['length']:>7}  {columns}  {where}{failed}"


def show(requests: list[dict[str, Any]], slow_us: int, *, as_json: bool) -> None:
    """Print those that took slow_us or longer."""
    for request in requests:
        if request["done_us"] >= slow_us:
            click.echo(json.dumps(request) if as_json else line(request))


@click.command("trace")
@click.argument("name")
@click.option("--slow", "slow_us", type=Microseconds(), default=0, metavar="TIME", help="Only those that took as long.")
@click.option(
    "--last", type=click.IntRange(1, LAST_MAX), default=LAST_DEFAULT, show_default=True, help="So many at most."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones until Ctrl-C.")
@click.option(
    "--remember",
    "least_us",
    type=Microseconds(),
    metavar="TIME",
    help="From now on remember what takes as long; 0: all.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, times in microseconds.")
@runtime_dir_option
def command(
    name: str, slow_us: int, last: int, follow: bool, least_us: int | None, as_json: bool, runtime_dir: Path | None
) -> None:
    """Show where device NAME's last slow requests spent their time.

    A device remembers the last 4096 that took 1ms or longer (--trace-slower-than of 'device serve'). Times are since a
    request's arrival: LOCK, its pages were its own; BEGUN, its first transfer; ANSWER, that transfer's answer; DONE. A
    dash is a step that it did not need. FROM is where its data came from or went to, and by which peer first, and which
    shard had it, where there are several; PAGE counts through all of them.
    """
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        if least_us is not None:
            control.post("/v1/trace", {"slower_than_us": least_us})
        found: dict[str, Any] = control.get("/v1/trace")
        if not as_json:
            click.echo(HEADING)
        slow = [request for request in found["requests"] if request["done_us"] >= slow_us]
        show(slow[-last:], slow_us, as_json=as_json)
        if not slow and not follow:
            click.echo(f"none: {name} remembers what takes {took(found['slower_than_us'])} or longer", err=True)
        after: object = 0
        while follow:
            time.sleep(POLL_S)
            after = reached(found, after)
            found = control.get(f"/v1/trace?after={after}")
            show(found["requests"], slow_us, as_json=as_json)
