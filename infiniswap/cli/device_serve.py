"""infiniswap device serve: the device service in the foreground."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from infiniswap.device.config import (
    BACKUP_ENGINES,
    MAP_POLICIES,
    ON_BACKUP_ERROR,
    TRANSPORTS,
    DeviceConfig,
    load_config,
)
from infiniswap.kernel_shim import protection
from infiniswap.shared.output import start_logging

LOG_LEVELS = ("debug", "info", "warning", "error")


async def _serve(config: DeviceConfig) -> int:
    if config.lock_memory:
        protection.prepare()
    from infiniswap.device.serve import serve

    return await serve(config)


# Values stay text here: load_config checks those of the command line and of the file alike.
@click.command(
    "serve",
    epilog="Sizes are powers of 1024: 4096, 64KiB, 512MiB, 1.5GiB. "
    "The file has the same options, with _ for -, and 'peers' as a list.",
)
@click.argument("name", required=False)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file with options; those given here win.",
)
@click.option("--size", metavar="SIZE", help="Size of the device, a multiple of 4096.")
@click.option("--slab-size", metavar="SIZE", help="Unit of mapping, a power of two from 1MiB to 1GiB. [default: 64MiB]")
@click.option(
    "--backup", metavar="FILE", help="Raw image or block device that gets everything; created where there is none."
)
@click.option("--peer", "peers", metavar="HOST:PORT", multiple=True, help="A memory daemon; give it once for each.")
@click.option(
    "--socket", metavar="PATH", help="UNIX socket for NBD clients. [default: NAME.sock in the runtime directory]"
)
@click.option(
    "--tcp",
    metavar="HOST:PORT",
    multiple=True,
    help="Also serve NBD there, to anybody who can connect; port 0: any free one.",
)
@click.option(
    "--state-dir", metavar="DIR", help="Where page states and leases are kept. [default: /var/lib/infiniswap]"
)
@click.option("--runtime-dir", metavar="DIR", help="Where the sockets are made. [default: /run/infiniswap]")
@click.option(
    "--map", type=click.Choice(MAP_POLICIES), help="Map slabs that are hot, or all at their first write. [default: hot]"
)
@click.option("--hot-page-ios", metavar="RATE", help="Page I/O per second from which a slab is mapped. [default: 20]")
@click.option(
    "--cold-page-ios", metavar="RATE", help="Page I/O per second below which a slab is given up. [default: never]"
)
@click.option(
    "--pending-limit", metavar="SIZE", help="Most data that waits for the backup; writers wait there. [default: 64MiB]"
)
@click.option("--sparse/--no-sparse", default=None, help="Do not allocate the backup in advance. [default: no-sparse]")
@click.option("--lock-memory/--no-lock-memory", default=None, help="Fail unless memory can be locked; needed for swap.")
@click.option(
    "--accept-backup/--no-accept-backup",
    "--accept-stale-backup/--no-accept-stale-backup",
    "accept_backup",
    default=None,
    help="What is on the backup counts, whatever the state or the backup's mark say; what was newer elsewhere is gone.",
)
@click.option(
    "--adopt-image/--no-adopt-image",
    default=None,
    help="The backup's content becomes the device's, though it is not known as this device's.",
)
@click.option("--backup-engine", type=click.Choice(BACKUP_ENGINES), help="How the backup is written. [default: auto]")
@click.option("--backup-depth", metavar="N", help="Backup operations in flight, 1 to 256. [default: 64]")
@click.option(
    "--on-backup-error",
    type=click.Choice(ON_BACKUP_ERROR),
    help="When the backup fails: serve on and say so, or stop in order. [default: degrade]",
)
@click.option(
    "--writeback-delay-ms",
    metavar="MS",
    help="How long a page waits for company on its way to the backup. [default: 20]",
)
@click.option("--connections-max", metavar="N", help="NBD connections at once. [default: 64]")
@click.option("--peer-timeout-ms", metavar="MS", help="A peer silent for so long counts as lost. [default: 3000]")
@click.option(
    "--request-deadline-ms",
    metavar="MS",
    help="What a peer has not answered by then goes to the backup, or comes from there. [default: 2000]",
)
@click.option(
    "--client-stall-timeout-ms",
    metavar="MS",
    help="A client that takes no answer for so long is cut off. [default: 60000]",
)
@click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    help="How pages travel to the peers; auto: over RDMA where both ends have it, else over TCP. [default: auto]",
)
@click.option("--rdma-device", metavar="NAME", help="RDMA device, as in 'infiniswap rdma list'. [default: found]")
@click.option("--rdma-port", metavar="N", help="Port of the RDMA device. [default: found]")
@click.option("--rdma-gid-index", metavar="N", help="Address to use on that port. [default: found]")
@click.option(
    "--rdma-poll-us",
    metavar="US",
    help="How long to ask for an RDMA completion again and again before sleeping for it. [default: 50]",
)
@click.option(
    "--recovery-timeout-s", metavar="S", help="How long a restart waits for peers that hold pages. [default: 15]"
)
@click.option("--stop-timeout-s", metavar="S", help="How long a stop may take to write everything. [default: 1800]")
@click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True, help="What is logged on stderr."
)
def command(name: str | None, config_file: Path | None, log_level: str, **given: Any) -> int:
    """Serve device NAME until SIGTERM or 'infiniswap device stop NAME'.

    Prints one line, 'ready URI', on stdout when NBD clients can connect. A stop writes everything to the backup first.
    """
    config = load_config(name, given, config_file)
    start_logging(log_level, "%H:%M:%S")
    return asyncio.run(_serve(config))
