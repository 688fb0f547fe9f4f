"""infiniswap stats: where a device's reads come from and how long they take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options, runtime_dir_option
from infiniswap.cli.table import Column, Output, Row, as_decimal, choose, columns_help, lines, show, shown_lines
from infiniswap.cli.watching import refuse_json, watch, watch_options
from infiniswap.shared.device_client import fetch
from infiniswap.shared.sizes import format_size

LATENCY_COLUMNS = (
    Column(
        "SOURCE",
        "source",
        "remote, pending, backup, zero: where reads were answered from; write_*, flush: what those waited for",
    ),
    Column("COUNT", "count", "requests", right=True),
    Column("P50-US", "p50", "half of them took no longer, microseconds", right=True, format=as_decimal),
    Column("P90-US", "p90", "90 % took no longer", right=True, format=as_decimal),
    Column("P99-US", "p99", "99 % took no longer", right=True, format=as_decimal),
    Column("P999-US", "p999", "99.9 % took no longer", right=True, format=as_decimal),
    Column("MAX-US", "max", "the slowest", right=True, format=as_decimal),
)


def latency_rows(stats: Mapping[str, Any]) -> list[Row]:
    """One row per source that has answered something."""
    return [{"source": source, **row} for source, row in stats["latency_us"].items() if row["count"]]


def by_share(pages: Mapping[str, int]) -> str:
    """Pages per source with their share of all: remote 900 (90.0 %), backup 100 (10.0 %)."""
    total = sum(pages.values())
    parts = [f"{source} {count} ({100 * count / total:.1f} %)" for source, count in pages.items() if count]
    return ", ".join(parts) or "none"


def facts(stats: Mapping[str, Any], in_bytes: bool) -> list[tuple[str, str]]:
    """What is not a latency, as pairs of label and text."""

    def size(value: int) -> str:
        return str(value) if in_bytes else format_size(value)

    failures = {key: value for key, value in stats["failures"].items() if value}
    return [
        ("Pages read", by_share(stats["reads"])),
        ("Pages written", by_share(stats["writes"])),
        ("Pending", f"{size(stats['pending_bytes'])} of at most {size(stats['pending_limit_bytes'])}"),
        ("Slabs mapped, released", f"{stats['mappings']}, {stats['releases']}"),
        ("Failures", ", ".join(f"{key} {value}" for key, value in failures.items()) or "none"),
    ]


def stats_lines(stats: Mapping[str, Any], output: Output) -> list[str]:
    """All of it but JSON; with -o or -n the table of latencies alone."""
    rows = latency_rows(stats)
    if output.columns is not None or output.no_headings:
        return shown_lines(rows, LATENCY_COLUMNS, output)
    pairs = facts(stats, output.in_bytes)
    width = max(len(label) for label, _ in pairs) + 1
    text = [f"{(label + ':').ljust(width)}  {text}" for label, text in pairs]
    return [*text, "", *lines(rows, LATENCY_COLUMNS)] if rows else text


def show_stats(stats: Mapping[str, Any], output: Output) -> None:
    """Print stats: as JSON unchanged, with -o or -n the latency table alone, else all of it."""
    if output.as_json and output.columns is None:
        click.echo(json.dumps(stats, indent=2))
    elif output.as_json or output.columns is not None or output.no_headings:
        show(latency_rows(stats), LATENCY_COLUMNS, output, empty="no latencies: nothing was read since the start")
    else:
        click.echo("\n".join(stats_lines(stats, output)))


@click.command("stats", epilog=columns_help(LATENCY_COLUMNS))
@click.argument("name")
@output_options
@watch_options
@runtime_dir_option
def command(name: str, watching: bool, interval_s: float, runtime_dir: Path | None, **output: Any) -> int | None:
    """Show where reads of device NAME came from, and latencies.

    Also what is pending, how slabs were mapped, and what failed. With -o or -n only the table of latencies. All since
    its start: infiniswap top shows the last interval.
    """
    how = make_output(**output)
    if not watching:
        show_stats(fetch(name, "/v1/stats", runtime_dir), how)
        return None
    refuse_json(how.as_json, "infiniswap stats NAME")
    choose(LATENCY_COLUMNS, how.columns)
    return watch(lambda _: "\n".join(stats_lines(fetch(name, "/v1/stats", runtime_dir), how)), interval_s)
