"""Descriptors handed over by a service manager: LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES (sd_listen_fds(3))."""

from __future__ import annotations

import os
from typing import NamedTuple

from infiniswap.shared.errors import UserError

FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START
LISTEN_FDS_MAX = 64


class Passed(NamedTuple):
    """A descriptor with the name that it was given, "" without one; whoever takes it owns it."""

    name: str
    fd: int


def passed_descriptors() -> list[Passed]:
    """What was handed to this process; a second call finds nothing, nor does a child process. UserError: no number."""
    pid, count = os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS")
    if pid is None or count is None or pid != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not count.isascii() or not count.isdigit() or int(count) > LISTEN_FDS_MAX:
        raise UserError(f"LISTEN_FDS={count}: must be a number up to {LISTEN_FDS_MAX}")
    names += [""] * (int(count) - len(names))
    return [Passed(names[index], FIRST_PASSED_FD + index) for index in range(int(count))]
