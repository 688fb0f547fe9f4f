"""infiniswap cluster show: who this host is, what the authority has issued, and what is wrong with any of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.cluster import directory_option, folder_of
from infiniswap.shared.errors import ExitCode, UserError


def look(folder: Path, now: datetime) -> dict[str, Any]:
    """All that is known. UserError: there is nothing."""
    from infiniswap.identity.certificates import describe, read_certificate
    from infiniswap.identity.files import CA_CERT, CA_KEY, HOST_CERT, TlsPaths
    from infiniswap.identity.identity import WARN_BEFORE, Identity

    if not (folder / CA_CERT).exists():
        raise UserError(
            f"{folder} has no {CA_CERT}: this host is in no cluster yet ('infiniswap cluster init', or copy the "
            "folder that 'infiniswap cluster issue' made)",
            ExitCode.NOT_FOUND,
        )
    problems: list[str] = []
    found: dict[str, Any] = {"directory": str(folder), "host": None, "problems": problems}
    authority = describe(read_certificate(folder / CA_CERT, "the authority's certificate"))
    found["authority"] = asdict(authority)
    if (problem := authority.problem(now)) is not None:
        problems.append(f"the authority's certificate: {problem}")
    try:
        own = describe(read_certificate(folder / HOST_CERT))
        found["host"] = asdict(own)
        Identity(TlsPaths.of_folder(folder), lambda: now)
        if own.not_after - now < WARN_BEFORE:
            problems.append(f"this host's certificate expires on {own.not_after:%Y-%m-%d}: renew it")
        found["renewal"] = {"before": own.not_after, "command": how_to_renew(folder, own.subject)}
    except UserError as error:
        problems.append(str(error))
    found["issued"] = issued(folder, now, problems) if (folder / CA_KEY).exists() else None
    return found


def how_to_renew(folder: Path, host: str) -> str:
    """What renews this host's certificate, and where that is typed."""
    from infiniswap.identity.files import CA_KEY

    if (folder / CA_KEY).exists():
        return "infiniswap cluster renew"
    return f"infiniswap cluster renew {host} | ssh {host} infiniswap cluster renew --from -"


def issued(folder: Path, now: datetime, problems: list[str]) -> list[dict[str, Any]]:
    """What the authority has issued, the first one first; problems: gets what is wrong."""
    from infiniswap.identity.authority import Authority

    try:
        ledger = Authority.open(folder).ledger()
    except UserError as error:
        problems.append(str(error))
        return []
    rows = []
    for entry in ledger:
        over = now.timestamp() > entry.until
        state = "revoked" if entry.revoked else "expired" if over else "good"
        until = datetime.fromtimestamp(entry.until, UTC)
        rows.append({"host": entry.host, "state": state, "not_after": until, "serial": entry.serial})
    return rows


@click.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@directory_option
def command(as_json: bool, directory: Path | None) -> int:
    """Show who this host is, until when, and what is wrong.

    Where the authority is, also what it has issued. Exit code 1: something is wrong.
    """
    from infiniswap.identity.identity import utc_now

    found = look(folder_of(directory), utc_now())
    if as_json:
        click.echo(json.dumps(found, indent=2, default=lambda value: value.isoformat()))
    else:
        for line in lines(found):
            click.echo(line)
    return ExitCode.FAILED if found["problems"] else ExitCode.OK


def lines(found: dict[str, Any]) -> list[str]:
    """For people."""
    told = [f"Directory    {found['directory']}"]
    for label, key in (("Authority", "authority"), ("This host", "host")):
        if (it := found[key]) is not None:
            names = f", for {', '.join(it['names'])}" if it["names"] else ""
            told.append(f"{label:<12} {it['subject']}{names}, until {it['not_after']:%Y-%m-%d}")
            told.append(f"             SHA-256 {it['fingerprint']}")
    if (renewal := found.get("renewal")) is not None:
        where = "" if found["issued"] is not None else ", on the authority's host"
        told.append(f"Renew        before {renewal['before']:%Y-%m-%d}{where}: {renewal['command']}")
    told += [
        f"Issued       {row['host']}: {row['state']}, until {row['not_after']:%Y-%m-%d}, {row['serial']}"
        for row in found["issued"] or []
    ]
    told += [f"Problem      {problem}" for problem in found["problems"]]
    return told
