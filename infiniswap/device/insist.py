"""`--transport rdma` is kept to from the start: a host that has no RDMA does not serve as if it had."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from infiniswap.device.config import DeviceConfig
from infiniswap.rdma.devices import list_ports
from infiniswap.rdma.path import RdmaUnavailableError, choose_gid, choose_port
from infiniswap.shared.errors import ExitCode, UserError

_LIBRARY = "libibverbs.so.1"


def has_library(name: str = _LIBRARY) -> bool:
    """Whether the engine will find the library that opens ports."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def insist_on_rdma(config: DeviceConfig, root: Path = Path("/"), library: Callable[[], bool] = has_library) -> None:
    """UserError RESOURCES where RDMA is insisted on and this host cannot do it. root: of /sys.

    A peer without RDMA is another matter: it may get some, and is not used until then.
    """
    if config.transport != "rdma":
        return
    try:
        port = choose_port(list_ports(root), device=config.rdma_device, number=config.rdma_port)
        choose_gid(port, index=config.rdma_gid_index)
    except RdmaUnavailableError as error:
        reason = str(error)
    else:
        if library():
            return
        reason = f"{_LIBRARY} is not installed (apt-get install libibverbs1 ibverbs-providers)"
    raise UserError(
        f"--transport rdma: {reason}; 'infiniswap doctor' tells more, --transport auto starts without",
        ExitCode.RESOURCES,
    )
