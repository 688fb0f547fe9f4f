"""infiniswap device check: state, backup and leases of a device, and what a start would make of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.donor_client import tls_option, usual_identity
from infiniswap.policy.health import unheard_shards
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import default_state_dir
from infiniswap.shared.sizes import format_size


def check_running(name: str, runtime_dir: Path) -> dict[str, object] | None:
    """What a device that runs tells of itself; None when none of that name does."""
    try:
        with DeviceClient(name, runtime_dir) as control:
            status, stats, peers = control.get("/v1/status"), control.get("/v1/stats"), control.get("/v1/peers")
    except UserError as error:
        if error.code == ExitCode.NOT_FOUND:
            return None
        raise
    lost = int(stats["failures"]["lost_pages"])
    up = sum(1 for peer in peers if peer.get("state") == "up")
    words = [
        f"it runs as process {status['pid']}, state {status['state']}, with {status['connections']} connections",
        f"backup {status['backup']}{_of_log(status)}: {format_size(int(stats['pending_bytes']))} are on the way there",
        f"{up} of {len(peers)} peers are up, with {status['mapped_slabs']} slabs",
    ]
    if lost:
        words.append(f"{lost} pages were lost since it started")
    down = unheard_shards(status)
    words += [
        f"{row['name']} is {row['state']} ({row['why'] or 'it does not answer'}): nothing above is of it"
        for row in down
    ]
    return {"name": name, "start": "running", "code": ExitCode.FAILED if lost or down else ExitCode.OK, "words": words}


def _of_log(status: dict[str, Any]) -> str:
    """What a log has left, in brackets."""
    if status.get("backup_layout") != "log":
        return ""
    return f" (a log, {status['log_free_segments']} of {status['log_segments']} segments free)"


@click.command("check")
@click.argument("name")
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="As the device is served with.")
@click.option("--backup", type=click.Path(path_type=Path), metavar="FILE", help="Another backup than that on record.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@tls_option
@runtime_dir_option
def command(name: str, state_dir: Path | None, backup: Path | None, as_json: bool, runtime_dir: Path | None) -> None:
    """Tell how device NAME stands, and what a start would do.

    It may run or not; nothing is changed. Exit code 0 when all is well, 1 when pages are lost or would be, or a shard
    does not serve, 5 when a start is refused, 6 when a disk fails, 3 when nothing is known.
    """
    check_name(name)
    where, states = runtime_dir_or_default(runtime_dir), state_dir or default_state_dir()
    found = check_running(name, where)
    if found is None:
        from infiniswap.device.check import check
        from infiniswap.device.shards import backups_kept

        image = None if backup is None else backup.absolute()
        parts = backups_kept(name, states)
        if parts and image is not None:
            raise UserError(f"'{name}' has {len(parts)} backups; name a shard with its own: {', '.join(parts)}")

        def look(part: str) -> dict[str, Any]:
            try:
                return asdict(check(part, states, image, usual_identity()))
            except UserError as error:
                if error.code != ExitCode.NOT_FOUND or part not in parts:
                    raise
                return asdict(check(part, states, parts[part], usual_identity()))  # its state is gone

        each = [check_running(part, where) or look(part) for part in parts or [name]]
        found = as_one(name, each) if parts else each[0]
    words, code = found["words"], found["code"]
    assert isinstance(words, list)
    assert isinstance(code, ExitCode)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(f"{name}: {line}" for line in words))
    if code:
        raise click.exceptions.Exit(code)


def as_one(name: str, shards: list[dict[str, Any]]) -> dict[str, object]:
    """What was found of the shards of a device whose parent does not run."""
    starts = [str(each["start"]) for each in shards]
    found: dict[str, Any] = {
        "name": name,
        "start": starts[0] if len(set(starts)) == 1 else "mixed",
        "code": max(each["code"] for each in shards),
        "words": [f"{each['name']}: {line}" for each in shards for line in each["words"]],
        "shards": shards,
    }
    layouts = {str(each["name"]): str(each["backup_layout"]) for each in shards if each.get("backup_layout")}
    if len(set(layouts.values())) > 1:
        first, to = next(iter(layouts.items()))
        other = next(each for each, layout in layouts.items() if layout != to)
        found["words"].append(
            f"the backup of {first} is {to}, that of {other} {layouts[other]}: a start is refused until all are kept "
            f"the same way; 'infiniswap device convert {other} --to {to}' makes it so for that one"
        )
        found |= {"start": "refused", "code": max(found["code"], ExitCode.REFUSED)}
    return found
