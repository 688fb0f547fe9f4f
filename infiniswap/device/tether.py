"""A connection to each daemon beside its RDMA path: pages over RDMA do not tell that the daemon's process has ended.

Nothing is asked through it, so whatever comes is its end, but not always the daemon's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from infiniswap.device.daemon_client import HeldLease, LeaseGoneError, PeerError
from infiniswap.device.peer import Peer
from infiniswap.nbd.client import NegotiationError, connect

log = logging.getLogger(__name__)


class Tethers:
    """At most one a peer."""

    def __init__(
        self, connect_timeout_s: float, lose: Callable[[Peer, str], None], ended: Callable[[Peer, str], None]
    ) -> None:
        """lose: the peer's daemon has ended the lease. ended: it has ended, or does not answer."""
        self._connect_timeout_s = connect_timeout_s
        self._lose = lose
        self._ended_daemon = ended
        self._sockets: dict[int, socket.socket] = {}  # by slot
        self._tasks: set[asyncio.Task[None]] = set()  # at most one a peer

    def tied(self, peer: Peer) -> bool:
        """Whether there is such a connection."""
        return peer.slot in self._sockets

    async def tie(self, peer: Peer, lease: HeldLease) -> None:
        """Connect to the lease's daemon; that there is no connection is told, and no more."""
        try:
            name = await peer.client.export_name(lease)
            sock, _ = await connect(lease.address, name, self._connect_timeout_s)
        except (OSError, NegotiationError, PeerError) as error:
            log.info("peer %s: no connection beside RDMA: %s", peer.address, str(error) or "no answer")
            return
        sock.setblocking(False)
        self._sockets[peer.slot] = sock
        asyncio.get_running_loop().add_reader(sock, self._ended, peer)

    def untie(self, peer: Peer) -> None:
        """Close the connection, if there is one."""
        self._close(peer.slot)

    async def stop(self) -> None:
        """Close all connections, and end what looks after those that ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in list(self._sockets):
            self._close(slot)

    def _close(self, slot: int) -> None:
        sock = self._sockets.pop(slot, None)
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _ended(self, peer: Peer) -> None:
        self.untie(peer)
        task = asyncio.create_task(self._tie_again(peer), name=f"tether of {peer.address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tie_again(self, peer: Peer) -> None:
        lease = peer.lease
        if lease is None:
            return
        try:
            await peer.client.heartbeat(lease)
            if peer.lease is lease and not self.tied(peer):
                await self.tie(peer, lease)
        except LeaseGoneError as error:
            if peer.lease is lease:
                self._lose(peer, str(error))
        except PeerError:
            if peer.lease is lease:
                self._ended_daemon(peer, "it has ended")
