"""infiniswap reload: a device that serves reads its files again."""

from __future__ import annotations

import json
from pathlib import Path

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.set import change_line
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.output import say


@click.command("reload")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runtime_dir_option
def command(name: str, as_json: bool, runtime_dir: Path | None) -> None:
    """Have device NAME read its configuration files again.

    Prints what has changed, and what needs a restart. With a mistake in a file nothing changes, and the exit code is 2.
    SIGHUP does the same, and the device's log tells.
    """
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        answer = control.post("/v1/reload")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    lines = [change_line(change) for change in answer["changed"]]
    lines += [f"peer {address} is added" for address in answer["added"]]
    lines += [f"peer {address} is removed: its slabs leave" for address in answer["removed"]]
    lines += [f"{change_line(change)}, needs a restart" for change in answer["restart"]]
    lines += answer["notes"]
    for line in lines:
        click.echo(line)
    if not lines:
        say("infiniswap: nothing has changed")
