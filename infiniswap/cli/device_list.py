"""infiniswap device list: the devices that run on this host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options, runtime_dir_option
from infiniswap.cli.table import Column, columns_help
from infiniswap.cli.watching import show_or_watch, watch_options
from infiniswap.kernel_shim import stripes, sysfs
from infiniswap.kernel_shim.sysfs import NbdDevice
from infiniswap.shared.device_client import DeviceClient, elsewhere, runtime_dir_or_default
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import device_names

COLUMNS = (
    Column("NAME", "name", "name of the device"),
    Column(
        "STATE",
        "state",
        "serving, stopping, failing (a shard does not serve: status says which), dead (killed, not started since), "
        "silent (does not answer), foreign (a kernel "
        "device that attach did not make: nbd-client's, of whatever server); with --all also "
        "stopped, damaged, elsewhere (it runs, with another runtime directory)",
    ),
    Column("SIZE", "size_bytes", "size", right=True, size=True),
    Column("SLAB", "slab_bytes", "size of a slab", right=True, size=True, spare=5),
    Column("SLABS", "slabs", "number of slabs", right=True, default=False),
    Column("MAPPED", "mapped_slabs", "slabs that lie in a peer's memory", right=True),
    Column("PEERS", "peers", "memory daemons it knows", right=True, spare=3),
    Column("CONNS", "connections", "NBD connections open", right=True, default=False),
    Column("NBD", "nbd", "kernel device that it is attached as"),
    Column("DEAD", "nbd_dead", "connections to it that the kernel has given up", right=True, spare=4),
    Column("SWAPPED", "swap_used_bytes", "swapped out to it; a dash where it is no swap area", right=True, size=True),
    Column("PID", "pid", "process", right=True, spare=2),
    Column(
        "UPTIME",
        "uptime_s",
        "seconds since the start",
        right=True,
        default=False,
        format=lambda v: "-" if v is None else f"{v:.0f}",
    ),
    Column("ENGINE", "backup_engine", "how the backup is written: io_uring or threads", default=False),
    Column("BACKUP", "backup", "backup file", default=False),
    Column("LAYOUT", "backup_layout", "how the backup is kept: raw or log", default=False),
    Column("BACKUP SIZE", "backup_bytes", "size of the backup file", right=True, size=True, default=False),
    Column("FREE SEGMENTS", "log_free_segments", "segments of a log that nothing is in", right=True, default=False),
    Column("BACKUP STATE", "backup_state", "good, missing or degraded; the log and /v1/status say why", spare=1),
    Column("URI", "uri", "where NBD clients connect", spare=6),
)
ALL_COLUMNS = (
    *(column for column in COLUMNS if column.heading not in ("NBD", "DEAD", "SWAPPED", "URI", "SLAB", "BACKUP")),
    Column("LOST", "lost_pages", "pages that its last stop could not save; a dash where that is not known", right=True),
    Column("STATE DIR", "state_dir", "folder of its state", spare=4),
    Column("BACKUP", "backup", "backup file", spare=7),
)
ANSWER_TIMEOUT_S = 3.0
AT_ONCE = 16  # devices asked at the same time


def _ask(name: str, runtime_dir: Path) -> dict[str, Any]:
    try:
        with DeviceClient(name, runtime_dir, ANSWER_TIMEOUT_S) as control:
            answer = control.get("/v1/status")
    except UserError as error:
        return {"name": name, "state": "dead" if error.code == ExitCode.NOT_FOUND else "silent"}
    return answer if isinstance(answer, dict) else {"name": name, "state": "silent"}


def list_devices(runtime_dir: Path) -> list[dict[str, Any]]:
    """Status of every device with a control socket in runtime_dir; at least name and state."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: _ask(name, runtime_dir), device_names(runtime_dir)))


def with_kernel_devices(rows: list[dict[str, Any]], root: Path = Path("/")) -> list[dict[str, Any]]:
    """The rows with what the kernel says: nbd (device node), nbd_connections, nbd_dead, swap_used_bytes; else None.

    Kernel devices that attach did not make follow as rows of their own.
    """
    for row in rows:
        if row.get("shards"):
            row.update(of_shards(row["shards"], row["name"], root))
            continue
        device = sysfs.attached(row["name"], root, row.get("socket"))
        area = sysfs.swap_on(device, root) if device else None
        row["nbd"] = device.path if device else None
        identifier, alive = device.identifier if device else None, row.get("connections")
        row["nbd_connections"] = identifier.connections if identifier else None
        row["nbd_dead"] = identifier.dead(alive) if identifier and alive is not None else None
        row["swap_used_bytes"] = area.used_bytes if area else None
    return rows + [_foreign(device, root) for device in sysfs.foreign(root)]


def of_shards(shards: list[dict[str, Any]], whole: str, root: Path = Path("/")) -> dict[str, Any]:
    """What the kernel says of a device with shards: the stripe over them, or their nodes, and sums."""
    rows = [dict(shard) for shard in shards]
    with_kernel_devices(rows, root)
    stripe = stripes.find(whole, root)
    nodes = [row["nbd"] for row in rows if row["nbd"]]
    found: dict[str, Any] = {"nbd": stripe.path if stripe else " ".join(nodes) or None}
    for key in ("nbd_connections", "nbd_dead", "swap_used_bytes"):
        values = [row[key] for row in rows if row[key] is not None]
        found[key] = sum(values) if values else None
    return found


def _foreign(device: NbdDevice, root: Path) -> dict[str, Any]:
    area = sysfs.swap_on(device, root)
    return {
        "name": None,
        "state": "foreign",
        "size_bytes": device.size_bytes,
        "nbd": device.path,
        "swap_used_bytes": area.used_bytes if area else None,
        "pid": device.pid,
    }


@click.command("list", epilog=columns_help(COLUMNS))
@click.option("-a", "--all", "all_of_them", is_flag=True, help="Also those that do not run, with what is kept of them.")
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where --all looks for them.")
@output_options
@watch_options
@runtime_dir_option
def command(
    all_of_them: bool,
    state_dir: Path | None,
    watching: bool,
    interval_s: float,
    runtime_dir: Path | None,
    **output: Any,
) -> int | None:
    """List the devices that run on this host."""
    folder = runtime_dir_or_default(runtime_dir)

    def look() -> list[dict[str, Any]]:
        rows = with_kernel_devices(list_devices(folder))
        return with_kept_devices(rows, state_dir, folder) if all_of_them else rows

    return show_or_watch(
        look,
        ALL_COLUMNS if all_of_them else COLUMNS,
        make_output(**output),
        watching,
        interval_s,
        f"no devices in {folder}{elsewhere(folder)}",
    )


def with_kept_devices(rows: list[dict[str, Any]], state_dir: Path | None, runtime_dir: Path) -> list[dict[str, Any]]:
    """The rows, those of dead devices with what is kept of them, and more rows for those that do not run."""
    from infiniswap.device.inventory import kept_devices, state_dirs

    kept = kept_devices(state_dirs(state_dir, runtime_dir))
    running = {str(row.get("state_dir")) for row in rows}
    dead = {row["name"]: row for row in rows if row["state"] == "dead"}
    for device in kept:
        if str(device.directory) in running:
            continue
        if device.name in dead:
            dead[device.name].update({**device.as_row(), "state": "dead"})
        else:
            rows.append(device.as_row())
    return rows
