"""infiniswap device serve: the device service in the foreground."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import click

from infiniswap.device.last_start import Described, describe
from infiniswap.device.options import OPTIONS
from infiniswap.device.shard_process import is_own_shard, tell_failure
from infiniswap.kernel_shim import protection
from infiniswap.shared.errors import UserError
from infiniswap.shared.logs import name_shard, start_logging
from infiniswap.shared.shard_names import is_shard, whole_of

log = logging.getLogger(__name__)


async def _serve(described: Described) -> int:
    config = described.loaded.config
    if config.lock_memory:
        protection.prepare()
    from infiniswap.device.shards import check_number

    check_number(config)
    if config.shards > 1:
        from infiniswap.device.shards_serve import serve_shards

        return await serve_shards(described)
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
    shard = name is not None and is_shard(name)
    if shard and not is_own_shard(name or ""):
        raise UserError(f"'{name}' is a shard, and is started with the others: serve '{whole_of(name or '')}'")
    try:
        described = describe(name, given, config_file)
        start_logging(described.loaded.config.log_level, described.loaded.config.log_format)
        if shard:
            name_shard(name or "")
        for note in described.notes:
            log.info("%s", note)
        return asyncio.run(_serve(described))
    except UserError as error:
        if not shard:
            raise
        return tell_failure(error)  # to the parent, which says it once for all of them
