"""One memory daemon as a device knows it: its lease, the way there, how it fared."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from numpy.typing import NDArray

from infiniswap.device.daemon_client import DaemonClient, HeldLease, PeerError
from infiniswap.device.rdma_paths import RdmaPath
from infiniswap.device.slabs import Slabs
from infiniswap.shared.address import HostPort
from infiniswap.shared.logs import detail
from infiniswap.shared.messages import Offered, Standing
from infiniswap.shared.path_messages import Region

log = logging.getLogger(__name__)

RELEASES_WAITING_MAX = 4  # dead leases that a peer is still to be told of; beyond that they expire by themselves


class Peer:
    """One memory daemon, in one slot of the engine."""

    def __init__(
        self,
        slot: int,
        address: HostPort,
        client: DaemonClient,
        slabs: Slabs,
        *,
        retired: bool = False,
        counted: Mapping[str, Any] | NDArray[Any] | None = None,
    ) -> None:
        """retired: still holds slabs from before, but is not configured any more and gets no new ones.

        counted: the engine's row of the slot where it counted for another peer before.
        """
        self.slot = slot
        self.address = address
        self.client = client
        self.retiring = asyncio.Event()  # set: it holds slabs at most, and goes when it holds none
        self.gone = False  # it was retired and holds nothing: its slot is free
        if retired:
            self.retiring.set()
        self._slabs = slabs
        self._counted = counted
        self.lease: HeldLease | None = None
        self.path: RdmaPath | None = None  # None: pages travel over TCP
        self.rdma_error = ""  # why they do
        self.upgrading = False  # it is drained, to be reached over RDMA afterwards
        self.held = False  # its connections broke, and its slabs wait for it
        self.attached_s = 0.0
        self.pages_heard = 0, 0.0  # what it had answered when a heartbeat failed last, in bytes, and when that was
        self.connecting = False
        self.listening = False  # its stream is open, and speaks
        self.standing = Standing()
        self.stream_nonsense = 0
        self.free_bytes = 0
        self.total_bytes = 0
        self.failures = 0
        self.losses = 0
        self.holds = 0
        self.last_error = ""
        self.dead_leases: deque[HeldLease] = deque(maxlen=RELEASES_WAITING_MAX)
        self.wake = asyncio.Event()

    @property
    def state(self) -> str:
        """One of up, leaving, held, connecting, down."""
        if self.lease is not None:
            return "held" if self.held else "leaving" if self.retired else "up"
        return "connecting" if self.connecting else "down"

    @property
    def retired(self) -> bool:
        """Whether it is not to be a peer any more."""
        return self.retiring.is_set()

    @retired.setter
    def retired(self, retired: bool) -> None:
        (self.retiring.set if retired else self.retiring.clear)()

    @property
    def slabs(self) -> AbstractSet[int]:
        """Slabs that it holds; the set lives on."""
        return self._slabs.held(self.slot)

    @property
    def takes_slabs(self) -> bool:
        """Whether it has a live lease and may be given slabs."""
        return self.lease is not None and not (self.held or self.parting)

    @property
    def parting(self) -> bool:
        """Whether its slabs are to go elsewhere."""
        return self.retired or self.upgrading

    @property
    def transport(self) -> str | None:
        """How its pages travel: rdma, tcp, or None while it cannot be reached."""
        if self.lease is None or self.held:
            return None
        return "tcp" if self.path is None else "rdma"

    def count(self, row: Mapping[str, Any] | NDArray[Any], name: str) -> int:
        """How often the engine counted something of this peer; row: the slot's, now."""
        return int(row[name]) - (0 if self._counted is None else int(self._counted[name]))

    def key_to(self, slab: int, region: Region | None) -> tuple[int, int] | None:
        """What the engine needs to reach slab: address and key over RDMA, nothing over TCP. OSError: it has no key."""
        if self.path is None:
            return None
        if region is None:
            raise OSError(errno.ENOKEY, f"the peer told no RDMA key for slab {slab}")
        return region.address, region.rkey

    def note_offer(self, offered: Offered) -> None:
        """Remember the latest free and total bytes."""
        self.free_bytes, self.total_bytes = offered.free_bytes, offered.total_bytes
        self.standing = offered.standing

    async def give_back(self, lease: HeldLease, slab: int) -> None:
        """Give the memory of slab back; until that is answered the slab is not mapped to this peer again."""
        if self._slabs.is_given_back(self.slot, slab):
            return
        with self._slabs.giving_back(self.slot, slab):
            try:
                await self.client.unmap_slab(lease, slab)
            except PeerError as error:
                # The next heartbeat shows the slab as not ours, and it is given back then.
                log.info("peer %s: slab %d is not given back yet: %s", self.address, slab, error)

    def note_failure(self, error: PeerError) -> None:
        """Count a failure; a changed reason is logged once, not at every try."""
        self.failures += 1
        text = str(error)
        if text != self.last_error:
            log.warning("peer %s: %s", self.address, text, extra=detail(peer=self.address))
            self.last_error = text
