"""A process that makes one call on nbd, RDMA or device mapper: `python -m infiniswap.kernel_shim.worker '{"op…": …}'`.

It exists so that a call which never returns from the kernel hangs this process and not its caller (see commands.py).
Answers one line of JSON on stdout: {"index": N}, {"devices": […]}, {} or {"errno": E, "message": "…"}.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from infiniswap.kernel_shim.device_mapper import DeviceMapper
from infiniswap.kernel_shim.nbd_netlink import NBD, NbdClientFlag
from infiniswap.kernel_shim.rdma_netlink import RDMA


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
    return {"devices": [{"index": s.index, "connected": s.connected} for s in nbd.device_status()]}


def rdma_add(rdma: RDMA, request: dict[str, Any]) -> dict[str, Any]:
    """NEWLINK of a soft-RoCE device."""
    rdma.new_link(request["name"], request["netdev"])
    return {}


def rdma_delete(rdma: RDMA, request: dict[str, Any]) -> dict[str, Any]:
    """DELLINK by name; ENODEV when there is no such device, or it is being removed."""
    for device in rdma.devices():
        if device.name == request["name"]:
            rdma.delete_link(device.index)
            return {}
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def stripe_create(mapper: DeviceMapper, request: dict[str, Any]) -> dict[str, Any]:
    """A device-mapper device of one target."""
    return {"minor": mapper.create(request["name"], request["sectors"], request["target"], request["parameters"])}


def stripe_remove(mapper: DeviceMapper, request: dict[str, Any]) -> dict[str, Any]:
    """Take it away."""
    mapper.remove(request["name"])
    return {}


# Socket to open, and what to do with it.
OPERATIONS: dict[str, tuple[Callable[[], Any], Callable[[Any, dict[str, Any]], dict[str, Any]]]] = {
    "connect": (NBD, connect),
    "disconnect": (NBD, disconnect),
    "status": (NBD, status),
    "rdma-add": (RDMA, rdma_add),
    "rdma-delete": (RDMA, rdma_delete),
    "stripe-create": (DeviceMapper, stripe_create),
    "stripe-remove": (DeviceMapper, stripe_remove),
}


def main(arguments: list[str]) -> int:
    """Do what the request says; 0 also for an error, which is in the answer."""
    request = json.loads(arguments[0])
    try:
        open_socket, operation = OPERATIONS[request["operation"]]
        with open_socket() as netlink:
            answer = operation(netlink, request)
    except NetlinkError as error:
        answer = {"errno": error.code, "message": os.strerror(error.code)}
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO, "message": error.strerror or str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
