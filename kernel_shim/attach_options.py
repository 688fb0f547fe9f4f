"""The options of `device attach`, each described once: flags, and keys of [attach] in a device's file."""

from __future__ import annotations

import re

from infiniswap.kernel_shim import swap
from infiniswap.shared.errors import UserError
from infiniswap.shared.options import Option, Options
from infiniswap.shared.values import boolean, integer

CONNECTIONS_DEFAULT = 4
CONNECTIONS_MAX = 16
DEAD_CONN_TIMEOUT_S_DEFAULT = 600
INDEX_MAX = (1 << 20) - 1  # MINORMASK: more minors a driver cannot have
SECONDS_MAX = 1_000_000


def parse_index(what: str, value: object) -> int | None:
    """N of /dev/nbdN, or None for the word auto. UserError for anything else."""
    if value == "auto":
        return None
    number = str(value).removeprefix("/dev/").removeprefix("nbd")
    if isinstance(value, bool) or not number.isascii() or not number.isdigit() or int(number[:8]) > INDEX_MAX:
        raise UserError(f"{what} '{value}' must be auto or a number such as 0 (for /dev/nbd0)")
    return int(number)


def _compressor(what: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", value, re.ASCII):
        raise UserError(f"{what} '{value}' is no compressor's name; write for example zstd")
    return value


ZSWAP_OPTIONS = ("zswap", "zswap_compressor", "zswap_max_pool_percent")
ATTACH_OPTIONS = Options(
    (
        Option(
            name="index",
            field="index",
            convert=parse_index,
            metavar="N|auto",
            help="Which /dev/nbdN to become.",
            default=None,
            shown="auto",
            example='"auto"',
        ),
        Option(
            name="connections",
            field="connections",
            convert=integer(1, CONNECTIONS_MAX),
            metavar="K",
            help="Sockets to use.",
            default=CONNECTIONS_DEFAULT,
        ),
        Option(
            name="priority",
            field="priority",
            convert=integer(0, swap.PRIORITY_MAX),
            metavar="P",
            help="Swap priority, 0 to 32767; higher is used first.",
            default=None,
            shown="the kernel's choice, below all others",
            example="10",
        ),
        Option(
            name="discard",
            field="discard",
            convert=boolean,
            help="Let swap give freed pages back.",
            default=True,
            shown="discard",
            flags=("--discard/--no-discard",),
            switch=True,
        ),
        Option(
            name="zswap",
            field="zswap",
            convert=boolean,
            help="With --swap: switch zswap on before it; detach puts back what was changed.",
            default=False,
            shown="no-zswap",
            flags=("--zswap/--no-zswap",),
            switch=True,
        ),
        Option(
            name="zswap_compressor",
            field="zswap_compressor",
            convert=_compressor,
            metavar="NAME",
            help="With --zswap: how pages are compressed.",
            default=None,
            shown="zstd, lz4 or lzo-rle, the first there is",
            example='"zstd"',
        ),
        Option(
            name="zswap_max_pool_percent",
            field="zswap_max_pool_percent",
            convert=integer(1, 100),
            metavar="P",
            help="With --zswap: most of memory for it.",
            default=None,
            shown="as it is",
            example="20",
        ),
        Option(
            name="timeout_s",
            field="timeout_s",
            convert=integer(1, SECONDS_MAX),
            metavar="S",
            help="Seconds until an unanswered request is sent again.",
            default=None,
            shown="10, more when the device may take longer",
            example="10",
            flags=("--timeout",),
        ),
        Option(
            name="dead_conn_timeout_s",
            field="dead_conn_timeout_s",
            convert=integer(1, SECONDS_MAX),
            metavar="S",
            help="Seconds that requests wait for a device service that is down.",
            default=DEAD_CONN_TIMEOUT_S_DEFAULT,
            flags=("--dead-conn-timeout",),
        ),
    )
)
