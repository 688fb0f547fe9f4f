"""infiniswap device scrub: compares all copies of a device's pages with their checksums, and mends what is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import on_interrupt, runtime_dir_option
from infiniswap.cli.progress import progress_on
from infiniswap.device.limits import SCRUB_BYTES_S_DEFAULT, SCRUB_BYTES_S_MAX, SCRUB_BYTES_S_MIN
from infiniswap.shared.device_client import TIMEOUT_S, DeviceClient, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size, parse_size

POLL_S = 0.25
rate_option = click.option(
    "--rate",
    default=format_size(SCRUB_BYTES_S_DEFAULT),
    show_default=True,
    metavar="SIZE",
    help="Bytes a second that are looked at.",
)


def read_rate(text: str) -> int:
    """Bytes a second out of 64MiB, or UserError."""
    rate = parse_size(text)
    if not SCRUB_BYTES_S_MIN <= rate <= SCRUB_BYTES_S_MAX:
        low, high = format_size(SCRUB_BYTES_S_MIN), format_size(SCRUB_BYTES_S_MAX)
        raise UserError(f"--rate {text} must be between {low} and {high} a second")
    return rate


def verdict(scrub: dict[str, Any]) -> str:
    """What a scrub found, in one line."""
    if scrub["state"] == "never":
        return "no scrub since the device was started"
    words = {
        "remote_repairs": "wrong in remote memory and made anew from the backup",
        "backup_repairs": "wrong on the backup and made anew from remote memory",
        "record_repairs": "right in both places, with a wrong checksum that was mended",
        "unreadable_pages": "only on the backup, which cannot be read there",
        "lost_pages": "lost: no copy is right",
    }
    found = [f"{scrub[name]} {text}" for name, text in words.items() if scrub[name]]
    how = {"running": "so far", "ended": "before it was ended", "done": "in all"}[scrub["state"]]
    return f"{scrub['checked_pages']} pages compared {how}: " + ("; ".join(found) or "all of them right")


def follow(control: DeviceClient) -> dict[str, Any]:
    """Wait for the end, with a bar on a terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with progress_on(None, *columns) as progress:
        scrub: dict[str, Any] = control.get("/v1/scrub")
        task = progress.add_task("comparing", total=scrub["size_bytes"])
        while scrub["state"] == "running":
            progress.update(task, completed=scrub["position_bytes"])
            time.sleep(POLL_S)
            scrub = control.get("/v1/scrub")
    return scrub


@click.command("scrub")
@click.argument("name")
@rate_option
@click.option("--no-wait", is_flag=True, help="Return at once; the device goes on with it.")
@click.option("--status", "only_status", is_flag=True, help="Begin nothing: show how far it is, or what it found.")
@click.option("--stop", "stop", is_flag=True, help="End the scrub that is going on.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@runtime_dir_option
def command(
    name: str, rate: str, no_wait: bool, only_status: bool, stop: bool, as_json: bool, runtime_dir: Path | None
) -> None:
    """Compare all copies of device NAME's pages, mend wrong ones.

    In the background of its work, with their checksums. A copy that is wrong is made anew from the other one. Exit code
    1 when pages are lost or cannot be read. Ctrl-C ends the waiting, not the scrub.
    """
    rate_bytes_s = read_rate(rate)
    with DeviceClient(name, runtime_dir_or_default(runtime_dir), silence_s=TIMEOUT_S) as control:
        if stop:
            scrub = control.delete("/v1/scrub")
        elif only_status:
            scrub = control.get("/v1/scrub")
        else:
            scrub = control.post("/v1/scrub", {"rate_bytes_s": rate_bytes_s})
            if not no_wait:
                goes_on = (
                    f"the scrub goes on; 'infiniswap device scrub {name} --status' tells how far it is, --stop ends it"
                )
                with on_interrupt(lambda: goes_on):
                    scrub = follow(control)
    click.echo(json.dumps(scrub, indent=2) if as_json else f"{name}: {verdict(scrub)}")
    if scrub["lost_pages"] or scrub["unreadable_pages"]:
        raise click.exceptions.Exit(ExitCode.FAILED)
