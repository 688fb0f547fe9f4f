"""A process that makes one call on kernel nbd and ends: `python -m infiniswap.kernel_shim.worker '{"operation": …}'`.

It exists so that a call which never returns from the kernel hangs this process and not its caller (see commands.py).
Answers one line of JSON on stdout: {"index": N}, {"devices": […]}, {} or {"errno": E, "message": "…"}.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from infiniswap.kernel_shim.nbd_netlink import NBD, NbdClientFlag


def connect(nbd: NBD, request: dict[str, Any]) -> dict[str, Any]:
    """CONNECT with inherited descriptors."""
    index = nbd.connect(
        request["sockets"],
        size_bytes=request["size_bytes"],
        index=request.get("index"),
        block_size_bytes=request["block_size_bytes"],
        timeout_s=request["timeout_s"],
        dead_conn_timeout_s=request["dead_conn_timeout_s"],
        server_flags=request["server_flags"],
        client_flags=NbdClientFlag.NONE,
        backend_identifier=request["identifier"],
    )
    return {"index": index}


def disconnect(nbd: NBD, request: dict[str, Any]) -> dict[str, Any]:
    """DISCONNECT, unless someone has the device open for himself: a mount (in any namespace), swap, a mapping."""
    node = request.get("node")
    fd = os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC) if node and os.path.exists(node) else -1  # noqa: PTH110
    try:
        nbd.disconnect(request["index"])
    finally:
        if fd >= 0:
            os.close(fd)
    return {}


def status(nbd: NBD, _request: dict[str, Any]) -> dict[str, Any]:
    """STATUS of all devices."""
    return {"devices": [{"index": s.index, "connected": s.connected} for s in nbd.status()]}


OPERATIONS = {"connect": connect, "disconnect": disconnect, "status": status}


def main(arguments: list[str]) -> int:
    """Do what the request says; 0 also for an error, which is in the answer."""
    request = json.loads(arguments[0])
    try:
        with NBD() as nbd:
            answer = OPERATIONS[request["operation"]](nbd, request)
    except NetlinkError as error:
        answer = {"errno": error.code, "message": os.strerror(error.code)}
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO, "message": error.strerror or str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
