"""infiniswap set: an option of a device that serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.errors import UserError
from infiniswap.shared.output import say


def change_line(change: dict[str, Any]) -> str:
    """option: before → after, as files write values."""

    def text(value: object) -> str:
        return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    return f"{change['option']}: {text(change['before'])} -> {text(change['after'])}"


@click.command("set")
@click.argument("name")
@click.argument("option")
@click.argument("value", required=False)
@click.option("--reset", is_flag=True, help="Take back what was set: files and command line count again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runtime_dir_option
def command(name: str, option: str, value: str | None, reset: bool, as_json: bool, runtime_dir: Path | None) -> None:
    """Set an option of device NAME while it serves.

    It is remembered, also for the next start, until a file or a command line says something new of the option, or until
    --reset. 'infiniswap config show NAME -o +LIVE' shows which options can be set.
    """
    if (value is None) is not reset:
        raise UserError("give a value, or --reset")
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        answer = control.post("/v1/config", {"option": option, "value": value})
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    for change in answer["changed"]:
        click.echo(change_line(change))
    if not answer["changed"]:
        say("infiniswap: nothing has changed: that is in force already")
    if not answer["remembered"]:
        say("infiniswap: it is in force, but could not be remembered for the next start; the device's log says why")
