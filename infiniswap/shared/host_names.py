"""Host names of peers: looked up beside everything else, again and again, and with a word on what may be mistyped.

A lookup can take a minute where the name service does not answer. Each has a thread of its own, which is left behind at
the deadline and at exit: the event loop's own threads would be used up, and waited for when the program ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import UserError

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT_S = 5.0
THREADS_MAX = 256  # 64 peers have a control and perhaps a page address each, and lookups left behind end in a minute
HOSTS_PATH = Path("/etc/hosts")
HOSTS_BYTES_MAX = 1 << 20
LIKENESS_MIN = 0.75  # difflib's ratio from which a name may be meant

SocketAddress = tuple[socket.AddressFamily, tuple[Any, ...]]


def is_address(host: str) -> bool:
    """Whether host is an IP address, with or without a zone, and no name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


async def look_up(host: str, port: int, family: int = 0) -> list[SocketAddress]:
    """Stream socket addresses of host; OSError when it is unknown. The caller sets the deadline."""
    if is_address(host):
        return _get(host, port, family)
    if threading.active_count() >= THREADS_MAX:
        raise OSError("too many names are being looked up")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[SocketAddress]] = loop.create_future()

    def settle(found: list[SocketAddress] | None, error: OSError | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(found or [])
        else:
            future.set_exception(error)

    def work() -> None:
        found: list[SocketAddress] | None = None
        failure: OSError | None = None
        try:
            found = _get(host, port, family)
        except OSError as error:
            failure = error
        except ValueError as error:  # a label of more than 63 bytes
            failure = OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, found, failure)

    try:
        threading.Thread(target=work, name=f"look up {host}", daemon=True).start()
    except RuntimeError as error:
        raise OSError(f"no thread for a lookup: {error}") from None
    return await future


def _get(host: str, port: int, family: int) -> list[SocketAddress]:
    return [(kind, target) for kind, _, _, _, target in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)]


async def known_addresses(peers: Iterable[HostPort]) -> dict[HostPort, frozenset[tuple[str, int]]]:
    """What each peer's name is known as now; those of which nothing is known are missing."""
    asked = tuple(dict.fromkeys(peers))
    found = await asyncio.gather(*map(_addresses, asked))
    return {peer: addresses for peer, addresses in zip(asked, found, strict=True) if addresses}


async def check_peers(peers: tuple[HostPort, ...], *, recovering: bool) -> None:
    """Warn of names that are unknown now, which may come; UserError when two peers are one daemon.

    recovering: only a warning then, for pages in remote memory must not be lost over it.
    """
    looked_up = await asyncio.gather(*map(_addresses, peers))
    unknown = [peer for peer, addresses in zip(peers, looked_up, strict=True) if addresses is None]
    for peer in unknown:
        others = [other.host for other in peers if other not in unknown]
        hint = suggestion(peer.host, others)
        log.warning("peer %s: unknown host%s; it is looked up again until it is known", peer, hint)
    seen: dict[tuple[str, int], HostPort] = {}
    for peer, addresses in zip(peers, looked_up, strict=True):
        for address in addresses or ():
            other = seen.setdefault(address, peer)
            if other is peer:
                continue
            message = f"peers {other} and {peer} are the same daemon ({address[0]}); name each once"
            if not recovering:
                raise UserError(message)
            log.warning("%s", message)


async def _addresses(peer: HostPort) -> frozenset[tuple[str, int]] | None:
    """Addresses of a peer, none when that takes too long; None when there is no such name."""
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            found = await look_up(peer.host, peer.port)
    except TimeoutError:
        log.warning("peer %s: its name cannot be looked up within %g s; going on", peer, LOOKUP_TIMEOUT_S)
        return frozenset()
    except OSError:
        return None
    return frozenset((str(target[0]), int(target[1])) for _, target in found)


def suggestion(host: str, others: Iterable[str], hosts_path: Path = HOSTS_PATH) -> str:
    """A name much like host that is known here, as a question in brackets; "" without one."""
    known = {name: "another --peer" for name in others if not is_address(name)}
    for name in _names_in(hosts_path):
        known.setdefault(name, str(hosts_path))
    known.pop(host, None)
    like = difflib.get_close_matches(host.lower(), known, n=1, cutoff=LIKENESS_MIN)
    return f" (did you mean {like[0]}, as in {known[like[0]]}?)" if like else ""


def _names_in(hosts_path: Path) -> list[str]:
    """Names of a file as hosts(5)."""
    try:
        with hosts_path.open("rb") as stream:
            text = stream.read(HOSTS_BYTES_MAX).decode(errors="replace")
    except OSError:
        return []
    return [name for line in text.splitlines() for name in line.partition("#")[0].split()[1:]]
