"""infiniswap doctor: what endangers swap on this host, and what mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from infiniswap.cli import terminal
from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.kernel_shim.doctor import examine, worst
from infiniswap.kernel_shim.doctor_facts import device_facts, host_facts
from infiniswap.kernel_shim.doctor_model import Check, DeviceFacts, Level
from infiniswap.shared.device_client import fetch, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import device_names

_WHY_SILENT = "who cannot be asked cannot be judged; pages do not pass through what answers here, and may still do"
_INDENT = 9
_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}


def gather(name: str | None, runtime_dir: Path) -> tuple[tuple[DeviceFacts, ...], list[Check]]:
    """Facts of the device name, which must run, or of all that do; and what is to be said of those that cannot."""
    if name is not None:
        return (_facts(name, runtime_dir),), []
    found: list[DeviceFacts] = []
    silent: list[Check] = []
    for other in device_names(runtime_dir):
        try:
            found.append(_facts(other, runtime_dir))
        except UserError as error:
            if error.code != ExitCode.NOT_FOUND:  # else a socket left behind: `device list` tells of it
                silent.append(Check("service", Level.FAILURE, str(error), _WHY_SILENT, None, other))
    return tuple(found), silent


def _facts(name: str, runtime_dir: Path) -> DeviceFacts:
    return device_facts(fetch(name, "/v1/status", runtime_dir), fetch(name, "/v1/peers", runtime_dir))


def lines(check: Check) -> list[str]:
    """The check as text; why and how only where something is wrong."""
    level = f"{check.level.value:<{_INDENT - 1}}"
    where = f"{check.device}: " if check.device else ""
    first = terminal.wrapped(f"{level} {where}{check.name}: {check.found}", _INDENT)
    if terminal.colours():
        first = click.style(level, fg=_COLOURS[check.level]) + first[len(level) :]
    text = [first]
    if check.level is not Level.OK:
        text.append(terminal.wrapped(f"{'':{_INDENT}}{check.why}", _INDENT))
        if check.command:  # in one piece: it is copied
            text.append(f"{'':{_INDENT}}mend it: {check.command}")
    return text


@click.command("doctor")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runtime_dir_option
def command(name: str | None, as_json: bool, runtime_dir: Path | None) -> int:
    """Check this host and its devices for what endangers swap.

    Of devices, NAME or all that run. Exit code 1 if anything endangers swap.
    """
    devices, silent = gather(name, runtime_dir_or_default(runtime_dir))
    checks = examine(host_facts(), devices) + silent
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        click.echo("\n".join(line for check in checks for line in lines(check)))
    return ExitCode.FAILED if worst(checks) is Level.FAILURE else ExitCode.OK
