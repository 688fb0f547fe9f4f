"""The options of a device, each described once, and the checks that a value needs by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from infiniswap.device.limits import (
    BACKUP_ENGINES,
    HOT_PAGE_IOS_DEFAULT,
    MAP_POLICIES,
    ON_BACKUP_ERROR,
    PEERS_MAX,
    PENDING_BYTES_DEFAULT,
    RDMA_POLL_US_DEFAULT,
    REQUEST_DEADLINE_MS_DEFAULT,
    SLAB_BYTES_DEFAULT,
    TCP_LISTENERS_MAX,
    TRANSPORTS,
)
from infiniswap.shared.address import CONTROL_PORT, HostPort, parse_host_port
from infiniswap.shared.errors import UserError
from infiniswap.shared.options import Option, Options
from infiniswap.shared.service_options import LOG_FORMAT, LOG_LEVEL, METRICS_LISTEN, WEB
from infiniswap.shared.sizes import parse_size


def _boolean(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{what} must be true or false, not '{value}'")
    return value


def _number(what: str, value: object, lowest: float, highest: float) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not lowest <= number <= highest:
        raise UserError(f"{what} '{value}' must be a number between {lowest:g} and {highest:g}")
    return number


def _integer(lowest: int, highest: int) -> Callable[[str, object], int]:
    def convert(what: str, value: object) -> int:
        number = _number(what, value, lowest, highest)
        if number != int(number):
            raise UserError(f"{what} '{value}' must be a whole number")
        return int(number)

    return convert


def _float(lowest: float, highest: float) -> Callable[[str, object], float]:
    return lambda what, value: _number(what, value, lowest, highest)


def _size(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UserError(f"{what} '{value}' is not a size; write for example 64MiB")
    try:
        return parse_size(value)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def _path(what: str, value: object) -> Path:
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not text or "\0" in text or "\n" in text:
        raise UserError(f"{what} must be a path, not '{value!r}'")
    return Path(text).absolute()


def _word(what: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,63}", value, re.ASCII):
        raise UserError(f"{what} '{value}' is no device name; see infiniswap rdma list")
    return value


def _choice(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    def convert(what: str, value: object) -> str:
        if value not in choices:
            raise UserError(f"{what} '{value}' must be one of {', '.join(choices)}")
        return str(value)

    return convert


def _addresses(
    most: int, port_min: int, default_port: int | None = None
) -> Callable[[str, object], tuple[HostPort, ...]]:
    def convert(what: str, value: object) -> tuple[HostPort, ...]:
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [str(value)]
        if len(texts) > most:
            raise UserError(f"{what}: {len(texts)} given, the most is {most}")
        found: list[HostPort] = []
        for text in texts:
            address = parse_host_port(str(text), what, port_min=port_min, default_port=default_port)
            if address.port and address in found:
                raise UserError(f"{what} '{address}' is given twice; name each once")
            found.append(address)
        return tuple(found)

    return convert


OPTIONS = Options(
    (
        Option(
            name="size",
            field="size_bytes",
            convert=_size,
            metavar="SIZE",
            help="Size of the device, a multiple of 4096.",
            example='"8GiB"',
            needed=True,
        ),
        Option(
            name="slab_size",
            field="slab_bytes",
            convert=_size,
            metavar="SIZE",
            help="Unit of mapping, a power of two from 1MiB to 1GiB.",
            default=SLAB_BYTES_DEFAULT,
            is_size=True,
            aliases=("slab",),
        ),
        Option(
            name="backup",
            field="backup",
            convert=_path,
            metavar="FILE",
            help="Raw image or block device that gets everything; created where there is none.",
            example='"/var/lib/infiniswap/NAME.img"',
            needed=True,
        ),
        Option(
            name="peers",
            field="peers",
            convert=_addresses(PEERS_MAX, 1, CONTROL_PORT),
            metavar="HOST[:PORT]",
            help=f"A memory daemon; give it once for each. Its port is {CONTROL_PORT} where none is named.",
            default=(),
            example='["donor1", "donor2:7401"]',
            flags=("--peer",),
            aliases=("peer",),
            many=True,
        ),
        Option(
            name="socket",
            field="socket_path",
            convert=_path,
            metavar="PATH",
            help="UNIX socket for NBD clients.",
            shown="NAME.sock in the runtime directory",
            example='"/run/infiniswap/NAME.sock"',
        ),
        Option(
            name="tcp",
            field="tcp",
            convert=_addresses(TCP_LISTENERS_MAX, 0),
            metavar="HOST:PORT",
            help="Also serve NBD there, to anybody who can connect; port 0: any free one.",
            default=(),
            example='["127.0.0.1:10809"]',
            many=True,
        ),
        Option(
            name="state_dir",
            field="state_dir",
            convert=_path,
            metavar="DIR",
            help="Where page states and leases are kept.",
            shown="/var/lib/infiniswap",
            example='"/var/lib/infiniswap"',
        ),
        Option(
            name="runtime_dir",
            field="runtime_dir",
            convert=_path,
            metavar="DIR",
            help="Where the sockets are made.",
            shown="/run/infiniswap",
            example='"/run/infiniswap"',
        ),
        Option(
            name="map",
            field="map_policy",
            convert=_choice(MAP_POLICIES),
            choices=MAP_POLICIES,
            help="Map slabs that are hot, or all at their first write.",
            default="hot",
            aliases=("map_policy",),
        ),
        Option(
            name="hot_page_ios",
            field="hot_page_ios",
            convert=_float(0.01, 1e9),
            metavar="RATE",
            help="Page I/O per second from which a slab is mapped.",
            default=HOT_PAGE_IOS_DEFAULT,
        ),
        Option(
            name="cold_page_ios",
            field="cold_page_ios",
            convert=_float(0, 1e9),
            metavar="RATE",
            help="Page I/O per second below which a slab is given up.",
            default=None,
            shown="never",
            example="2",
        ),
        Option(
            name="pending_limit",
            field="pending_limit_bytes",
            convert=_size,
            metavar="SIZE",
            help="Most data that waits for the backup; writers wait there.",
            default=PENDING_BYTES_DEFAULT,
            is_size=True,
        ),
        Option(
            name="sparse",
            field="sparse",
            convert=_boolean,
            help="Do not allocate the backup in advance.",
            default=False,
            shown="no-sparse",
            flags=("--sparse/--no-sparse",),
            switch=True,
        ),
        Option(
            name="lock_memory",
            field="lock_memory",
            convert=_boolean,
            help="Fail unless memory can be locked; needed for swap.",
            default=False,
            flags=("--lock-memory/--no-lock-memory",),
            switch=True,
        ),
        Option(
            name="accept_backup",
            field="accept_backup",
            convert=_boolean,
            help="What is on the backup counts, whatever the state or the backup's mark say; "
            "what was newer elsewhere is gone.",
            default=False,
            flags=("--accept-backup/--no-accept-backup", "--accept-stale-backup/--no-accept-stale-backup"),
            aliases=("accept_stale_backup",),
            switch=True,
        ),
        Option(
            name="adopt_image",
            field="adopt_image",
            convert=_boolean,
            help="The backup's content becomes the device's, though it is not known as this device's.",
            default=False,
            flags=("--adopt-image/--no-adopt-image",),
            switch=True,
        ),
        Option(
            name="backup_engine",
            field="backup_engine",
            convert=_choice(BACKUP_ENGINES),
            choices=BACKUP_ENGINES,
            help="How the backup is written.",
            default="auto",
        ),
        Option(
            name="backup_depth",
            field="backup_depth",
            convert=_integer(1, 256),
            metavar="N",
            help="Backup operations in flight, 1 to 256.",
            default=64,
        ),
        Option(
            name="on_backup_error",
            field="on_backup_error",
            convert=_choice(ON_BACKUP_ERROR),
            choices=ON_BACKUP_ERROR,
            help="When the backup fails: serve on and say so, or stop in order.",
            default="degrade",
        ),
        Option(
            name="writeback_delay_ms",
            field="writeback_delay_ms",
            convert=_integer(0, 60_000),
            metavar="MS",
            help="How long a page waits for company on its way to the backup.",
            default=20,
        ),
        Option(
            name="connections_max",
            field="connections_max",
            convert=_integer(1, 1024),
            metavar="N",
            help="NBD connections at once.",
            default=64,
        ),
        Option(
            name="peer_timeout_ms",
            field="peer_timeout_ms",
            convert=_integer(10, 600_000),
            metavar="MS",
            help="A peer silent for so long counts as lost.",
            default=3000,
        ),
        Option(
            name="peer_grace_ms",
            field="peer_grace_ms",
            convert=_integer(0, 600_000),
            metavar="MS",
            help="A peer whose connections broke may come back with its memory for so long; 0: it is lost at once.",
            default=3000,
        ),
        Option(
            name="request_deadline_ms",
            field="request_deadline_ms",
            convert=_integer(10, 600_000),
            metavar="MS",
            help="What a peer has not answered by then goes to the backup, or comes from there.",
            default=REQUEST_DEADLINE_MS_DEFAULT,
        ),
        Option(
            name="client_stall_timeout_ms",
            field="client_stall_timeout_ms",
            convert=_integer(100, 3_600_000),
            metavar="MS",
            help="A client that takes no answer for so long is cut off.",
            default=60_000,
        ),
        Option(
            name="transport",
            field="transport",
            convert=_choice(TRANSPORTS),
            choices=TRANSPORTS,
            help="How pages travel to the peers; auto: over RDMA where both ends have it, else over TCP.",
            default="auto",
        ),
        Option(
            name="rdma_device",
            field="rdma_device",
            convert=_word,
            metavar="NAME",
            help="RDMA device, as in 'infiniswap rdma list'.",
            default=None,
            shown="found",
            example='"mlx5_0"',
        ),
        Option(
            name="rdma_port",
            field="rdma_port",
            convert=_integer(1, 255),
            metavar="N",
            help="Port of the RDMA device.",
            default=None,
            shown="found",
            example="1",
        ),
        Option(
            name="rdma_gid_index",
            field="rdma_gid_index",
            convert=_integer(0, 255),
            metavar="N",
            help="Address to use on that port.",
            default=None,
            shown="found",
            example="3",
        ),
        Option(
            name="rdma_poll_us",
            field="rdma_poll_us",
            convert=_integer(0, 10_000),
            metavar="US",
            help="How long to ask for an RDMA completion again and again before sleeping for it.",
            default=RDMA_POLL_US_DEFAULT,
        ),
        Option(
            name="recovery_timeout_s",
            field="recovery_timeout_s",
            convert=_float(0, 600),
            metavar="S",
            help="How long a restart waits for peers that hold pages.",
            default=15.0,
        ),
        Option(
            name="stop_timeout_s",
            field="stop_timeout_s",
            convert=_float(1, 86_400),
            metavar="S",
            help="How long a stop may take to write everything.",
            default=1800.0,
        ),
        METRICS_LISTEN,
        WEB,
        LOG_LEVEL,
        LOG_FORMAT,
    )
)
