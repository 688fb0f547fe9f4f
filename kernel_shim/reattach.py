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
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infiniswap.errors import UserError
from infiniswap.kernel_shim import protection, sysfs
from infiniswap.kernel_shim.attach import Negotiated, negotiate
from infiniswap.kernel_shim.kernel_call import CALL_TIMEOUT_S
from infiniswap.kernel_shim.sysfs import NbdDevice

REATTACH_TIMEOUT_S = 240.0
MODULE_INTERVAL_S = 2.0
_SETTLE_S = 0.2
_NEWS_BYTES_MAX = 65536
_NBD_MODULE = Path("/sys/module/nbd")
_RETRY_S_MIN = 0.1
_RETRY_S_MAX = 2.0
_IDLE_ROUNDS_MAX = 3
_TIMEVAL = struct.Struct("ll")

log = logging.getLogger("infiniswap.kernel_shim.reattach")

Reconfigure = Callable[[int, Sequence[socket.socket], str], None]


@dataclass(frozen=True, slots=True)
class Reattached:
    """replaced of the device's connections are new; any others were alive."""

    index: int
    replaced: int


class ReattachError(Exception):
    """The kernel device of this name could not be taken over; one line."""


class ReconfigureError(Exception):
    """The kernel refused RECONFIGURE; the message is strerror."""


def taken_by_kernel(sock: socket.socket) -> bool:
    """Whether the kernel keeps this socket for nbd.

    nbd sets the send time-out of every socket that it takes to the device's TIMEOUT, and the socket is shared with us:
    that is the only trace by which a caller can tell a replaced connection from one that was let go.
    """
    return any(_TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size)))


def reconfigure_now(index: int, sockets: Sequence[socket.socket], identifier: str) -> None:
    """RECONFIGURE from a thread that never waits for I/O of its own making."""
    # Ten MiB that a service without a kernel device does not need.
    from pyroute2.netlink.exceptions import NetlinkError

    from infiniswap.kernel_shim.nbd_netlink import NBD

    # The kernel allocates for the new socket, and may write pages out to this very device to find room.
    protection.set_io_flusher()
    try:
        with NBD() as nbd:
            nbd.reconfigure(index, sockets=sockets, backend_identifier=identifier)
    except NetlinkError as error:
        raise ReconfigureError(os.strerror(error.code)) from None


async def _in_thread(call: Callable[[], None], timeout_s: float) -> None:
    """Run call in a thread that is left behind when it hangs; TimeoutError then."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        failure: BaseException | None = None
        try:
            call()
        except Exception as error:  # noqa: BLE001  (handed to the waiter whatever it is)
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, failure)

    threading.Thread(target=work, name="nbd-reconfigure", daemon=True).start()
    await asyncio.wait_for(done, timeout_s)


async def reattach(
    name: str,
    socket_path: str,
    *,
    timeout_s: float = REATTACH_TIMEOUT_S,
    some_expected: bool = True,
    root: Path = Path("/"),
    reconfigure: Reconfigure = reconfigure_now,
) -> Reattached | None:
    """Replace the dead connections of the kernel device that was attached to this service; None when there is none.

    The service must be accepting on socket_path: the connections go there. ReattachError when the kernel device has
    another size than the export, when the kernel or the service refuses, or when no connection was replaced within
    timeout_s. some_expected False: finding all of them alive is well, too.
    """
    device = sysfs.attached(name, root, socket_path)
    if device is None:
        return None
    log.info("%s is attached to this device; replacing its dead connections", device.path)
    try:
        async with asyncio.timeout(timeout_s):
            replaced = await _replace(device, name, Path(socket_path), reconfigure, some_expected=some_expected)
    except TimeoutError:
        raise ReattachError(f"{device.path}: no connection could be replaced within {timeout_s:g} s") from None
    except ReconfigureError as error:
        raise ReattachError(f"{device.path}: the kernel refused new connections: {error}") from None
    except UserError as error:
        raise ReattachError(f"{device.path}: {error}") from None
    log.info("%s: %d connections replaced", device.path, replaced)
    return Reattached(device.index, replaced)


async def _replace(
    device: NbdDevice, name: str, socket_path: Path, reconfigure: Reconfigure, *, some_expected: bool
) -> int:
    """Offer connections until as many as the device has are taken, or no more are; how many were taken.

    some_expected: go on until at least one was.
    """
    identifier = device.identifier
    if identifier is None:
        raise ReattachError(f"{device.path} carries no identifier")
    replaced, idle_rounds, pause_s = 0, 0, _RETRY_S_MIN
    while True:
        offered = await negotiate(socket_path, name, identifier.connections - replaced)
        try:
            taken = await _offer(device, offered, str(identifier), reconfigure)
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


async def _offer(device: NbdDevice, offered: Negotiated, identifier: str, reconfigure: Reconfigure) -> int:
    if offered.size_bytes != device.size_bytes:
        raise ReattachError(
            f"{device.path} has {device.size_bytes} bytes and this device {offered.size_bytes}: not reattached"
        )
    try:
        await _in_thread(lambda: reconfigure(device.index, offered.sockets, identifier), CALL_TIMEOUT_S)
    except TimeoutError:
        raise ReattachError(
            f"{device.path}: the kernel has not taken connections within {CALL_TIMEOUT_S:g} s"
        ) from None
    return sum(taken_by_kernel(sock) for sock in offered.sockets)


def _open_news() -> socket.socket | None:
    """A netlink socket in the family's multicast group, which hears of dead connections; None without module nbd."""
    if not _NBD_MODULE.exists():
        return None
    from pyroute2.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_GENERIC, SOL_NETLINK
    from pyroute2.netlink.exceptions import NetlinkError

    from infiniswap.kernel_shim.nbd_netlink import NBD, NBD_GENL_MCAST_GROUP

    try:
        with NBD() as nbd:
            nbd.status()
            group = nbd.mcast_groups[NBD_GENL_MCAST_GROUP]
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    except (NetlinkError, OSError, KeyError) as error:
        log.debug("no news of dead connections: %s", error)
        return None
    try:
        news.bind((0, 0))
        news.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        news.setblocking(False)
    except OSError:
        news.close()
        return None
    return news


async def _try(name: str, socket_path: str, *, some_expected: bool) -> None:
    try:
        await reattach(name, socket_path, some_expected=some_expected)
    except ReattachError as error:
        log.error("%s", error)


async def keep_attached(name: str, socket_path: str) -> None:
    """Reattach at once, and again whenever the kernel says that it has given up a connection; runs until cancelled.

    A connection dies under a living service too, when a request has outlasted the device's TIMEOUT. The service must be
    root, and must cancel this before it closes its connections itself.
    """
    loop = asyncio.get_running_loop()
    await _try(name, socket_path, some_expected=True)
    while True:
        news = await loop.run_in_executor(None, _open_news)
        if news is None:
            await asyncio.sleep(MODULE_INTERVAL_S)
            continue
        try:
            await _try(name, socket_path, some_expected=False)  # what died before we listened
            while True:
                await loop.sock_recv(news, _NEWS_BYTES_MAX)
                await asyncio.sleep(_SETTLE_S)  # the connections of one device die together
                await _try(name, socket_path, some_expected=False)
        except OSError as error:  # ENOBUFS: news were lost, so look again
            log.debug("news of dead connections: %s", error)
        finally:
            news.close()
