"""The options of a device, each described once, and the checks that a value needs by itself."""

from __future__ import annotations

import re

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
from infiniswap.shared.host_names import is_address
from infiniswap.shared.options import Option, Options
from infiniswap.shared.service_options import LOG_FORMAT, LOG_LEVEL, METRICS_LISTEN, WEB
from infiniswap.shared.values import addresses, boolean, choice, decimal, integer, path, size


def _word(what: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,63}", value, re.ASCII):
        raise UserError(f"{what} '{value}' is no device name; see infiniswap rdma list")
    return value


def _domain(what: str, value: object) -> str:
    label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    if not isinstance(value, str) or len(value) > 200 or not re.fullmatch(rf"{label}(\.{label})*\.?", value, re.ASCII):
        raise UserError(f"{what} '{value}' is no domain; write for example example.net")
    return value.rstrip(".")


def _name_server(what: str, value: object) -> HostPort:
    server = parse_host_port(str(value), what, default_port=53)
    if not is_address(server.host):
        raise UserError(f"{what} '{value}' must be an IP address: who should look up its name?")
    return server


OPTIONS = Options(
    (
        Option(
            name="size",
            field="size_bytes",
            convert=size,
            metavar="SIZE",
            help="Size of the device, a multiple of 4096.",
            example='"8GiB"',
            needed=True,
        ),
        Option(
            name="slab_size",
            field="slab_bytes",
            convert=size,
            metavar="SIZE",
            help="Unit of mapping, a power of two from 1MiB to 1GiB.",
            default=SLAB_BYTES_DEFAULT,
            is_size=True,
            aliases=("slab",),
        ),
        Option(
            name="backup",
            field="backup",
            convert=path,
            metavar="FILE",
            help="Raw image or block device that gets everything; created where there is none.",
            example='"/var/lib/infiniswap/NAME.img"',
            needed=True,
        ),
        Option(
            name="peers",
            field="peers",
            convert=addresses(PEERS_MAX, 1, CONTROL_PORT),
            metavar="HOST[:PORT]",
            help=f"A memory daemon; give it once for each. Its port is {CONTROL_PORT} where none is named.",
            default=(),
            example='["donor1", "donor2:7401"]',
            flags=("--peer",),
            aliases=("peer",),
            many=True,
            live=True,
        ),
        Option(
            name="socket",
            field="socket_path",
            convert=path,
            metavar="PATH",
            help="UNIX socket for NBD clients.",
            shown="NAME.sock in the runtime directory",
            example='"/run/infiniswap/NAME.sock"',
        ),
        Option(
            name="tcp",
            field="tcp",
            convert=addresses(TCP_LISTENERS_MAX, 0),
            metavar="HOST:PORT",
            help="Also serve NBD there, to anybody who can connect; port 0: any free one.",
            default=(),
            example='["127.0.0.1:10809"]',
            many=True,
        ),
        Option(
            name="state_dir",
            field="state_dir",
            convert=path,
            metavar="DIR",
            help="Where page states and leases are kept.",
            shown="/var/lib/infiniswap",
            example='"/var/lib/infiniswap"',
        ),
        Option(
            name="runtime_dir",
            field="runtime_dir",
            convert=path,
            metavar="DIR",
            help="Where the sockets are made.",
            shown="/run/infiniswap",
            example='"/run/infiniswap"',
        ),
        Option(
            name="map",
            field="map_policy",
            convert=choice(MAP_POLICIES),
            choices=MAP_POLICIES,
            help="Map slabs that are hot, or all at their first write.",
            default="hot",
            aliases=("map_policy",),
            live=True,
        ),
        Option(
            name="hot_page_ios",
            field="hot_page_ios",
            convert=decimal(0.01, 1e9),
            metavar="RATE",
            help="Page I/O per second from which a slab is mapped.",
            default=HOT_PAGE_IOS_DEFAULT,
            live=True,
        ),
        Option(
            name="cold_page_ios",
            field="cold_page_ios",
            convert=decimal(0, 1e9),
            metavar="RATE",
            help="Page I/O per second below which a slab is given up.",
            default=None,
            shown="never",
            example="2",
            live=True,
        ),
        Option(
            name="pending_limit",
            field="pending_limit_bytes",
            convert=size,
            metavar="SIZE",
            help="Most data that waits for the backup; writers wait there.",
            default=PENDING_BYTES_DEFAULT,
            is_size=True,
        ),
        Option(
            name="sparse",
            field="sparse",
            convert=boolean,
            help="Do not allocate the backup in advance.",
            default=False,
            shown="no-sparse",
            flags=("--sparse/--no-sparse",),
            switch=True,
        ),
        Option(
            name="lock_memory",
            field="lock_memory",
            convert=boolean,
            help="Fail unless memory can be locked; needed for swap.",
            default=False,
            flags=("--lock-memory/--no-lock-memory",),
            switch=True,
        ),
        Option(
            name="accept_backup",
            field="accept_backup",
            convert=boolean,
            help="What is on the backup counts, whatever the state or the backup's mark say; "
            "what was newer elsewhere is gone.",
            default=False,
            flags=("--accept-backup/--no-accept-backup", "--accept-stale-backup/--no-accept-stale-backup"),
            aliases=("accept_stale_backup",),
            switch=True,
            once=True,
        ),
        Option(
            name="adopt_image",
            field="adopt_image",
            convert=boolean,
            help="The backup's content becomes the device's, though it is not known as this device's.",
            default=False,
            flags=("--adopt-image/--no-adopt-image",),
            switch=True,
            once=True,
        ),
        Option(
            name="backup_engine",
            field="backup_engine",
            convert=choice(BACKUP_ENGINES),
            choices=BACKUP_ENGINES,
            help="How the backup is written.",
            default="auto",
        ),
        Option(
            name="backup_depth",
            field="backup_depth",
            convert=integer(1, 256),
            metavar="N",
            help="Backup operations in flight, 1 to 256.",
            default=64,
        ),
        Option(
            name="on_backup_error",
            field="on_backup_error",
            convert=choice(ON_BACKUP_ERROR),
            choices=ON_BACKUP_ERROR,
            help="When the backup fails: serve on and say so, or stop in order.",
            default="degrade",
            live=True,
        ),
        Option(
            name="writeback_delay_ms",
            field="writeback_delay_ms",
            convert=integer(0, 60_000),
            metavar="MS",
            help="How long a page waits for company on its way to the backup.",
            default=20,
        ),
        Option(
            name="connections_max",
            field="connections_max",
            convert=integer(1, 1024),
            metavar="N",
            help="NBD connections at once.",
            default=64,
        ),
        Option(
            name="peer_timeout_ms",
            field="peer_timeout_ms",
            convert=integer(10, 600_000),
            metavar="MS",
            help="A peer silent for so long counts as lost.",
            default=3000,
        ),
        Option(
            name="peer_grace_ms",
            field="peer_grace_ms",
            convert=integer(0, 600_000),
            metavar="MS",
            help="A peer whose connections broke may come back with its memory for so long; 0: it is lost at once.",
            default=3000,
        ),
        Option(
            name="request_deadline_ms",
            field="request_deadline_ms",
            convert=integer(10, 600_000),
            metavar="MS",
            help="What a peer has not answered by then goes to the backup, or comes from there.",
            default=REQUEST_DEADLINE_MS_DEFAULT,
        ),
        Option(
            name="client_stall_timeout_ms",
            field="client_stall_timeout_ms",
            convert=integer(100, 3_600_000),
            metavar="MS",
            help="A client that takes no answer for so long is cut off.",
            default=60_000,
        ),
        Option(
            name="transport",
            field="transport",
            convert=choice(TRANSPORTS),
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
            convert=integer(1, 255),
            metavar="N",
            help="Port of the RDMA device.",
            default=None,
            shown="found",
            example="1",
        ),
        Option(
            name="rdma_gid_index",
            field="rdma_gid_index",
            convert=integer(0, 255),
            metavar="N",
            help="Address to use on that port.",
            default=None,
            shown="found",
            example="3",
        ),
        Option(
            name="rdma_poll_us",
            field="rdma_poll_us",
            convert=integer(0, 10_000),
            metavar="US",
            help="How long to ask for an RDMA completion again and again before sleeping for it.",
            default=RDMA_POLL_US_DEFAULT,
        ),
        Option(
            name="recovery_timeout_s",
            field="recovery_timeout_s",
            convert=decimal(0, 600),
            metavar="S",
            help="How long a restart waits for peers that hold pages.",
            default=15.0,
        ),
        Option(
            name="stop_timeout_s",
            field="stop_timeout_s",
            convert=decimal(1, 86_400),
            metavar="S",
            help="How long a stop may take to write everything.",
            default=1800.0,
            live=True,
        ),
        Option(
            name="peers_max",
            field="peers_max",
            convert=integer(1, PEERS_MAX),
            metavar="N",
            help="Places for peers, those that come later included; each takes 0.6 MiB.",
            default=None,
            shown=f"4 more than at the start and 8 at least, or with discovery {PEERS_MAX}",
            example="16",
        ),
        Option(
            name="discover_file",
            field="discover_file",
            convert=path,
            metavar="FILE",
            help="Also take peers from this list, as it is kept up to date: JSON or YAML in the shape of Prometheus' "
            "file_sd.",
            default=None,
            shown="no list",
            example='"/etc/infiniswap/peers.json"',
        ),
        Option(
            name="discover_dns",
            field="discover_dns",
            convert=_domain,
            metavar="DOMAIN",
            help="Also take peers from the DNS SRV records of _infiniswap._tcp.DOMAIN.",
            default=None,
            shown="no domain",
            example='"example.net"',
        ),
        Option(
            name="discover_server",
            field="discover_server",
            convert=_name_server,
            metavar="IP[:PORT]",
            help="Name server to ask for them.",
            default=None,
            shown="those of /etc/resolv.conf",
            example='"127.0.0.1:8600"',
        ),
        Option(
            name="discover_grace_s",
            field="discover_grace_s",
            convert=decimal(0, 86_400),
            metavar="S",
            help="A peer that is not named any more leaves after so long, in order.",
            default=300.0,
            live=True,
        ),
        METRICS_LISTEN,
        WEB,
        LOG_LEVEL,
        LOG_FORMAT,
    )
)
