"""sd_notify(3): tells systemd that the service is ready, and what it is doing."""

from __future__ import annotations

import os
import socket

STATUS_BYTES_MAX = 512


def notify(*, ready: bool = False, stopping: bool = False, status: str | None = None) -> bool:
    """Send READY=1, STOPPING=1, STATUS=…; False when not started by systemd or when systemd does not take it.

    Never blocks and never raises: a service must not depend on who watches it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return False
    lines = ["READY=1"] if ready else []
    if stopping:
        lines.append("STOPPING=1")
    if status is not None:
        lines.append("STATUS=" + " ".join(status.split())[:STATUS_BYTES_MAX])
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            sock.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        return False
    return True
