"""infiniswapd: the memory daemon's command line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from infiniswap import __version__
from infiniswap.daemon.config import LISTEN_DEFAULT, LOG_LEVELS, load_config
from infiniswap.daemon.rdma import RdmaMode
from infiniswap.shared.output import hold_standard_streams, start_logging
from infiniswap.shared.program import run_program

EPILOG = (
    "Exit codes: 0 stopped by SIGTERM or SIGINT, 2 wrong option, 3 no such file, 4 port in use, 6 not enough memory."
)


@click.command(
    "infiniswapd",
    epilog=EPILOG,
    help="Lend this host's free memory to devices: control over HTTP and JSON, page I/O over NBD. "
    "Prints 'ready http://HOST:PORT' when it serves. Whoever reaches the listen address may borrow.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--memory", metavar="SIZE", help="Memory to lend at most, for example 512MiB; a multiple of 1MiB.")
@click.option("--listen", metavar="HOST:PORT", help=f"Control API; port 0: any free one. [default: {LISTEN_DEFAULT}]")
@click.option("--data-listen", metavar="HOST:PORT", help="Page I/O. [default: any free port of the --listen host]")
@click.option("--headroom", metavar="SIZE", help="Memory to keep free. [default: 10 % of the host, 512MiB at least]")
@click.option("--huge-pages", is_flag=True, default=None, help="Lend huge pages, which the host must have reserved.")
@click.option("--lease-ttl-s", metavar="SECONDS", help="Life of a lease without a heartbeat. [default: 60]")
@click.option("--threads", metavar="N", help="Threads for page I/O. [default: one per core, up to 4]")
@click.option("--rdma", metavar="WHEN", help=f"Page I/O over RDMA: {', '.join(RdmaMode)}. [default: auto, beside TCP]")
@click.option("--rdma-device", metavar="NAME", help="RDMA device. [default: the one with the --listen address]")
@click.option("--rdma-port", metavar="N", help="Its port. [default: the first that is active]")
@click.option("--rdma-gid-index", metavar="N", help="Its GID. [default: one that reaches the device that asks]")
@click.option("--config", "file", metavar="FILE", type=Path, help="TOML file with the same options; these here win.")
@click.option("--log-level", metavar="LEVEL", help=f"One of {', '.join(LOG_LEVELS)}. [default: warning]")
@click.version_option(__version__, "-V", "--version", prog_name="infiniswapd")
def command(file: Path | None, **options: object) -> int:
    """Check the options and serve."""
    config = load_config(options, file)
    start_logging(config.log_level)
    # Imported late, so that --help and a wrong option need neither the compiled engine nor aiohttp.
    from infiniswap.daemon.service import serve

    return asyncio.run(serve(config))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_program("infiniswapd", command, arguments)


def main() -> None:
    """Entry point of infiniswapd."""
    hold_standard_streams()
    sys.exit(run())
