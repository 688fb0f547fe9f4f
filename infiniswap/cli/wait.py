"""infiniswap wait: until a device is as a script needs it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.mutes import mutes_file, read_mutes, split
from infiniswap.cli.param_type import ParamType
from infiniswap.cli.status_mute import Duration
from infiniswap.cli.top.sampler import ask
from infiniswap.policy.health import of_device, unheard_shards
from infiniswap.shared.device_client import runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.output import say
from infiniswap.shared.sizes import format_size

LOOK_INTERVAL_S = 0.25
PEERS_MAX = 1024
Missing = Callable[[Mapping[str, Any]], str]
"""What a snapshot lacks, "" when nothing."""


def _unheard(snapshot: Mapping[str, Any]) -> str:
    """Which shards the numbers are not of: nobody knows how it stands with those."""
    return ", ".join(f"{row['name']} is {row['state']}" for row in unheard_shards(snapshot["status"]))


def clean(snapshot: Mapping[str, Any]) -> str:
    """Everything acknowledged is on the backup."""
    if unheard := _unheard(snapshot):
        return f"{unheard}: what of it is on the backup is not known"
    pending = int(snapshot["stats"]["pending_bytes"])
    doubtful = int(snapshot["stats"]["counters"].get("doubtful_pages", 0))
    if doubtful:
        return f"{doubtful} pages may not be on the backup: fdatasync failed"
    return f"{format_size(pending)} still on the way to the backup" if pending else ""


def mapped(snapshot: Mapping[str, Any]) -> str:
    """Every slab that holds pages has remote memory, and none is just being mapped or given up."""
    if unheard := _unheard(snapshot):
        return f"{unheard}: which of its slabs have remote memory is not known"
    slabs = snapshot["slabs"]
    changing, without = int(slabs["mapping"]) + int(slabs["draining"]), int(slabs["unmapped_used"])
    if changing or without:
        return f"{without} slabs with pages have no remote memory, {changing} are being mapped or given up"
    return ""


def healthy(snapshot: Mapping[str, Any]) -> str:
    """Nothing is the matter that is not muted."""
    loud, _ = split(of_device(snapshot), read_mutes(mutes_file(), time.time()))
    whole = snapshot["status"]["name"]
    about = [f.peer or (f.device if f.device != whole else None) for f in loud]  # a peer, or a shard
    return "; ".join(f"{f.code} {who + ' ' if who else ''}{f.detail}" for f, who in zip(loud, about, strict=True))


def peers(count: int) -> Missing:
    """At least so many are up."""

    def missing(snapshot: Mapping[str, Any]) -> str:
        if unheard := _unheard(snapshot):
            return f"{unheard}: which peers it reaches is not known"
        rows = snapshot["peers"]
        up = sum(1 for row in rows if row["state"] == "up")
        others = ", ".join(f"{row['peer']} {row['state']}" for row in rows if row["state"] != "up")
        return "" if up >= count else f"{up} of {count} peers are up" + (f"; {others}" if others else "")

    return missing


CONDITIONS: Mapping[str, Missing] = {"clean": clean, "mapped": mapped, "healthy": healthy}


class Condition(ParamType[Missing]):
    """clean, mapped, healthy or peers=N."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Missing:
        """What tells whether it holds; click's usage error for what is none."""
        if callable(value):
            return peers(PEERS_MAX)  # never: click converts no default here
        word, _, number = str(value).partition("=")
        if word in CONDITIONS and "=" not in str(value):
            return CONDITIONS[word]
        if word != "peers" or not re.fullmatch("[0-9]{1,5}", number) or not 1 <= int(number) <= PEERS_MAX:
            self.fail(f"'{value}' is none of clean, mapped, healthy, peers=N (N from 1 to {PEERS_MAX})", param, ctx)
        return peers(int(number))


@click.command("wait")
@click.argument("name")
@click.option(
    "--for",
    "conditions",
    type=Condition(),
    multiple=True,
    required=True,
    metavar="CONDITION",
    help="clean: all is on the backup. mapped: all slabs with pages have remote memory. peers=N: so many are up. "
    "healthy: status finds nothing. Several: all of them at once.",
)
@click.option("--timeout", "timeout_s", type=Duration(), default="60s", show_default=True, metavar="DURATION")
@runtime_dir_option
def command(name: str, conditions: Sequence[Missing], timeout_s: float, runtime_dir: Path | None) -> None:
    """Wait until device NAME is clean, mapped, healthy or has peers.

    Ends with 0 when it is so; with 1 on time-out, and says what is missing; with 3 when no such device runs by then.
    One that is not there yet is waited for, and that is said at once.
    """
    where, end_s, told = runtime_dir_or_default(runtime_dir), time.monotonic() + timeout_s, False
    while True:
        gone: UserError | None = None
        try:
            snapshot = ask(name, where, cells=1)
            missing = "; ".join(filter(None, (condition(snapshot) for condition in conditions)))
        except UserError as error:
            if error.code not in (ExitCode.NOT_FOUND, ExitCode.FAILED):
                raise
            gone, missing = error, str(error)
        if not missing:
            return
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            if gone is not None:
                raise gone
            raise UserError(f"device '{name}': {missing} (after {timeout_s:g} s)", ExitCode.FAILED)
        if gone is not None and not told:
            say(f"infiniswap: waiting: {gone}")
            told = True
        time.sleep(min(LOOK_INTERVAL_S, left_s))
