"""infiniswap device verify: reads every copy of a device's pages and compares it with its checksum; changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.cli.device_scrub import follow, rate_option, read_rate, verdict
from infiniswap.shared.device_client import DeviceClient, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode

PAGE_BYTES = 4096
WRONG = {
    "remote": "the copy at {peer} does not meet its checksum",
    "backup": "the backup's copy does not meet its checksum",
    "record": "both copies agree, and the checksum on record is another",
    "unreadable": "the backup's copy cannot be read",
}
COUNTS = ("wrong_remote", "wrong_backup", "wrong_records", "unreadable_pages")


def wrong(found: dict[str, Any]) -> int:
    """How many copies a verification found wrong."""
    return sum(int(found[name]) for name in COUNTS)


def words(name: str, found: dict[str, Any], holders: dict[int, str], slab_bytes: int) -> list[str]:
    """What it found, a line each. holders: peer of a slab; slab_bytes: of the device."""
    count = wrong(found)
    how = "" if found["state"] == "done" else " before it was ended"
    looked = f"{found['remote_pages']} copies at peers and {found['backup_pages']} on the backup read{how}"
    lines = [f"{name}: {looked}: {f'{count} wrong' if count else 'all of them right'}"]
    for each in found["differences"]:
        slab = each["page"] * PAGE_BYTES // slab_bytes
        what = WRONG[each["copy"]].format(peer=holders.get(slab, "its peer"))
        lines.append(f"  page {each['page']} (slab {slab}): {what}")
    if count > len(found["differences"]):
        lines.append(f"  and {count - len(found['differences'])} more")
    if found["skipped_pages"]:
        lines.append(f"{name}: {found['skipped_pages']} pages were left out, for they were being written")
    return lines


def lacking(name: str, counters: dict[str, int]) -> list[str]:
    """What no reading can tell, and the device knows."""
    lines = []
    if counters["unreadable_pages"]:
        lines.append(
            f"{name}: {counters['unreadable_pages']} pages have no copy left: they read as errors until written"
        )
    if counters["doubtful_pages"]:
        lines.append(f"{name}: whether {counters['doubtful_pages']} pages are on the backup is not sure: a sync failed")
    return lines


def run_pass(control: DeviceClient, rate_bytes_s: int, *, verify: bool) -> dict[str, Any]:
    """One pass over the device, to its end; it is ended when the user has had enough."""
    control.post("/v1/scrub", {"rate_bytes_s": rate_bytes_s, "verify": verify})
    try:
        return follow(control)
    except BaseException:
        control.delete("/v1/scrub")
        raise


@click.command("verify")
@click.argument("name")
@rate_option
@click.option("--repair", is_flag=True, help="Make wrong copies anew from right ones, and verify again.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@runtime_dir_option
def command(name: str, rate: str, repair: bool, as_json: bool, runtime_dir: Path | None) -> None:
    """Compare every copy of device NAME's pages with its checksum.

    Reads all pages at the peers and on the backup beside the device's other work, lists what is wrong, and changes
    nothing without --repair. Of a page that the backup alone has no checksum is known: it is read. Exit code 1 when a
    copy is wrong or a page is lost. Ctrl-C ends it.
    """
    rate_bytes_s = read_rate(rate)
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        slab_bytes = int(control.get("/v1/status")["slab_bytes"])
        found = run_pass(control, rate_bytes_s, verify=True)
        repaired = None
        if repair and wrong(found):
            before, repaired = found, run_pass(control, rate_bytes_s, verify=False)
            _say(control, name, before, slab_bytes, as_json)
            if not as_json:
                click.echo(f"{name}: {verdict(repaired)}")
            found = run_pass(control, rate_bytes_s, verify=True)
        counters = control.get("/v1/stats")["counters"]
        _say(control, name, found, slab_bytes, as_json)
    if as_json:
        lost = {key: counters[key] for key in ("unreadable_pages", "doubtful_pages")}
        click.echo(json.dumps({"verified": found, "repaired": repaired, "device": lost}, indent=2))
    else:
        for line in lacking(name, counters):
            click.echo(line)
        if wrong(found) and not repair:
            click.echo(f"{name}: nothing was changed; --repair makes wrong copies anew from right ones")
    if wrong(found) or counters["unreadable_pages"] or counters["doubtful_pages"]:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _say(control: DeviceClient, name: str, found: dict[str, Any], slab_bytes: int, as_json: bool) -> None:
    if as_json:
        return
    holders: dict[int, str] = {}
    if any(each["copy"] == "remote" for each in found["differences"]):
        holders = {slab["index"]: slab["peer"] for slab in control.get("/v1/slabs") if slab["peer"]}
    for line in words(name, found, holders, slab_bytes):
        click.echo(line)
