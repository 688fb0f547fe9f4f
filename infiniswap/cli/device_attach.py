"""infiniswap device attach: makes a running device /dev/nbdN, and swap when asked to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.device.config import read_file
from infiniswap.kernel_shim import attach
from infiniswap.kernel_shim.attach_options import ATTACH_OPTIONS, ZSWAP_OPTIONS
from infiniswap.kernel_shim.zswap import Wanted
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import TIMEOUT_S, fetch, runtime_dir_or_default
from infiniswap.shared.errors import UserError, one_line
from infiniswap.shared.layers import Source, Stated
from infiniswap.shared.output import say
from infiniswap.shared.paths import config_file


def options_for(name: str, file: Path | None, given: Mapping[str, object]) -> dict[str, Any]:
    """Fields of AttachRequest: what is given here, else in [attach] of the device's file, else the defaults; UserError.

    file: that the running service was started with.
    """
    fields = ATTACH_OPTIONS.defaults()
    if file is None and (usual := config_file(name)).exists():
        file = usual
    stated = {key: each for key, each in read_file(file).items() if key.startswith("attach.")}
    stated.update(
        {f"attach.{key}": Stated(value, Source.COMMAND_LINE) for key, value in given.items() if value is not None}
    )
    for key, each in stated.items():
        option = ATTACH_OPTIONS.find(key.removeprefix("attach."))
        what = option.flag if each.source is Source.COMMAND_LINE else f"{each.where}: {option.name}"
        fields[option.field] = option.convert(what, each.value)
    return fields


def wanted_zswap(options: dict[str, Any], *, swap: bool, given: Mapping[str, object]) -> Wanted | None:
    """Take out of options what is asked of zswap; None where it is to be left alone. UserError."""
    zswap, compressor, percent = (options.pop(key) for key in ZSWAP_OPTIONS)
    refined = given["zswap_compressor"] is not None or given["zswap_max_pool_percent"] is not None
    if not zswap and refined:
        raise UserError("--zswap-compressor and --zswap-max-pool-percent are for --zswap only")
    if not zswap or not (swap or given["zswap"]):  # the file's is for when it is swap
        return None
    return Wanted(compressor, percent)


@click.command("attach")
@click.argument("name")
@click.option("--swap", is_flag=True, help="Make it a swap area and use it, unless foreign data is on it.")
@ATTACH_OPTIONS.on(ATTACH_OPTIONS.names)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="NBD socket to attach to, where the device's own answer is not to be asked for.",
)
@runtime_dir_option
def command(name: str, swap: bool, socket_path: Path | None, runtime_dir: Path | None, **given: Any) -> None:
    """Make the running device NAME a kernel device, or swap.

    Prints the device node, /dev/nbdN. What is not given here is taken from [attach] in the device's file.
    """
    runtime_dir = runtime_dir_or_default(runtime_dir)
    open_connections, deadline_ms, file = None, None, None
    if socket_path is None:
        status = fetch(name, "/v1/status", runtime_dir, silence_s=TIMEOUT_S)
        socket_path, deadline_ms = Path(status["socket"]), status.get("request_deadline_ms")
        file = Path(status["config_file"]) if status.get("config_file") else None

        def open_connections() -> int:
            return int(fetch(name, "/v1/status", runtime_dir, silence_s=TIMEOUT_S)["connections"])

    options = options_for(check_name(name), file, given)
    zswap = wanted_zswap(options, swap=swap, given=given)
    if not swap and given["priority"] is None:
        options["priority"] = None  # the file's is for when it is swap
    if options["timeout_s"] is None:
        options["timeout_s"] = attach.timeout_for(deadline_ms)
    request = attach.AttachRequest(
        name=name,
        socket_path=socket_path,
        runtime_dir=runtime_dir,
        swap=swap,
        deadline_ms=deadline_ms,
        zswap=zswap,
        **options,
    )
    done = attach.attach(
        request,
        say=lambda line: say(f"infiniswap: {one_line(line)}"),
        open_connections=open_connections,
    )
    click.echo(done.device.path)
