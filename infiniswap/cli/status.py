"""infiniswap status: how this host's devices and daemon stand, and with --cluster all donors they know."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.donor_address import Address
from infiniswap.cli.mutes import Mute, mutes_file, read_mutes, split
from infiniswap.cli.status_facts import Facts, gather
from infiniswap.cli.status_mute import command as mute_command
from infiniswap.cli.status_mute import unmute_command
from infiniswap.cli.table import Column, lines
from infiniswap.cli.watching import refuse_json, watch, watch_options
from infiniswap.policy.health import CODES, DonorFacts, Finding, Severity, worst
from infiniswap.shared.address import HostPort
from infiniswap.shared.device_client import runtime_dir_or_default
from infiniswap.shared.sizes import format_size

PIPE_WIDTH = 0  # lines are not folded where no terminal is
CODE_WIDTH = max(map(len, CODES))
DEVICE_COLUMNS = (
    Column("DEVICE", "name", ""),
    Column("STATE", "state", ""),
    Column("SIZE", "size_bytes", "", right=True, size=True),
    Column("MAPPED", "mapped", "", right=True),
    Column("PEERS", "up", "", right=True),
    Column("PENDING", "pending_bytes", "", right=True, size=True),
    Column("BACKUP", "backup_state", ""),
    Column("NBD", "nbd", ""),
    Column("SWAPPED", "swap_used_bytes", "", right=True, size=True),
)
DONOR_COLUMNS = (
    Column("DONOR", "address", ""),
    Column("STATE", "state", ""),
    Column("LENT", "used_bytes", "", right=True, size=True),
    Column("OF", "total_bytes", "", right=True, size=True),
    Column("FREE", "free_bytes", "", right=True, size=True),
    Column("HOST-FREE", "available_bytes", "", right=True, size=True),
    Column("USED BY", "used_by", ""),
)


def _head(severity: Severity, loud: Sequence[Finding], muted: int) -> str:
    text = {Severity.OK: "OK: nothing is the matter", Severity.WARNING: "WARNING", Severity.ERROR: "ERROR"}[severity]
    if loud:
        text += f": {len(loud)} finding{'s' if len(loud) > 1 else ''}"
    return text + (f" ({muted} muted)" if muted else "")


def _folded(finding: Finding, width: int, mute: Mute | None = None) -> str:
    subject = " ".join(part for part in (finding.device, finding.peer) if part)
    until = "" if mute is None else " (muted" + (f" until {_clock(mute.until_s)})" if mute.until_s else ")")
    text = f"{finding.severity.name:<7}  {finding.code:<{CODE_WIDTH}}  {subject}: {finding.detail}{until}"
    if not width:
        return text
    return textwrap.fill(text, width, subsequent_indent=" " * 9, break_long_words=True, break_on_hyphens=False)


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _device_row(row: dict[str, Any]) -> dict[str, Any]:
    if "slabs" not in row:
        return row
    return {
        **row, "mapped": f"{row['mapped_slabs']}/{row['slabs']}", "up": f"{row['peers_up']}/{row['peers']}",
    }  # fmt: skip


def _donor_row(donor: DonorFacts, used_by: dict[str, list[str]]) -> dict[str, Any]:
    state = "down" if not donor.answers else "lending" if donor.lending else "cordoned"
    return {**asdict(donor), "state": state, "used_by": ",".join(used_by.get(donor.address, ()))}


def as_text(facts: Facts, mutes: Sequence[Mute], width: int, *, cluster: bool) -> tuple[str, Severity]:
    """The screen, and how bad it is. width: lines are folded or cut to it; 0: they are as long as they are."""
    loud, silent = split(facts.findings, mutes)
    severity = worst(loud)
    out = [_head(severity, loud, len(silent))]
    out += [_folded(finding, width) for finding in loud]
    out += [_folded(finding, width, mute) for finding, mute in silent]
    out.append("")
    if facts.devices:
        out += [_cut(line, width) for line in lines([_device_row(row) for row in facts.devices], DEVICE_COLUMNS)]
    else:
        out.append(facts.nothing)
    daemon, donors = facts.daemon, facts.donors
    if cluster:
        rows = [_donor_row(donor, facts.used_by) for donor in donors]
        out += ["", *(_cut(line, width) for line in lines(rows, DONOR_COLUMNS))] if rows else ["", "No donor is known."]
    elif daemon is None:
        out.append("No memory daemon runs here.")
    elif daemon.answers:
        lent = f"{_size(daemon.used_bytes)} of {_size(daemon.total_bytes)} lent, {_size(daemon.free_bytes)} free"
        out.append(f"Memory daemon {daemon.address}: {'lending' if daemon.lending else 'cordoned'}, {lent}")
    return "\n".join(out), severity


def _size(value: int | None) -> str:
    return "-" if value is None else format_size(value)


def _cut(line: str, width: int) -> str:
    return line if not width or len(line) <= width else line[: width - 1] + "~"


def as_json(facts: Facts, mutes: Sequence[Mute]) -> tuple[str, Severity]:
    """The same for programs."""
    loud, silent = split(facts.findings, mutes)
    severity = worst(loud)

    def entry(finding: Finding, mute: Mute | None) -> dict[str, Any]:
        told = {"muted": mute is not None, "muted_until_s": None if mute is None else mute.until_s}
        return {**asdict(finding), "severity": finding.severity.word, **told}

    content = {
        "severity": severity.word,
        "findings": [*(entry(finding, None) for finding in loud), *(entry(finding, mute) for finding, mute in silent)],
        "devices": facts.devices,
        "daemon": None if facts.daemon is None else asdict(facts.daemon),
        "donors": [{**asdict(donor), "used_by": facts.used_by.get(donor.address, [])} for donor in facts.donors],
    }
    return json.dumps(content, indent=2), severity


@click.group(
    "status",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nHealth codes:\n" + "\n".join(f"  {code:<{CODE_WIDTH}}  {text}" for code, text in CODES.items()),
)
@click.option("--cluster", is_flag=True, help="Also ask all donors that devices here know.")
@click.option(
    "--donor", "daemon", type=Address(), metavar="HOST:PORT", help="This host's daemon, where it is not found."
)
@click.option("--json", "in_json", is_flag=True, help="Print JSON.")
@watch_options
@runtime_dir_option
@click.pass_context
def command(
    context: click.Context,
    cluster: bool,
    daemon: HostPort | None,
    in_json: bool,
    watching: bool,
    interval_s: float,
    runtime_dir: Path | None,
) -> int | None:
    """Show how this host's devices and daemon stand, on one screen.

    Ends with 0 when nothing is the matter, 1 for warnings, 2 for errors; what is muted does not count.
    """
    if context.invoked_subcommand is not None:
        return None
    where = runtime_dir_or_default(runtime_dir)

    def look() -> tuple[Facts, list[Mute]]:
        return gather((), where, daemon, cluster=cluster), read_mutes(mutes_file(), time.time())

    if watching:
        refuse_json(in_json, "infiniswap status")
        return watch(lambda height: as_text(*look(), _width() if height else 0, cluster=cluster)[0], interval_s)
    text, severity = as_json(*look()) if in_json else as_text(*look(), _width(), cluster=cluster)
    click.echo(text)
    return int(severity)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH


command.add_command(mute_command)
command.add_command(unmute_command)
