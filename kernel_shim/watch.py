"""Watches the kernel device of a running service: connections that the kernel has given up are replaced at once.

A connection dies under a living service when a request has outlasted the device's TIMEOUT. The kernel tells of it by
netlink, but a message can be lost when memory is short; so the service's count of open connections is looked at, too.
Whatever is needed at that time is imported, opened and started as soon as there is a kernel device.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infiniswap.kernel_shim import attach, sysfs
from infiniswap.kernel_shim.caller import Caller
from infiniswap.kernel_shim.reattach import ReattachError, reattach
from infiniswap.kernel_shim.sysfs import NbdDevice

LOOK_INTERVAL_S = 1.0
RETRY_S = 2.0  # after a try that did not bring all of them back
_SETTLE_S = 0.2  # the connections of one device die together
_NEWS_BYTES_MAX = 65536

log = logging.getLogger("infiniswap.kernel_shim.watch")


def open_news() -> socket.socket | None:
    """A netlink socket in the family's multicast group, which hears of dead connections; None where there is none."""
    from pyroute2.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_GENERIC, SOL_NETLINK
    from pyroute2.netlink.exceptions import NetlinkError

    from infiniswap.kernel_shim.nbd_netlink import NBD, NBD_GENL_MCAST_GROUP

    try:
        with NBD() as nbd:
            nbd.device_status()
            group = nbd.mcast_groups[NBD_GENL_MCAST_GROUP]
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    except (NetlinkError, OSError, KeyError) as error:
        log.warning("no news of dead connections from the kernel (%s); they are looked for every second", error)
        return None
    try:
        news.bind((0, 0))
        news.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        news.setblocking(False)
    except OSError as error:
        news.close()
        log.warning("no news of dead connections from the kernel (%s); they are looked for every second", error)
        return None
    return news


class ConnectionWatch:
    """The kernel device of one service, and the task that keeps it connected."""

    def __init__(
        self,
        name: str,
        socket_path: str,
        *,
        open_connections: Callable[[], int],
        deadline_ms: Callable[[], int | None] = lambda: None,
        root: Path = Path("/"),
    ) -> None:
        """open_connections: of the service, now. deadline_ms: within that it answers requests, None where unknown."""
        self._name = name
        self._socket_path = socket_path
        self._open_connections = open_connections
        self._deadline_ms = deadline_ms
        self._root = root
        self._caller = Caller("nbd-reconfigure")
        self._news: socket.socket | None = None
        self._prepared = False
        self._complaint = ""
        self.device: NbdDevice | None = None
        self.replaced = 0

    def connections(self) -> int:
        """How many the kernel device was given; 0 while there is none."""
        identifier = self.device.identifier if self.device else None
        return identifier.connections if identifier else 0

    def dead(self) -> int:
        """How many of them are dead, as far as the number of open ones tells: other clients count among those."""
        identifier = self.device.identifier if self.device else None
        return identifier.dead(self._open_connections()) if identifier else 0

    def facts(self) -> dict[str, Any]:
        """For the control API."""
        return {
            "nbd": self.device.path if self.device else None,
            "nbd_connections": self.connections(),
            "nbd_dead": self.dead(),
            "nbd_replaced": self.replaced,
        }

    async def run(self) -> None:
        """Take over the predecessor's kernel device, then watch; runs until cancelled.

        The service must be root, and must cancel this before it closes its connections itself.
        """
        try:
            await self._replace(some_expected=True)
            while True:
                try:
                    await self._round()
                except Exception:  # whatever it is, swap depends on this task
                    log.exception("watching the kernel device went wrong; going on")
                    self._close_news()
                    await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            self._close_news()
            self._caller.close()

    async def _round(self) -> None:
        self.device = self._look()
        if self.device is None:
            await asyncio.sleep(LOOK_INTERVAL_S)
            return
        if not self._prepared:
            self._caller.prepare()
            self._news = await asyncio.get_running_loop().run_in_executor(None, open_news)
            self._prepared = True
        if await self._told() or self.dead():
            await asyncio.sleep(_SETTLE_S)
            await self._replace(some_expected=False)
            if self.dead():
                await asyncio.sleep(RETRY_S)

    def _look(self) -> NbdDevice | None:
        known = self.device
        if known is not None:
            device = sysfs.read_nbd_device(self._root / f"sys/block/nbd{known.index}")
            if device is not None and device.connected and device.backend == known.backend:
                return device
        return sysfs.attached(self._name, self._root, self._socket_path)

    async def _told(self) -> bool:
        """Whether the kernel has told of a dead connection, within the time between two looks."""
        if self._news is None:
            await asyncio.sleep(LOOK_INTERVAL_S)
            return False
        try:
            async with asyncio.timeout(LOOK_INTERVAL_S):
                await asyncio.get_running_loop().sock_recv(self._news, _NEWS_BYTES_MAX)
        except TimeoutError:
            return False
        except OSError as error:  # ENOBUFS: news were lost, so look
            log.debug("news of dead connections: %s", error)
        return True

    async def _replace(self, *, some_expected: bool) -> None:
        try:
            done = await reattach(
                self._name,
                self._socket_path,
                some_expected=some_expected,
                root=self._root,
                caller=self._caller,
            )
        except ReattachError as error:
            if sysfs.attached(self._name, self._root, self._socket_path) is None:
                return  # it was being detached
            if str(error) != self._complaint:  # once; it is tried again every second
                log.error("%s", error)
            self._complaint = str(error)
            return
        self._complaint = ""
        if done is not None:
            self.replaced += done.replaced
            self._check_timeout(done.timeout_s)

    def _check_timeout(self, timeout_s: float | None) -> None:
        deadline_ms = self._deadline_ms()
        if timeout_s is not None and attach.too_short(timeout_s, deadline_ms):
            log.warning(
                "the kernel device was attached with --timeout %g, and a request may take this service %g s: the "
                "kernel may give up connections that are well; attach again with --timeout %d",
                timeout_s,
                (deadline_ms or 0) / 1000,
                attach.timeout_for(deadline_ms),
            )

    def _close_news(self) -> None:
        if self._news is not None:
            self._news.close()
        self._news, self._prepared = None, False
