"""The options of the daemon, each described once, and the checks that a value needs by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from infiniswap.daemon.operators import Operators
from infiniswap.daemon.quotas import PATTERN, RULES_MAX, Rule, parse_rule
from infiniswap.daemon.rdma import RdmaMode
from infiniswap.policy.headroom import auto_memory_bytes
from infiniswap.shared.address import CONTROL_PORT, HostPort
from infiniswap.shared.errors import UserError
from infiniswap.shared.options import Option, Options
from infiniswap.shared.service_options import LOG_FORMAT, LOG_LEVEL, METRICS_LISTEN, TLS, WEB
from infiniswap.shared.sizes import exact_size, parse_size
from infiniswap.shared.values import listen_address

Kind = TypeVar("Kind", bound=StrEnum)

LISTEN_DEFAULT = HostPort("127.0.0.1", CONTROL_PORT)
LEASE_TTL_S_MIN = 1.0
LEASE_TTL_S_MAX = 86400.0
STOP_TIMEOUT_S_DEFAULT = 60.0  # systemd waits 90 s for the end of a service, and clearing memory takes its time, too
STOP_TIMEOUT_S_MAX = 3600.0
THREADS_MAX = 64
RDMA_PORT_MAX = 255  # a port number has 8 bits (InfiniBand Architecture Specification, 3.5.3)
GID_INDEX_MAX = 255
FUSES_MAX = 64
RDMA_DEVICE_CHARACTERS_MAX = 63  # IB_DEVICE_NAME_MAX of the kernel, less its final zero
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryAmount:
    """An amount of this host's memory: a size, or percent of all of it, or, with neither, all but the headroom."""

    size_bytes: int | None = None
    percent: float | None = None

    def of(self, total_bytes: int, headroom_bytes: int) -> int:
        """Bytes, where the host (or the limit of its control group) has total_bytes."""
        if self.size_bytes is not None:
            return self.size_bytes
        if self.percent is not None:
            return int(total_bytes * self.percent / 100) // MIB * MIB
        return auto_memory_bytes(total_bytes, headroom_bytes)

    def __str__(self) -> str:
        """As the user may write it."""
        if self.size_bytes is not None:
            return exact_size(self.size_bytes)
        return "auto" if self.percent is None else f"{self.percent:g}%"


def _memory(option: str, value: object) -> MemoryAmount:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return MemoryAmount()
    amount = _size_or_share(option, value)
    if amount.percent == 0:
        raise UserError(f"{option} 0% is nothing to lend")
    return amount


def _size_or_share(option: str, value: object) -> MemoryAmount:
    text = value.strip() if isinstance(value, str) else ""
    if not text.endswith("%"):
        return MemoryAmount(size_bytes=_size(option, value))
    return MemoryAmount(percent=_number(option, text[:-1], 0, 100))


