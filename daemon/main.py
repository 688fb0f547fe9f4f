"""infiniswapd: the memory daemon's command line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from infiniswap import __version__
from infiniswap.daemon.config import load
from infiniswap.daemon.options import OPTIONS
from infiniswap.shared.logs import start_logging
from infiniswap.shared.output import hold_standard_streams
from infiniswap.shared.paths import config_file
from infiniswap.shared.program import run_program

LOGGING = ("log_level", "log_format")  # last in --help
EPILOG = (
    "Exit codes: 0 stopped by SIGTERM or SIGINT, 2 wrong option, 3 no such file, 4 port or kept memory in use, "
    "5 other hosts reach it and it has no certificate, or the socket of --keep-memory is somebody else's, "
    "6 not enough memory."
)


@click.command(
    "infiniswapd",
    epilog=EPILOG,
    help="Lend this host's free memory to devices: control over HTTP and JSON, page I/O over NBD. "
    "Prints 'ready http://HOST:PORT' when it serves. Beyond this host it lends to hosts with a certificate of its "
    "cluster (infiniswap cluster); with --insecure to whoever reaches it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@OPTIONS.on([name for name in OPTIONS.names if name not in LOGGING])
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file with the same options; these here win.",
)
@OPTIONS.on(LOGGING)
@click.version_option(__version__, "-V", "--version", prog_name="infiniswapd")
def command(file: Path | None, **options: object) -> int:
    """Check the options and serve."""
    usual = config_file("infiniswapd")
    if file is None and options["memory"] is None and usual.exists():
        file = usual
    loaded = load(options, file)
    start_logging(loaded.config.log_level, loaded.config.log_format)
    # Imported late, so that --help and a wrong option need neither the compiled engine nor aiohttp.
    from infiniswap.daemon.reload import Settings
    from infiniswap.daemon.service import serve

    return asyncio.run(serve(loaded.config, Settings(loaded, options, file)))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_program("infiniswapd", command, arguments)


def main() -> None:
    """Entry point of infiniswapd."""
    hold_standard_streams()
    sys.exit(run())
