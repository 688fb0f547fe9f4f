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
from infiniswap.shared.device_client import fetch, living_shards, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import device_names, shard_names

_WHY_SILENT = "who cannot be asked cannot be judged; pages do not pass through what answers here, and may still do"
_WHY_DEAD = "what is on this shard waits until its parent has started it again, which tries at least every 30 s"
_WHY_ORPHANED = "a shard that dies now stays dead, and commands need the parent; the shards serve on, and it finds them"
_INDENT = 9
_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}


def gather(name: str | None, runtime_dir: Path) -> tuple[tuple[DeviceFacts, ...], list[Check]]:
    """Facts of the device name, which must run, or of all that do; and what is to be said of those that cannot."""
    found: list[DeviceFacts] = []
    silent: list[Check] = []
    for each in device_names(runtime_dir) if name is None else (name,):
        try:
            facts, checks = _look(each, runtime_dir)
            found += facts
            silent += checks
        except UserError as error:
            if name is not None:
                raise
            if error.code != ExitCode.NOT_FOUND:  # else a socket left behind: `device list` tells of it
                silent.append(_cannot_be_judged(each, str(error)))
    return tuple(found), silent


def _look(name: str, runtime_dir: Path) -> tuple[list[DeviceFacts], list[Check]]:
    """Of the device or, since each has a process and a backup of its own, of its shards; and what cannot be judged."""
    try:
        status = fetch(name, "/v1/status", runtime_dir)
        rows = status.get("shards")
        if not rows:
            return [device_facts(status, fetch(name, "/v1/peers", runtime_dir))], []
        checks = []
    except UserError as error:
        names = shard_names(runtime_dir, name)
        alive = living_shards(runtime_dir, name)
        if error.code != ExitCode.NOT_FOUND or not alive:
            raise
        rows = [{"name": each, "state": "" if each in alive else "dead", "why": "killed"} for each in names]
        way_out = f"infiniswap device serve {name}"
        checks = [Check("service", Level.FAILURE, "its parent does not run", _WHY_ORPHANED, way_out, name)]
    found: list[DeviceFacts] = []
    for row in rows:
        if row["state"] == "stopped":
            continue  # in order, and the others with it soon
        if row["state"] == "dead":
            checks.append(Check("service", Level.FAILURE, f"it is dead: {row['why']}", _WHY_DEAD, None, row["name"]))
            continue
        try:
            found += _look(row["name"], runtime_dir)[0]
        except UserError as error:
            checks.append(_cannot_be_judged(row["name"], str(error)))
    return found, checks


def _cannot_be_judged(name: str, found: str) -> Check:
    return Check("service", Level.FAILURE, found, _WHY_SILENT, None, name)


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