def _size(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{option} must be a size such as 512MiB")
    try:
        return parse_size(value)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _flag(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{option} must be true or false")
    return value


def _number(option: str, value: object, low: float, high: float) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise UserError(f"{option} '{value}' is not a number") from None
    if not low <= number <= high:
        raise UserError(f"{option} {number:g} must be between {low:g} and {high:g}")
    return number


def _lease_ttl(option: str, value: object) -> float:
    return _number(option, value, LEASE_TTL_S_MIN, LEASE_TTL_S_MAX)


def _lease_grace(option: str, value: object) -> float:
    return _number(option, value, 0.0, LEASE_TTL_S_MAX)


def _path(option: str, value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserError(f"{option} must be the path of a socket")
    return Path(value).absolute()


def _stop_timeout(option: str, value: object) -> float:
    return _number(option, value, 0, STOP_TIMEOUT_S_MAX)


def _whole(option: str, value: object, low: int, high: int) -> int:
    number = _number(option, value, low, high)
    if number != int(number):
        raise UserError(f"{option} must be a whole number")
    return int(number)


def _threads(option: str, value: object) -> int:
    return _whole(option, value, 1, THREADS_MAX)


def _one_of(kind: type[Kind]) -> Callable[[str, object], Kind]:
    def convert(option: str, value: object) -> Kind:
        try:
            return kind(str(value).lower())
        except ValueError:
            raise UserError(f"{option} must be one of {', '.join(kind)}") from None

    return convert


def _rdma_device(option: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= RDMA_DEVICE_CHARACTERS_MAX or "/" in value:
        raise UserError(f"{option} must be the name of an RDMA device, for example rxe0 ('rdma link' shows them)")
    return value


def _rdma_port(option: str, value: object) -> int:
    return _whole(option, value, 1, RDMA_PORT_MAX)


def _gid_index(option: str, value: object) -> int:
    return _whole(option, value, 0, GID_INDEX_MAX)


def _texts(value: object) -> list[object]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]


def _patterns(option: str, value: object) -> tuple[str, ...]:
    texts = _texts(value)
    for text in texts:
        if not isinstance(text, str) or not PATTERN.fullmatch(text):
            raise UserError(f"{option} '{text}' is no pattern of a host's name; write for example web* or 10.0.0.*")
    return tuple(map(str, texts))


def _quotas(option: str, value: object) -> tuple[Rule, ...]:
    texts = _texts(value)
    if len(texts) > RULES_MAX:
        raise UserError(f"{option}: {len(texts)} rules are more than {RULES_MAX}")
    return tuple(parse_rule(option, text) for text in texts)


def _fuses(option: str, value: object) -> int:
    return _whole(option, value, 0, FUSES_MAX)


OPTIONS = Options(
    (
        Option(
            name="memory",
            field="memory",
            convert=_memory,
            metavar="SIZE",
            help="Memory to lend at most: a multiple of 1MiB such as 512MiB, a share of all memory such as 50%, "
            "or auto: all memory less the headroom.",
            example='"auto"',
            needed=True,
            live=True,
        ),
        Option(
            name="listen",
            field="listen",
            convert=listen_address(CONTROL_PORT),
            metavar="HOST[:PORT]",
            help="Control API; port 0: any free one.",
            default=LISTEN_DEFAULT,
        ),
        Option(
            name="data_listen",
            field="data_listen",
            convert=listen_address(),
            metavar="HOST:PORT",
            help="Page I/O; port 0: any free one.",
            default=None,
            shown="of --listen, one port above it: 7402; any free one where that is 0",
            example='"127.0.0.1:7402"',
        ),
        Option(
            name="headroom",
            field="headroom",
            convert=_size_or_share,
            metavar="SIZE",
            help="Memory to keep free for the host itself: a size, or a share of all memory such as 15%.",
            default=None,
            shown="10 % of the host, 512MiB at least",
            example='"1GiB"',
            live=True,
        ),
        Option(
            name="lease_memory",
            field="lease_bytes_max",
            convert=_size,
            metavar="SIZE",
            help="Memory that one lease may hold at most.",
            default=None,
            shown="as much as there is",
            example='"4GiB"',
            live=True,
        ),
        Option(
            name="huge_pages",
            field="huge_pages",
            convert=_flag,
            help="Lend huge pages, which the host must have reserved.",
            default=False,
            switch=True,
        ),
        Option(
            name="lease_ttl_s",
            field="lease_ttl_s",
            convert=_lease_ttl,
            metavar="SECONDS",
            help="Life of a lease without a heartbeat.",
            default=60.0,
        ),
        Option(
            name="lease_grace_s",
            field="lease_grace_s",
            convert=_lease_grace,
            metavar="SECONDS",
            help="How much longer its slabs are kept for a device that comes back, unless the memory is needed.",
            default=None,
            shown="as long as --lease-ttl-s",
            example="60",
        ),
        Option(
            name="keep_memory",
            field="keep_memory",
            convert=_path,
            metavar="PATH",
            help="Socket of a little process that keeps leases and pages while this one is restarted.",
            default=None,
            shown="systemd keeps them, where it runs this",
            example='"/run/infiniswap/holder"',
        ),
        Option(
            name="stop_timeout_s",
            field="stop_timeout_s",
            convert=_stop_timeout,
            metavar="SECONDS",
            help="How long a stop (SIGTERM, SIGINT) waits for devices to move their pages away; 0: it does not. "
            "A second signal ends the waiting.",
            default=STOP_TIMEOUT_S_DEFAULT,
            live=True,
        ),
        Option(
            name="operators",
            field="operators",
            convert=_one_of(Operators),
            metavar="WHO",
            help="Whose 'infiniswap donor' commands are taken: local (of this host's programs), "
            "anyone (who reaches the control API).",
            default=Operators.LOCAL,
        ),
        Option(
            name="threads",
            field="threads",
            convert=_threads,
            metavar="N",
            help="Threads for page I/O.",
            shown="one per core, up to 4",
            example="4",
        ),
        Option(
            name="rdma",
            field="rdma",
            convert=_one_of(RdmaMode),
            metavar="WHEN",
            help=f"Page I/O over RDMA: {', '.join(RdmaMode)}.",
            default=RdmaMode.AUTO,
            shown="auto, beside TCP",
        ),
        Option(
            name="rdma_device",
            field="rdma_device",
            convert=_rdma_device,
            metavar="NAME",
            help="RDMA device.",
            default=None,
            shown="the one with the --listen address",
            example='"mlx5_0"',
        ),
        Option(
            name="rdma_port",
            field="rdma_port",
            convert=_rdma_port,
            metavar="N",
            help="Its port.",
            default=None,
            shown="the first that is active",
            example="1",
        ),
        Option(
            name="rdma_gid_index",
            field="rdma_gid_index",
            convert=_gid_index,
            metavar="N",
            help="Its GID.",
            default=None,
            shown="one that reaches the device that asks",
            example="3",
        ),
        Option(
            name="fuses",
            field="fuses",
            convert=_fuses,
            metavar="N",
            help="Tiny processes that the OOM killer takes first, so that lent memory goes instead; 0: none.",
            default=16,
        ),
        Option(
            name="lock_memory",
            field="lock_memory",
            convert=_flag,
            help="Keep the daemon's own memory (not the slabs) from being paged out, where that is allowed.",
            default=True,
            shown="yes",
            flags=("--lock-memory/--no-lock-memory",),
            switch=True,
        ),
        *TLS,
        *(
            Option(
                name=f"may_{role}",
                field=f"may_{role}",
                convert=_patterns,
                metavar="PATTERN",
                help=f"Names in certificates of those who may {what}; *, ? and [a-z] stand for many.",
                default=(),
                shown=shown,
                example='["web*", "10.0.0.*"]',
                many=True,
                live=True,
            )
            for role, what, shown in (
                ("borrow", "take leases, for --tls-dir", "all of the cluster"),
                ("look", "read offers and metrics", "all of the cluster, and who may more"),
                ("drain", "give the orders of 'infiniswap donor'", "as --operators says"),
            )
        ),
        Option(
            name="quota",
            field="quotas",
            convert=_quotas,
            metavar="RULE",
            help="What each host may have in all, by the name in its certificate, for --tls-dir; the first pattern "
            "that fits counts.",
            default=(),
            shown="leases=64 connections=256",
            example='["web* leases=4 memory=8GiB connections=16", "* leases=8"]',
            many=True,
            live=True,
        ),
        METRICS_LISTEN,
        WEB,
        replace(LOG_LEVEL, default="warning"),
        LOG_FORMAT,
    )
)
