"""infiniswap donor status: how a memory daemon and its host stand, and who holds what of its memory."""

from __future__ import annotations

import json
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options
from infiniswap.cli.donor_address import address_argument
from infiniswap.cli.donor_client import connect
from infiniswap.cli.donor_drain import progress_line
from infiniswap.cli.table import Column, Output, choose, columns_help, show, shown_lines
from infiniswap.cli.watching import refuse_json, watch, watch_options
from infiniswap.shared.address import HostPort
from infiniswap.shared.durations import format_duration
from infiniswap.shared.operator_messages import DonorStatus
from infiniswap.shared.sizes import format_size

COLUMNS = (
    Column("DEVICE", "device", "name of the device that holds slabs here"),
    Column("HOST", "host", "address from which it took the lease"),
    Column("SLABS", "slabs", "slabs that it holds", right=True),
    Column("SIZE", "bytes", "memory that they are", right=True, size=True),
    Column("SLAB", "slab_bytes", "size of one", right=True, size=True, default=False),
    Column("CONNS", "connections", "connections and queue pairs for page I/O", right=True),
    Column(
        "EXPIRES",
        "expires_in_s",
        "after which it ends unless it is renewed",
        right=True,
        format=lambda value: format_duration(float(value)),
    ),
    Column("LEASE", "lease", "number of the lease", default=False),
)


def facts(address: HostPort, status: DonorStatus, in_bytes: bool) -> list[tuple[str, str]]:
    """What is no lease, as pairs of label and text."""

    def size(value: int) -> str:
        return str(value) if in_bytes else format_size(value)

    memory, host, drain = status.memory, status.host, status.drain
    up = format_duration(status.uptime_s)
    found = [
        ("Daemon", f"{address}, version {status.version}, incarnation {status.incarnation[:8]}, up {up}"),
        ("State", str(status.state)),
        ("Lent", f"{size(memory.lent_bytes)} of at most {size(memory.limit_bytes)}; {size(memory.free_bytes)} free"),
        ("Taken", f"{size(memory.used_bytes)} promised, {size(memory.occupied_bytes)} really occupied"),
    ]
    if host is None:
        found.append(("Host", "not measured: huge pages are reserved"))
    else:
        pressure = "not known" if host.pressure_percent is None else f"{host.pressure_percent:.1f} %"
        available = f"{size(host.available_bytes)} available"
        if host.percpu_bytes:  # whoever compares this with MemAvailable misses so much
            available += f" ({size(host.percpu_bytes)} in lists of its processors)"
        found += [
            ("Host", f"{available} of {size(host.total_bytes)}; memory pressure {pressure}"),
            ("Headroom", f"{size(host.headroom_bytes)} are kept free"),
        ]
    found.append(("Evictions", f"{status.evicted} slabs given back when asked to, {status.evicted_by_force} by force"))
    if drain is not None:
        found.append(("Drain", f"{drain.state}: {progress_line(status)}"))
    return found


def status_lines(address: HostPort, status: DonorStatus, output: Output) -> list[str]:
    """All of it but JSON; with -o or -n the table of leases alone."""
    rows = [lease.as_json() for lease in status.leases]
    if output.columns is not None or output.no_headings:
        return shown_lines(rows, COLUMNS, output)
    pairs = facts(address, status, output.in_bytes)
    width = max(len(label) for label, _ in pairs) + 1
    text = [f"{(label + ':').ljust(width)}  {text}" for label, text in pairs]
    return [*text, "", *shown_lines(rows, COLUMNS, output)] if rows else text


def show_status(address: HostPort, status: DonorStatus, output: Output) -> None:
    """Print it: as JSON whole, with -o or -n the table of leases alone, else all of it."""
    if output.as_json and output.columns is None:
        click.echo(json.dumps(status.as_json(), indent=2))
        return
    rows = [lease.as_json() for lease in status.leases]
    if output.as_json or output.columns is not None or output.no_headings:
        show(rows, COLUMNS, output, empty=f"{address} lends nothing: no device holds a lease")
        return
    click.echo("\n".join(status_lines(address, status, output)))


@click.command("status", epilog=columns_help(COLUMNS))
@address_argument
@output_options
@watch_options
def command(address: HostPort, watching: bool, interval_s: float, **output: Any) -> int | None:
    """Show the memory daemon at HOST:PORT and who holds what.

    Its version, memory, host, evictions, and which device holds how much. With -o or -n only the table of leases.
    """
    how = make_output(**output)

    def look() -> DonorStatus:
        with connect(address) as donor:
            return donor.status()

    if not watching:
        show_status(address, look(), how)
        return None
    refuse_json(how.as_json, "infiniswap donor status HOST:PORT")
    choose(COLUMNS, how.columns)
    return watch(lambda _: "\n".join(status_lines(address, look(), how)), interval_s)
