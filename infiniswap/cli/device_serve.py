"""infiniswap device serve: the device service in the foreground."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import click

from infiniswap.device.last_start import Described, describe
from infiniswap.device.options import OPTIONS
from infiniswap.kernel_shim import protection
from infiniswap.shared.logs import start_logging

log = logging.getLogger(__name__)


async def _serve(described: Described) -> int:
    config = described.loaded.config
    if config.lock_memory:
        protection.prepare()
    from infiniswap.device.serve import serve
    from infiniswap.device.settings import Settings

    return await serve(config, Settings(described))


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
@OPTIONS.on(OPTIONS.names)
def command(name: str | None, config_file: Path | None, **given: Any) -> int:
    """Serve device NAME until SIGTERM or 'infiniswap device stop NAME'.

    NAME alone, started before, is started with the options of its last start, and those that are given now; else with
    those of its file in /etc/infiniswap. Prints one line, 'ready URI', on stdout when NBD clients can connect. A stop
    writes everything to the backup first.
    """
    described = describe(name, given, config_file)
    start_logging(described.loaded.config.log_level, described.loaded.config.log_format)
    for note in described.notes:
        log.info("%s", note)
    return asyncio.run(_serve(described))
