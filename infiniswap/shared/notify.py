"""Tells the service manager how the service stands (sd_notify(3)), where there is one."""

from __future__ import annotations

import array
import logging
import os
import socket
from collections.abc import Sequence

log = logging.getLogger(__name__)


def is_managed() -> bool:
    """Whether a service manager wants to be told."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def notify(*assignments: str, descriptors: Sequence[int] = ()) -> bool:
    """Send assignments such as READY=1 to NOTIFY_SOCKET; False where there is none or it cannot be reached.

    descriptors: those that FDSTORE=1 is about.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            sock.sendmsg(["\n".join(assignments).encode()], rights, 0, address)
    except OSError as error:
        log.debug("the service manager cannot be told: %s", error)
        return False
    return True
