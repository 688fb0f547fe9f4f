"""Who uses a device service: the kernel devices that are connected to it, ours or not, and any other NBD client.

The kernel does not tell which service a device that plain nbd-client has attached belongs to; the service's own count
of open connections does tell that somebody uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from infiniswap.kernel_shim import sysfs

SETTLE_TIMEOUT_S = 3.0  # connections that were let go a moment ago may still be in the count
_POLL_S = 0.05


def count_open(connections: Callable[[], int]) -> int:
    """What connections() comes to: 0 as soon as it is, else what it still is after SETTLE_TIMEOUT_S."""
    limit = time.monotonic() + SETTLE_TIMEOUT_S
    while (count := connections()) > 0 and time.monotonic() < limit:
        time.sleep(_POLL_S)
    return count


def describe(count: int, root: Path = Path("/")) -> str:
    """The open connections in words, with the kernel devices that they may belong to."""
    text = f"{count} NBD connection{'s are' if count != 1 else ' is'} open"
    others = [device.path for device in sysfs.foreign(root)]
    if not others:
        return text
    return f"{text} ({', '.join(others)} attached by others, such as nbd-client)"
