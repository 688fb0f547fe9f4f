"""infiniswap device attach: makes a running device /dev/nbdN, and swap when asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.device.config import read_file
from infiniswap.kernel_shim import attach, shards
from infiniswap.kernel_shim.attach_options import ATTACH_OPTIONS, ZSWAP_OPTIONS
from infiniswap.kernel_shim.zswap import Wanted
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import TIMEOUT_S, fetch, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError, one_line
from infiniswap.shared.layers import Source, Stated
from infiniswap.shared.output import say
from infiniswap.shared.paths import config_file
from infiniswap.shared.shard_names import is_shard, whole_of


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
@click.option("--unless-attached", is_flag=True, help="Succeed when it is attached already, for the same use.")
@runtime_dir_option
def command(
    name: str,
    swap: bool,
    socket_path: Path | None,
    unless_attached: bool,
    runtime_dir: Path | None,
    **given: Any,
) -> None:
    """Make the running device NAME a kernel device, or swap.

    Prints the device node, /dev/nbdN; with shards all of them with --swap, else /dev/dm-N. What is not given here is
    taken from [attach] in the device's file.
    """
    runtime_dir = runtime_dir_or_default(runtime_dir)
    status: Mapping[str, Any] = {}
    if socket_path is None:
        status = fetch(name, "/v1/status", runtime_dir, silence_s=TIMEOUT_S)
    file = Path(status["config_file"]) if status.get("config_file") else None
    options = options_for(check_name(name), file, given)
    zswap = wanted_zswap(options, swap=swap, given=given)
    if not swap and given["priority"] is None:
        options["priority"] = None  # the file's is for when it is swap
    deadline_ms = status.get("request_deadline_ms")
    if options["timeout_s"] is None:
        options["timeout_s"] = attach.timeout_for(deadline_ms)

    def part(name: str, socket: Path) -> shards.Part:
        def open_connections() -> int:
            return int(fetch(name, "/v1/status", runtime_dir, silence_s=TIMEOUT_S)["connections"])

        request = attach.AttachRequest(
            name=name,
            socket_path=socket,
            runtime_dir=runtime_dir,
            swap=swap,
            deadline_ms=deadline_ms,
            zswap=zswap,
            **options,
        )
        return shards.Part(request, None if socket_path is not None else open_connections)

    def told(line: str) -> None:
        say(f"infiniswap: {one_line(line)}")

    if is_shard(name):
        raise UserError(f"'{name}' is a part of device '{whole_of(name)}'; attach that", ExitCode.REFUSED)
    if rows := status.get("shards"):
        parts = [part(row["name"], Path(row["socket"])) for row in rows]
        nodes = shards.attached_nodes(name, parts) if unless_attached else []
        if not nodes:
            check_served(rows)
            nodes = attach_shards(name, parts, told)
        click.echo("\n".join(nodes))
        return
    only = part(name, socket_path or Path(status["socket"]))
    if unless_attached and (nodes := shards.attached_nodes(name, [only])):
        click.echo(nodes[0])
        return
    done = attach.attach(only.request, say=told, open_connections=only.open_connections)
    click.echo(done.device.path)


def check_served(shards: Sequence[Mapping[str, Any]]) -> None:
    """UserError when one of them does not serve."""
    for row in shards:
        if row["state"] == "dead":
            raise UserError(
                f"shard '{row['name']}' does not serve ({row['why']}); try again when it does", ExitCode.FAILED
            )


def attach_shards(name: str, parts: list[shards.Part], told: Callable[[str], None]) -> list[str]:
    """Attach all shards of device name; the nodes to use."""
    first = parts[0].request
    if first.swap and first.priority is None:
        told(f"swap priority {shards.PRIORITY_DEFAULT} for all, so that the kernel fills them in turn (--priority)")
    parts = [
        shards.Part(shards.with_options(each.request, number), each.open_connections)
        for number, each in enumerate(parts)
    ]
    return shards.attach_all(name, parts, say=told)
