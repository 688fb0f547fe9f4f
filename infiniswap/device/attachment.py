"""The engine's way to a lease's memory: RDMA where both ends have it, else TCP."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Protocol

from infiniswap.device.daemon_client import DaemonClient, HeldLease, PeerError
from infiniswap.device.peer import Peer
from infiniswap.device.rdma_paths import RdmaPath
from infiniswap.device.tether import Tethers
from infiniswap.nbd.client import NegotiationError, connect
from infiniswap.shared.clock import Clock
from infiniswap.shared.path_messages import Region

log = logging.getLogger(__name__)


class PeerEngine(Protocol):
    """What peers need of the data path (binding.DeviceEngine)."""

    def attach_peer(self, peer: int, read_sock: socket.socket, write_sock: socket.socket) -> None:
        """See DeviceEngine.attach_peer."""

    def detach_peer(self, peer: int) -> None:
        """See DeviceEngine.detach_peer."""


class Rdma(Protocol):
    """What peers need to be reached over RDMA (rdma_paths.Initiator)."""

    @property
    def required(self) -> bool:
        """Whether TCP is ruled out."""

    async def connect(self, slot: int, client: DaemonClient, lease: HeldLease) -> RdmaPath:
        """See Initiator.connect."""

    def lost(self, slot: int) -> None:
        """See Initiator.lost."""

    def promising(self, slot: int) -> bool:
        """See Initiator.promising."""

    def forget(self, slot: int) -> None:
        """See Initiator.forget."""


class Attachment:
    """Attaches peers to the engine."""

    def __init__(
        self,
        engine: PeerEngine,
        tethers: Tethers,
        *,
        rdma: Rdma | None,
        connect_timeout_s: float,
        clock: Clock,
    ) -> None:
        """rdma: None for TCP alone. clock: monotonic seconds."""
        self._engine = engine
        self._tethers = tethers
        self._rdma = rdma
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock

    async def attach(
        self,
        peer: Peer,
        lease: HeldLease,
        sockets: tuple[socket.socket, socket.socket] | None = None,
        *,
        hurry: bool = False,
        still: Callable[[], bool] = lambda: True,
    ) -> dict[int, Region]:
        """Give the engine a way to the lease's memory: RDMA where both ends have it, else TCP. PeerError: neither.

        sockets: connections that are open already; they are closed when they are not needed. hurry: they are used
        unless TCP is ruled out. still: asked at the end whether the lease is wanted yet (PeerError if not). Returns
        the regions of the slabs that the lease held before, for RDMA.
        """
        skip = hurry and sockets is not None and (self._rdma is None or not self._rdma.required)
        path = None if skip else await self._reach(peer, lease)
        if path is None:
            sockets = sockets or await open_connections(peer.client, lease, self._connect_timeout_s)
            if not still():
                for sock in sockets:
                    sock.close()
                raise PeerError("it was lost meanwhile")
            try:
                self._engine.attach_peer(peer.slot, *sockets)
            except OSError as error:
                raise PeerError(f"the engine does not take the connections: {error}") from None
        else:
            for sock in sockets or ():
                sock.close()
            if not still():
                self._engine.detach_peer(peer.slot)
                raise PeerError("it was lost meanwhile")
        peer.path = path
        peer.lease = lease
        peer.attached_s = self._clock()
        return {} if path is None else path.regions

    async def _reach(self, peer: Peer, lease: HeldLease) -> RdmaPath | None:
        """An RDMA path, or None with the reason noted."""
        if self._rdma is None:
            return None
        try:
            if lease.rdma:
                await self._tethers.tie(peer, lease)
            path = await self._rdma.connect(peer.slot, peer.client, lease)
        except BaseException as error:
            self._tethers.untie(peer)
            if self._rdma.required or not isinstance(error, PeerError):
                raise
            if peer.rdma_error != str(error):
                peer.rdma_error = str(error)
                log.log(logging.WARNING if lease.rdma else logging.INFO, "peer %s: TCP, for %s", peer.address, error)
            return None
        peer.rdma_error = ""
        return path


async def open_connections(
    client: DaemonClient, lease: HeldLease, timeout_s: float
) -> tuple[socket.socket, socket.socket]:
    """Two negotiated connections to the lease's export: for page-ins and for page-outs."""
    opened: list[socket.socket] = []
    try:
        for _ in range(2):
            sock, export = await connect(lease.address, await client.export_name(lease), timeout_s)
            opened.append(sock)
            if export.size_bytes < lease.size_bytes:
                raise PeerError(f"its export has {export.size_bytes} bytes, the device needs {lease.size_bytes}")
    except BaseException as error:
        for sock in opened:
            sock.close()
        if isinstance(error, (OSError, NegotiationError)):
            text = str(error) or "no answer"
            raise PeerError(f"page I/O at {lease.address[0]}:{lease.address[1]}: {text}") from None
        raise
    return opened[0], opened[1]
