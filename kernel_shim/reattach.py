"""A device service that starts again puts its own connections under the kernel device that its predecessor served.

Between the predecessor's end and this, requests wait in the kernel for the dead-connection time-out. Rules of
drivers/block/nbd.c that this rests on: only sockets that the kernel has found dead are replaced; RECONFIGURE answers
success also when it took none; the number of sockets is fixed at CONNECT; the identifier must be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infiniswap.kernel_shim import protection, real_time, sysfs
from infiniswap.kernel_shim.attach import KernelConnections, negotiate
from infiniswap.kernel_shim.caller import Caller
from infiniswap.kernel_shim.kernel_call import CALL_TIMEOUT_S
from infiniswap.kernel_shim.sysfs import NbdDevice
from infiniswap.shared.errors import UserError

REATTACH_TIMEOUT_S = 240.0
_RETRY_S_MIN = 0.1
_RETRY_S_MAX = 2.0
_IDLE_ROUNDS_MAX = 3
_TIMEVAL = struct.Struct("ll")

log = logging.getLogger("infiniswap.kernel_shim.reattach")

Reconfigure = Callable[[int, Sequence[socket.socket], str], None]


@dataclass(frozen=True, slots=True)
class Reattached:
    """replaced of the device's connections are new; any others were alive. timeout_s: the kernel's, if any is new."""

    index: int
    replaced: int
    timeout_s: float | None = None


class ReattachError(Exception):
    """The kernel device of this name could not be taken over; one line."""


class ReconfigureError(Exception):
    """The kernel refused RECONFIGURE; the message is strerror."""


def kernel_timeout_s(sock: socket.socket) -> float | None:
    """TIMEOUT of the nbd device that keeps this socket; None when none does.

    nbd sets the send time-out of every socket that it takes to the device's TIMEOUT, and the socket is shared with us:
    that is the only trace by which a caller can tell a replaced connection from one that was let go.
    """
    seconds, microseconds = _TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size))
    return seconds + microseconds / 1e6 or None


def reconfigure_now(index: int, sockets: Sequence[socket.socket], identifier: str) -> None:
    """RECONFIGURE from a thread that never waits for I/O of its own making."""
    # Ten MiB that a service without a kernel device does not need.
    from pyroute2.netlink.exceptions import NetlinkError

    from infiniswap.kernel_shim.nbd_netlink import NBD

    # The kernel allocates for the new socket, and may write pages out to this very device to find room.
    protection.set_io_flusher()
    real_time.raise_like_main()
    try:
        with NBD() as nbd:
            nbd.reconfigure(index, sockets=sockets, backend_identifier=identifier)
    except NetlinkError as error:
        raise ReconfigureError(os.strerror(error.code)) from None


async def reattach(
    name: str,
    socket_path: str,
    *,
    timeout_s: float = REATTACH_TIMEOUT_S,
    some_expected: bool = True,
    root: Path = Path("/"),
    reconfigure: Reconfigure = reconfigure_now,
    caller: Caller | None = None,
) -> Reattached | None:
    """Replace the dead connections of the kernel device that was attached to this service; None when there is none.

    The service must be accepting on socket_path: the connections go there. ReattachError when the kernel device has
    another size than the export, when the kernel or the service refuses, or when no connection was replaced within
    timeout_s. some_expected False: finding all of them alive is well, too. caller: makes the call that may hang.
    """
    device = sysfs.attached(name, root, socket_path)
    if device is None:
        return None
    log.log(
        logging.INFO if some_expected else logging.DEBUG,
        "%s is attached to this device; replacing its dead connections",
        device.path,
    )
    offers = _Offers(device, name, Path(socket_path), reconfigure, caller or Caller("nbd-reconfigure"))
    try:
        async with asyncio.timeout(timeout_s):
            replaced = await offers.replace(some_expected=some_expected)
    except TimeoutError:
        raise ReattachError(f"{device.path}: no connection could be replaced within {timeout_s:g} s") from None
    except ReconfigureError as error:
        raise ReattachError(f"{device.path}: the kernel refused new connections: {error}") from None
    except UserError as error:
        raise ReattachError(f"{device.path}: {error}") from None
    if replaced:
        log.info("%s: %d connections replaced", device.path, replaced)
    return Reattached(device.index, replaced, offers.timeout_s)


class _Offers:
    """Connections offered to one kernel device until no more of its own are dead."""

    def __init__(
        self, device: NbdDevice, name: str, socket_path: Path, reconfigure: Reconfigure, caller: Caller
    ) -> None:
        self._device = device
        self._name = name
        self._socket_path = socket_path
        self._reconfigure = reconfigure
        self._caller = caller
        self.timeout_s: float | None = None

    async def replace(self, *, some_expected: bool) -> int:
        """Offer until as many as the device has are taken, or no more are; how many were taken.

        some_expected: go on until at least one was.
        """
        identifier = self._device.identifier
        if identifier is None:
            raise ReattachError(f"{self._device.path} carries no identifier")
        replaced, idle_rounds, pause_s = 0, 0, _RETRY_S_MIN
        while True:
            offered = await negotiate(self._socket_path, self._name, identifier.connections - replaced)
            try:
                taken = await self._offer(offered, str(identifier))
            finally:
                offered.close()
            replaced += taken
            # The kernel notices a dead predecessor within milliseconds; what stays untaken afterwards is alive.
            idle_rounds = 0 if taken else idle_rounds + 1
            if replaced >= identifier.connections:
                return replaced
            if idle_rounds >= _IDLE_ROUNDS_MAX and (replaced or not some_expected):
                return replaced
            await asyncio.sleep(pause_s)
            pause_s = _RETRY_S_MIN if taken else min(2 * pause_s, _RETRY_S_MAX)

    async def _offer(self, offered: KernelConnections, identifier: str) -> int:
        device = self._device
        if offered.size_bytes != device.size_bytes:
            raise ReattachError(
                f"{device.path} has {device.size_bytes} bytes and this device {offered.size_bytes}: not reattached"
            )
        try:
            await self._caller.call(
                lambda: self._reconfigure(device.index, offered.sockets, identifier), CALL_TIMEOUT_S
            )
        except TimeoutError:
            raise ReattachError(
                f"{device.path}: the kernel has not taken connections within {CALL_TIMEOUT_S:g} s"
            ) from None
        taken = [seconds for sock in offered.sockets if (seconds := kernel_timeout_s(sock)) is not None]
        self.timeout_s = taken[0] if taken else self.timeout_s
        return len(taken)
