"""The move from TCP to RDMA: it has come, or come back, so a peer on TCP is drained and then reached anew.

One peer at a time. Its pages are on the backup meanwhile, as those of any slab that is given up; nothing is at risk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from infiniswap.device.daemon_client import PeerError
from infiniswap.device.peer import Peer
from infiniswap.shared.clock import Clock

log = logging.getLogger(__name__)

UPGRADE_INTERVAL_S = 10.0  # how often a peer on TCP is looked at for RDMA
UPGRADE_AFTER_S = 10.0  # on TCP at least so long before, so that a peer does not go to and fro


class Prospects(Protocol):
    """Where RDMA might work (rdma_paths.Initiator)."""

    def promising(self, slot: int) -> bool:
        """See Initiator.promising."""


async def upgrade_forever(peers: Sequence[Peer], rdma: Prospects, clock: Clock) -> None:
    """Find peers to be drained, and mark them; whoever gives slabs up does the rest. clock: monotonic seconds."""
    while True:
        await asyncio.sleep(UPGRADE_INTERVAL_S)
        for peer in peers:
            if any(other.upgrading for other in peers):
                break
            if peer.takes_slabs and peer.path is None and clock() - peer.attached_s >= UPGRADE_AFTER_S:
                await _consider(peer, rdma)


async def _consider(peer: Peer, rdma: Prospects) -> None:
    if not rdma.promising(peer.slot):
        return
    try:
        offered = await peer.client.offer()
    except PeerError:
        return  # the heartbeat tells what is wrong with it
    if offered.rdma and peer.lease is not None and peer.path is None:
        log.info("peer %s can be reached over RDMA now: its %d slabs move", peer.address, len(peer.slabs))
        peer.upgrading = True
