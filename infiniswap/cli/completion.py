"""What the shell completes: names of devices, columns, files and folders, addresses of peers that are known here.

Each rule looks at a parameter as it is declared (its name, its metavar), so that commands say nothing of it themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from infiniswap.cli.table import Column
from infiniswap.shared.device_client import DeviceClient
from infiniswap.shared.errors import UserError
from infiniswap.shared.options import PATHS
from infiniswap.shared.paths import default_runtime_dir, default_state_dir, device_names
from infiniswap.shared.shard_names import is_shard
from infiniswap.shared.toml_file import read_toml

CONFIGURATION = Path("/etc/infiniswap")
DAEMON_FILE = "infiniswapd"
ANSWER_TIMEOUT_S = 0.5  # of each device: who presses TAB waits for it
DEVICES_ASKED_MAX = 8
PEERS = ("HOST:PORT", "HOST[:PORT]", "PEER")

Complete = Callable[[click.Context, str], list[CompletionItem]]


def furnish(command: click.Command) -> None:
    """Give each parameter of the command what completes it, where click does not know by itself."""
    for parameter in command.params:
        complete = rule(command, parameter)
        if complete is not None:
            setattr(parameter, "shell_complete", complete)  # noqa: B010  (a method, for this one object)


def rule(command: click.Command, parameter: click.Parameter) -> Complete | None:
    """What completes it; None: click's own way."""
    metavar = parameter.metavar or ""
    if isinstance(parameter.type, click.Path | click.Choice):
        return None
    if parameter.name in ("name", "names") and isinstance(parameter, click.Argument):
        return devices
    if parameter.name == "columns":
        return lambda _ctx, incomplete: columns(command, incomplete)
    if metavar in PEERS or parameter.name in ("peer", "peers", "address"):
        return peers
    if metavar in PATHS and isinstance(parameter, click.Option):
        kind = "dir" if metavar == "DIR" else "file"
        return lambda _ctx, incomplete: [CompletionItem(incomplete, type=kind)]
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def names_of(runtime_dir: Path, state_dirs: list[Path], configuration: Path) -> dict[str, str]:
    """Devices with what is known of them: those that run, that left a state behind, that have a file."""
    found = dict.fromkeys(device_names(runtime_dir), "runs")
    for folder in state_dirs:
        for path in _entries(folder):
            if path.is_dir() and not path.name.startswith(".") and not is_shard(path.name):
                found.setdefault(path.name, "remembered")
    for path in _entries(configuration):
        if path.suffix == ".toml" and path.stem != DAEMON_FILE:
            found.setdefault(path.stem, "configured")
    return found


def _runtime_dir(context: click.Context) -> Path:
    given = context.params.get("runtime_dir")
    return Path(given) if given else default_runtime_dir()


def devices(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names of devices."""
    runtime_dir = _runtime_dir(context)
    known = names_of(runtime_dir, [default_state_dir(), runtime_dir / "state"], CONFIGURATION)
    return [CompletionItem(name, help=what) for name, what in known.items() if name.startswith(incomplete)]


def columns_of(command: click.Command) -> list[Column]:
    """The columns that the command's module describes."""
    if command.callback is None:
        return []
    module = importlib.import_module(command.callback.__module__)
    tables = [value for value in vars(module).values() if isinstance(value, tuple)]
    return [column for table in tables for column in table if isinstance(column, Column)]


def columns(command: click.Command, incomplete: str) -> list[CompletionItem]:
    """The last of the columns that are separated by commas; a + before the first one stays."""
    before, _, last = incomplete.rpartition(",")
    begin = before + "," if before else ""
    if not begin and last.startswith("+"):
        begin, last = "+", last[1:]
    named = {name.upper() for name in before.lstrip("+").split(",")}
    found = [column for column in columns_of(command) if column.heading.upper() not in named]
    matching = [column for column in found if column.heading.upper().startswith(last.upper())]
    return [CompletionItem(begin + column.heading, help=column.help) for column in matching]


def peers(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Memory daemons that running devices use, or that a device's file names."""
    found: dict[str, None] = {}
    runtime_dir = _runtime_dir(context)
    for name in device_names(runtime_dir)[:DEVICES_ASKED_MAX]:
        try:
            with DeviceClient(name, runtime_dir, ANSWER_TIMEOUT_S) as control:
                found.update({str(peer["peer"]): None for peer in control.get("/v1/peers")})
        except (UserError, OSError, KeyError, TypeError):
            continue  # a device that does not answer knows no peers
    for path in _entries(CONFIGURATION):
        if path.suffix == ".toml":
            found.update(dict.fromkeys(_peers_in(path)))
    return [CompletionItem(peer) for peer in found if peer.startswith(incomplete)]


def _peers_in(file: Path) -> list[str]:
    try:
        table: dict[str, Any] = read_toml(file)
    except UserError:
        return []
    listed = table.get("peers", [])
    return [peer for peer in listed if isinstance(peer, str)] if isinstance(listed, list) else []
