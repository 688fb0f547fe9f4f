"""What the daemon does so that it can act when the host is short of memory: its own pages stay, and it is spared.

Without this its code would be read back from a disk just when everybody waits for that disk. Slab memory is left out:
it is what may go.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

SCORE = -900  # as in the systemd unit: other people's pages live here
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # linux/mman.h
_MADV_POPULATE_READ = 22  # linux/mman.h, since Linux 5.14


def ask_to_be_spared(file: Path = Path("/proc/self/oom_score_adj")) -> bool:
    """Have the OOM killer take others first; False when that is not allowed (it takes CAP_SYS_RESOURCE)."""
    try:
        if int(file.read_text()) > SCORE:
            file.write_text(str(SCORE))
    except (OSError, ValueError) as error:
        log.info("the OOM killer may take the daemon as any other process: %s", error)
        return False
    return True


def lock_own_memory(spared: Iterable[tuple[int, int]]) -> bool:
    """Keep what the daemon has in memory, and what it will touch, there; False when that is not allowed.

    spared: address and length of what is not to be locked: the slabs. What is locked is what it uses, about 55 MiB,
    and the code that it may come to use, about 30 MiB more (measured).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # With a limit on locked memory this fails for the size of the slabs alone, and nothing has changed.
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        reason = os.strerror(ctypes.get_errno())
        log.info("the daemon's own memory is not locked: %s (raise the memlock limit)", reason)
        return False
    for address, length in spared:
        if libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(length)) != 0:
            log.warning("slab memory stays locked: %s", os.strerror(ctypes.get_errno()))
    _bring_in_code(libc)
    return True


def unlock_memory() -> None:
    """Undo lock_own_memory(): for a daemon that is part of another process."""
    ctypes.CDLL(None).munlockall()


def _bring_in_code(libc: ctypes.CDLL) -> None:
    """Read the code of all libraries now, that which runs first when memory is short included."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, permissions, *rest = line.split(maxsplit=5)
            if "x" not in permissions or not rest[-1].startswith("/"):
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            length = ctypes.c_size_t(end - start)
            if libc.madvise(ctypes.c_void_p(start), length, _MADV_POPULATE_READ) and ctypes.get_errno() == errno.EINVAL:
                return  # an older kernel
