"""infiniswap bench: what page-ins take on the user's own hosts, and whether remote memory pays there."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infiniswap.cli.donor_client import is_insecure, tls_option, usual_identity
from infiniswap.cli.table import Column, Output, show
from infiniswap.shared.errors import UserError
from infiniswap.shared.program import INTERRUPTED
from infiniswap.shared.sizes import format_size, parse_size

if TYPE_CHECKING:
    from infiniswap.device.bench.run import Report, Wanted
    from infiniswap.policy.worth import Place

MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = 16 << 20, 4 << 30
SECONDS_MIN, SECONDS_MAX = 0.1, 600.0
STEP_BYTES = 4 << 20  # a slab of the bench's device


def as_ms(value: Any) -> str:
    """Milliseconds, three digits behind the point."""
    return f"{float(value) / 1000:.3f}"


def as_rate(value: Any) -> str:
    """A whole number."""
    return f"{float(value):,.0f}"


COLUMNS = (
    Column("FROM", "from", "peer, backup or disk"),
    Column("WAY", "way", "how it was reached"),
    Column("P50-MS", "p50_us", "median of a read, one at a time", right=True, format=as_ms),
    Column("P99-MS", "p99_us", "one in a hundred takes longer", right=True, format=as_ms),
    Column("PAGES/S", "reads_s", "reads a second, one at a time", right=True, format=as_rate),
    Column("P50-32", "many_p50_us", "median, 32 at a time", right=True, format=as_ms, spare=2),
    Column("P99-32", "many_p99_us", "one in a hundred, 32 at a time", right=True, format=as_ms, spare=1),
    Column("PAGES/S-32", "many_reads_s", "reads a second, 32 at a time", right=True, format=as_rate),
)


def row(place: Place) -> dict[str, Any]:
    """Of the table."""
    one = {"p50_us": place.one.p50_us, "p99_us": place.one.p99_us, "reads_s": place.one.reads_s}
    many = {"many_p50_us": place.many.p50_us, "many_p99_us": place.many.p99_us, "many_reads_s": place.many.reads_s}
    return {"from": place.name, "way": place.way, **one, **many}


def read_wanted(
    peers: tuple[str, ...],
    backup: Path | None,
    disk: Path | None,
    config: Path | None,
    transport: str,
    memory: str,
    seconds: float,
) -> Wanted:
    """The options, checked before anything is touched; UserError."""
    from infiniswap.device.bench.run import Wanted
    from infiniswap.device.config import load_config
    from infiniswap.shared.address import parse_host_port

    addresses = [parse_host_port(peer, "--peer") for peer in peers]
    identity = usual_identity()
    tls, insecure = None if identity is None else identity.paths, is_insecure()
    if config is not None:
        described = load_config(None, {}, config)
        addresses = addresses or list(described.peers)
        insecure = insecure or described.insecure
        tls = None if insecure else described.tls or tls
        backup = backup or (described.backup if described.backup.exists() else described.backup.parent)
    if not addresses:
        raise UserError("name a peer with --peer HOST:PORT, or a device's file that names some with --config FILE")
    memory_bytes = parse_size(memory)
    if not MEMORY_BYTES_MIN <= memory_bytes <= MEMORY_BYTES_MAX or memory_bytes % STEP_BYTES:
        low, high = format_size(MEMORY_BYTES_MIN), format_size(MEMORY_BYTES_MAX)
        raise UserError(f"--memory {memory} must be a multiple of {format_size(STEP_BYTES)} from {low} to {high}")
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise UserError(f"--seconds {seconds:g} must be between {SECONDS_MIN:g} and {SECONDS_MAX:g}")
    return Wanted(
        peers=tuple(dict.fromkeys(addresses)),
        transport=transport,
        backup=None if backup is None else backup.absolute(),
        disk=None if disk is None or str(disk) == "none" else disk.absolute(),
        memory_bytes=memory_bytes,
        seconds=seconds,
        tls=tls,
        insecure=insecure,
    )


async def measure(wanted: Wanted, quiet: bool) -> Report | None:
    """Run it; None when the user ended it. All that was borrowed and made is given back and removed either way."""
    from infiniswap.device.bench.reading import StopFlag, StoppedError
    from infiniswap.device.bench.run import run

    stop = StopFlag()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)

    def tell(what: str) -> None:
        if not quiet:
            click.echo(what, err=True)

    with tempfile.TemporaryDirectory(prefix="isw-bench-") as folder:
        try:
            return await run(wanted, Path(folder), stop, time.monotonic, tell)
        except StoppedError:
            return None


@click.command("bench")
@click.option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="A memory daemon; give it once for each.")
@click.option(
    "--backup", type=click.Path(path_type=Path), metavar="PATH", help="A backup, only read; or its directory."
)
@click.option(
    "--disk",
    type=click.Path(path_type=Path),
    default="/var/tmp",
    show_default=True,
    metavar="DIR",
    help="Where a file is made to measure the local disk, and removed; none: nowhere.",
)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="A device's file: its peers and backup."
)
@click.option(
    "--transport",
    type=click.Choice(("auto", "tcp", "rdma")),
    default="auto",
    show_default=True,
    help="How pages travel; auto: by RDMA where both ends have it, and by TCP.",
)
@click.option("--memory", default="64MiB", show_default=True, metavar="SIZE", help="Borrowed of each peer meanwhile.")
@click.option("--seconds", default=3.0, show_default=True, metavar="S", help="For each measurement; two a place.")
@tls_option
@click.option("--json", "as_json", is_flag=True, help="As JSON: times in microseconds.")
def command(
    peers: tuple[str, ...],
    backup: Path | None,
    disk: Path | None,
    config: Path | None,
    transport: str,
    memory: str,
    seconds: float,
    as_json: bool,
) -> int:
    """Measure whether remote memory pays on these hosts.

    Reads of 4 KiB at random places, one and 32 at a time. Peers lend memory for that and get it back, also after
    Ctrl-C (130). Exit code 7 when a peer cannot be reached, 6 when one has no memory to lend, 1 when a measurement
    failed; what could be measured is told in any case.
    """
    wanted = read_wanted(peers, backup, disk, config, transport, memory, seconds)
    # What a device would log is told in the report; its life here is no news.
    logging.disable(logging.CRITICAL)
    report = asyncio.run(measure(wanted, quiet=as_json or not sys.stderr.isatty()))
    if report is None:
        return INTERRUPTED
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        show([row(place) for place in report.places], COLUMNS, Output(), empty="nothing could be measured")
        for sentence in ["", *report.words(), *report.notes]:
            click.echo(sentence)
    for problem in report.problems:
        click.echo(f"infiniswap: {problem}", err=True)
    return report.code
