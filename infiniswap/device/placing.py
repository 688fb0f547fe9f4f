"""Finding memory for a slab: peers are asked by the power of two choices, and the best that has room maps it.

What becomes of the memory then is the caller's affair: mapper.py gives it to a slab that has none, moving.py takes a
slab there with its pages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from infiniswap.device.daemon_client import HeldLease, PeerError, RefusedError
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.slabs import Slabs
from infiniswap.policy.mapping import MappingPolicy
from infiniswap.policy.placement import Candidate, CoolDown, Offer
from infiniswap.shared.messages import Offered
from infiniswap.shared.path_messages import Region

log = logging.getLogger(__name__)

# Takes what a peer has mapped, in the same turn of the event loop; whether it is of use.
HandOver = Callable[[int, Peer, HeldLease, Region | None], bool]


class SlabRecord(Protocol):
    """What mapping needs of the record of leases (lease_book.LeaseBook)."""

    def admit(self, lease: HeldLease) -> None:
        """See LeaseBook.admit."""

    def mapped(self, lease: HeldLease, slab: int) -> None:
        """See LeaseBook.mapped."""

    def unmapped(self, lease: HeldLease, slab: int) -> None:
        """See LeaseBook.unmapped."""


@dataclass(slots=True)
class MapperCounts:
    """Events since the start, ever growing."""

    mapped: int = 0
    refused: int = 0  # offers or mappings that a peer turned down
    failed: int = 0  # offers or mappings that came to nothing by an error
    no_room: int = 0  # rounds in which no peer took the slab
    released: int = 0
    lost: int = 0
    moved: int = 0  # taken to another peer with their pages


class Placer:
    """Asks peers for memory."""

    def __init__(
        self,
        peers: Peers,
        slabs: Slabs,
        policy: MappingPolicy,
        counts: MapperCounts,
        *,
        slab_bytes: int,
        cool_down: CoolDown,
        record: SlabRecord,
    ) -> None:
        """record: a lease is on it before anything is mapped there."""
        self._peers = peers
        self._slabs = slabs
        self._policy = policy
        self._counts = counts
        self._slab_bytes = slab_bytes
        self._cool_down = cool_down
        self._record = record
        self._record_error = ""  # why leases cannot go on record now

    def candidates(self, but: int | None = None) -> list[Candidate]:
        """Peers that may be asked; but: not this one."""
        return self._policy.usable(
            Candidate(peer.slot, len(peer.slabs)) for peer in self._peers.up() if peer.slot != but
        )

    async def place(
        self, slab: int, candidates: Sequence[Candidate], meant_for: int | None, hand_over: HandOver
    ) -> bool:
        """Find a peer for slab; whether one took it and hand_over made use of that. meant_for: is asked first."""
        for group in self._policy.to_ask(candidates, meant_for):
            offers = await asyncio.gather(*(self._ask(candidate) for candidate in group))
            for offer in self._policy.ranked(offer for offer in offers if offer is not None):
                if await self._try(slab, self._peers.all[offer.slot], hand_over):
                    return True
        return False

    async def _ask(self, candidate: Candidate) -> Offer | None:
        peer = self._peers.all[candidate.slot]
        known = self._policy.on_the_way.asked(peer.slot)
        try:
            offered: Offered = await peer.client.offer()
        except PeerError as error:
            self._failed(peer, error)
            return None
        peer.note_offer(offered)
        if offered.free_bytes < self._slab_bytes:
            self._counts.refused += 1
        return Offer(candidate.slot, candidate.slabs, offered.free_bytes, known)

    def _failed(self, peer: Peer, error: PeerError) -> None:
        self._counts.failed += 1
        peer.note_failure(error)
        self._cool_down.start(peer.slot)

    async def _try(self, slab: int, peer: Peer, hand_over: HandOver) -> bool:
        lease = peer.lease
        if lease is None or self._slabs.is_given_back(peer.slot, slab) or not self._on_record(peer, lease):
            return False
        if slab in self._slabs.asked(peer.slot):
            return False  # what it had of the slab before is not given back yet
        taken = False
        self._policy.on_the_way.begin(peer.slot)
        try:
            with self._slabs.asking(peer.slot, slab):
                mapped = await peer.client.map_slab(lease, slab)
                taken = True
                peer.free_bytes = mapped.free_bytes
                return peer.lease is lease and hand_over(slab, peer, lease, mapped.region)
        except RefusedError as error:
            self._counts.refused += 1
            log.debug("peer %s: slab %d: %s", peer.address, slab, error)
        except PeerError as error:
            self._failed(peer, error)
        finally:
            self._policy.on_the_way.end(peer.slot, taken=taken)
        return False

    def _on_record(self, peer: Peer, lease: HeldLease) -> bool:
        """Whether slabs may be mapped there: a killed device must find every one that may hold pages."""
        try:
            self._record.admit(lease)
        except OSError as error:
            reason = str(error.strerror or error)
            if reason != self._record_error:  # once, however many slabs wait for it
                log.warning("nothing is mapped to peer %s: its lease cannot go on record: %s", peer.address, reason)
            self._record_error = reason
            return False
        if self._record_error:
            log.info("leases can go on record again")
            self._record_error = ""
        return True
