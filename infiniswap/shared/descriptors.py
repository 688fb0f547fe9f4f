"""File descriptors: as many as may be had, and the last ones are not for clients.

The lowest free number is what the system gives next, so the number of a new connection tells how many are in use. The
memory monitor, the record of leases and connections to peers need a few whatever clients do; and whoever asks a program
how it stands must get through where page I/O has used up its share.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket

log = logging.getLogger(__name__)

KEPT_FROM_CONTROL_MAX = 32  # descriptors that no control connection takes; fewer where few are allowed
KEPT_FROM_PAGES_MAX = 64
EXHAUSTED = (errno.EMFILE, errno.ENFILE)


def raise_limit(wanted: int) -> None:
    """Raise the soft limit of open files as far as is needed and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("only %d open files are allowed, fewer than the %d for all connections", allowed, wanted)


def too_many(fd: int, *, for_control: bool) -> bool:
    """Whether the connection that just got fd uses what is kept for other things."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return False
    kept = min(KEPT_FROM_CONTROL_MAX, limit // 8) if for_control else min(KEPT_FROM_PAGES_MAX, limit // 4)
    return fd >= limit - kept


async def readable(sock: socket.socket) -> None:
    """Until sock has something to take."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
