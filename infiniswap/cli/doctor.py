"""infiniswap doctor: what endangers swap on this host, and what mends it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.kernel_shim.doctor import examine, worst
from infiniswap.kernel_shim.doctor_facts import device_facts, host_facts
from infiniswap.kernel_shim.doctor_model import Check, DeviceFacts, Level
from infiniswap.shared.device_client import fetch, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import device_names

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}


def gather(name: str | None, runtime_dir: Path) -> tuple[DeviceFacts, ...]:
    """Facts of the device name, which must run, or of all that do."""
    if name is not None:
        return (_facts(name, runtime_dir),)
    found: list[DeviceFacts] = []
    for other in device_names(runtime_dir):
        try:
            found.append(_facts(other, runtime_dir))
        except UserError:  # a socket left behind: `device list` tells of it
            continue
    return tuple(found)


def _facts(name: str, runtime_dir: Path) -> DeviceFacts:
    return device_facts(fetch(name, "/v1/status", runtime_dir), fetch(name, "/v1/peers", runtime_dir))


def lines(check: Check) -> list[str]:
    """The check as text; why and how only where something is wrong."""
    colour = sys.stdout.isatty()
    level = f"{check.level.value:<8}"
    head = click.style(level, fg=_COLOURS[check.level]) if colour else level
    where = f"{check.device}: " if check.device else ""
    text = [f"{head} {where}{check.name}: {check.found}"]
    if check.level is not Level.OK:
        text.append(f"{'':8} {check.why}")
        if check.command:
            text.append(f"{'':8} mend it: {check.command}")
    return text


@click.command("doctor")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runtime_dir_option
def command(name: str | None, as_json: bool, runtime_dir: Path | None) -> int:
    """Check this host, and device NAME or all that run, for what endangers swap. Exit code 1 if anything does."""
    checks = examine(host_facts(), gather(name, runtime_dir_or_default(runtime_dir)))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        click.echo("\n".join(line for check in checks for line in lines(check)))
    return ExitCode.FAILED if worst(checks) is Level.FAILURE else ExitCode.OK
