"""infiniswap device attach: makes a running device /dev/nbdN, and swap when asked to."""

from __future__ import annotations

from pathlib import Path

import click

from infiniswap.cli.common_options import runtime_dir_option
from infiniswap.kernel_shim import attach
from infiniswap.kernel_shim.zswap import Wanted
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import TIMEOUT_S, fetch, runtime_dir_or_default
from infiniswap.shared.errors import UserError, one_line
from infiniswap.shared.output import say

INDEX_MAX = (1 << 20) - 1  # MINORMASK: more minors a driver cannot have


def parse_index(text: str) -> int | None:
    """N of /dev/nbdN, or None for the word auto. UserError for anything else."""
    if text == "auto":
        return None
    number = text.removeprefix("/dev/").removeprefix("nbd")
    if not number.isascii() or not number.isdigit() or int(number) > INDEX_MAX:
        raise UserError(f"--index '{text}' must be auto or a number such as 0 (for /dev/nbd0)")
    return int(number)


@click.command("attach")
@click.argument("name")
@click.option("--index", default="auto", show_default=True, metavar="N|auto", help="Which /dev/nbdN to become.")
@click.option(
    "--connections",
    type=int,
    default=attach.CONNECTIONS_DEFAULT,
    show_default=True,
    metavar="K",
    help="Sockets to use.",
)
@click.option("--swap", is_flag=True, help="Make it a swap area and use it, unless foreign data is on it.")
@click.option("--priority", type=int, metavar="P", help="Swap priority, 0 to 32767; higher is used first.")
@click.option("--discard/--no-discard", default=True, show_default=True, help="Let swap give freed pages back.")
@click.option(
    "--zswap", is_flag=True, help="With --swap: switch zswap on before it; detach puts back what was changed."
)
@click.option(
    "--zswap-compressor",
    metavar="NAME",
    help="With --zswap.  [default: zstd, lz4 or lzo-rle, the first there is]",
)
@click.option(
    "--zswap-max-pool-percent", type=int, metavar="P", help="With --zswap: most of memory for it.  [default: as it is]"
)
@click.option(
    "--timeout",
    "timeout_s",
    type=int,
    metavar="S",
    help="Seconds until an unanswered request is sent again.  [default: 10, more when the device may take longer]",
)
@click.option(
    "--dead-conn-timeout",
    "dead_conn_timeout_s",
    type=int,
    default=attach.DEAD_CONN_TIMEOUT_S_DEFAULT,
    show_default=True,
    metavar="S",
    help="Seconds that requests wait for a device service that is down.",
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="NBD socket to attach to, where the device's own answer is not to be asked for.",
)
@runtime_dir_option
def command(
    name: str,
    index: str,
    connections: int,
    swap: bool,
    priority: int | None,
    discard: bool,
    zswap: bool,
    zswap_compressor: str | None,
    zswap_max_pool_percent: int | None,
    timeout_s: int | None,
    dead_conn_timeout_s: int,
    socket_path: Path | None,
    runtime_dir: Path | None,
) -> None:
    """Make the running device NAME a kernel device, or swap.

    Prints the device node, /dev/nbdN.
    """
    runtime_dir = runtime_dir_or_default(runtime_dir)
    wanted = parse_index(index)
    if not zswap and (zswap_compressor is not None or zswap_max_pool_percent is not None):
        raise UserError("--zswap-compressor and --zswap-max-pool-percent are for --zswap only")
    open_connections, deadline_ms = None, None
    if socket_path is None:
        status = fetch(name, "/v1/status", runtime_dir, silence_s=TIMEOUT_S)
        socket_path, deadline_ms = Path(status["socket"]), status.get("request_deadline_ms")

        def open_connections() -> int:
            return int(fetch(name, "/v1/status", runtime_dir, silence_s=TIMEOUT_S)["connections"])

    request = attach.AttachRequest(
        name=check_name(name),
        socket_path=socket_path,
        runtime_dir=runtime_dir,
        index=wanted,
        connections=connections,
        timeout_s=attach.timeout_for(deadline_ms) if timeout_s is None else timeout_s,
        dead_conn_timeout_s=dead_conn_timeout_s,
        swap=swap,
        priority=priority,
        discard=discard,
        deadline_ms=deadline_ms,
        zswap=Wanted(zswap_compressor, zswap_max_pool_percent) if zswap else None,
    )
    done = attach.attach(
        request,
        say=lambda line: say(f"infiniswap: {one_line(line)}"),
        open_connections=open_connections,
    )
    click.echo(done.device.path)
