"""infiniswap peers: the memory daemons of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options, runtime_dir_option
from infiniswap.cli.table import Column, as_decimal, as_text, columns_help
from infiniswap.cli.watching import show_or_watch, watch_options
from infiniswap.shared.device_client import fetch

INCARNATION_CHARACTERS = 8  # enough to tell them apart

COLUMNS = (
    Column("PEER", "peer", "address of the memory daemon"),
    Column(
        "STATE",
        "state",
        "up, slow (answers too late, gets little to do), leaving (is being removed), held (may be back soon), "
        "down or connecting",
    ),
    Column(
        "LENDING",
        "lending",
        "lending, cordoned (takes no new slabs) or draining (gives back those that it has)",
        spare=2,
    ),
    Column("VIA", "transport", "rdma or tcp: how pages travel", spare=1),
    Column("SLABS", "slabs", "slabs of this device that it holds", right=True),
    Column("FREE", "free_bytes", "memory it could still lend, when last heard of", right=True, size=True),
    Column("TOTAL", "total_bytes", "memory it lends in all", right=True, size=True, spare=7),
    Column("READS", "reads", "reads sent to it", right=True, spare=5),
    Column("WRITES", "writes", "writes sent to it", right=True, spare=6),
    Column("INFLIGHT", "in_flight", "requests without an answer yet", right=True, default=False),
    Column("MEAN-US", "latency_mean_us", "mean time of a read, microseconds", right=True, format=as_decimal, spare=3),
    Column("OVERDUE", "overdue", "requests not answered by their deadline", right=True, default=False),
    Column("HEDGE-US", "hedge_us", "after which a read is asked of the backup, too", right=True, default=False),
    Column("FAILURES", "failures", "requests that failed", right=True, spare=4),
    Column("MISMATCHES", "mismatches", "pages whose checksum did not hold", right=True, default=False),
    Column("VERSION", "version", "version of the memory daemon", spare=8),
    Column(
        "INCARNATION",
        "incarnation",
        "the memory that it has, by the beginning of its number; another one has lost all slabs",
        format=lambda value: as_text(value)[:INCARNATION_CHARACTERS],
        spare=9,
    ),
    Column("PATH", "path", "RDMA port and GID at both ends, and the packets' size", default=False),
    Column("WHY-TCP", "rdma_error", "why it is not reached over RDMA", default=False),
    Column("ERROR", "last_error", "what went wrong last", default=False),
)


@click.command("peers", epilog=columns_help(COLUMNS))
@click.argument("name")
@output_options
@watch_options
@runtime_dir_option
def command(name: str, watching: bool, interval_s: float, runtime_dir: Path | None, **output: Any) -> int | None:
    """Show the memory daemons of device NAME and how they answer."""
    empty = f"device '{name}' has no peers: all its pages are on the backup; start it with --peer HOST:PORT"
    how = make_output(**output)
    return show_or_watch(lambda: fetch(name, "/v1/peers", runtime_dir), COLUMNS, how, watching, interval_s, empty)
