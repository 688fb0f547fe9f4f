"""Decides each second which slabs get remote memory and which give it up, and carries it out.

Slabs wait in a queue, hottest first; a few at a time ask for offers, take the best and are handed to the engine. A slab
belongs to a peer (Slabs) from before the engine hears of it until after the engine has let it go.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.daemon_client import Lease, Offered, PeerError, RefusedError
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import Event, EventKind, SlabState
from infiniswap.policy.activity import Activity, Thresholds
from infiniswap.policy.placement import Candidate, CoolDown, Offer, pairs, ranked
from infiniswap.policy.rebalance import Rebalance, Share, Use, cheapest
from infiniswap.policy.slow_peers import DRAIN_SLABS_PER_S, SlowPeers
from infiniswap.rdma.path import Region

log = logging.getLogger(__name__)

TICK_S = 1.0
MAPPINGS_AT_ONCE = 4
RELEASES_PER_TICK = 8  # cold slabs given up at once: draining competes with the clients for the backup
RESIDENCE_MIN_S = 10.0  # a slab mapped later than that has had no time to be hot
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 10.0  # between tries while no peer has room


class SlabRecord(Protocol):
    """What the mapper needs of the record of leases (lease_book.LeaseBook)."""

    def admit(self, lease: Lease) -> None:
        """See LeaseBook.admit."""

    def mapped(self, lease: Lease, slab: int) -> None:
        """See LeaseBook.mapped."""

    def unmapped(self, lease: Lease, slab: int) -> None:
        """See LeaseBook.unmapped."""


class SlabEngine(Protocol):
    """What the mapper needs of the data path (binding.DeviceEngine)."""

    slabs: NDArray[Any]

    def map_slab(self, slab: int, peer: int, adopt: bool = False, region: tuple[int, int] | None = None) -> None:
        """See DeviceEngine.map_slab."""

    def unmap_slab(self, slab: int) -> None:
        """See DeviceEngine.unmap_slab."""


@dataclass(slots=True)
class MapperCounts:
    """Events since the start, ever growing."""

    mapped: int = 0
    refused: int = 0  # offers or mappings that a peer turned down
    failed: int = 0  # offers or mappings that came to nothing by an error
    no_room: int = 0  # rounds in which no peer took the slab
    released: int = 0
    lost: int = 0
    moved: int = 0  # begun to move to a peer that holds fewer


class Mapper:
    """The controller over activity, placement, peers and the engine."""

    def __init__(
        self,
        engine: SlabEngine,
        peers: Peers,
        slabs: Slabs,
        activity: Activity,
        *,
        policy: str,
        thresholds: Thresholds,
        slab_bytes: int,
        cool_down: CoolDown,
        record: SlabRecord,
        rng: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """policy: hot, eager or never. record: every slab is on it before the engine maps it."""
        self._engine = engine
        self._peers = peers
        self._slabs = slabs
        self.activity = activity
        self._policy = policy
        self._thresholds = thresholds
        self._slab_bytes = slab_bytes
        self._cool_down = cool_down
        self._record = record
        self._record_error = ""  # why leases cannot go on record now
        self._rng = rng
        self._clock = clock
        self.counts = MapperCounts()
        self._touched: dict[int, None] = {}  # eager: written to and not mapped yet, oldest first
        self._queue: deque[int] = deque()
        self._queued = asyncio.Event()
        self._slow = SlowPeers(clock)
        self._rebalance = Rebalance(slab_bytes, rng, clock)
        self._io_before = (engine.slabs["page_ins"].copy(), engine.slabs["page_outs"].copy())  # at the last look
        self._pause_s = 0.0
        self._paused_until_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to tick and to map."""
        self._workers.append(asyncio.create_task(self._tick_forever(), name="mapper"))
        for number in range(MAPPINGS_AT_ONCE):
            self._workers.append(asyncio.create_task(self._work(), name=f"mapping {number}"))

    async def stop(self) -> None:
        """End all tasks; what is mapped stays mapped."""
        tasks = [*self._workers, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.clear()

    def handle(self, event: Event) -> None:
        """News of the engine that concern slabs."""
        if event.kind == EventKind.SLAB_TOUCHED and self._policy == "eager":
            self._want(event.slab)
        elif event.kind == EventKind.SLAB_RELEASED:
            self._released(self._peers.all[event.peer], event.slab)
        elif event.kind == EventKind.SLAB_LOST:
            self._slab_lost(self._peers.all[event.peer], event.slab, event.value)
        elif event.kind == EventKind.PEER_SLOW:
            self.note_slow(self._peers.all[event.peer], bool(event.value))
        elif event.kind == EventKind.OVERFLOW:
            self.reconcile()

    def lost(self, peer: Peer, slabs: frozenset[int]) -> None:
        """A peer's lease died with these slabs; they are mapped elsewhere once hot (or touched, when eager)."""
        self.counts.lost += len(slabs)
        self._slow.note(peer.slot, False)
        log.info("%d slabs of peer %s are served from the backup and pending buffers now", len(slabs), peer.address)

    def note_slow(self, peer: Peer, slow: bool) -> None:
        """The engine finds that a peer answers too late, or does not any more."""
        if not self._slow.note(peer.slot, slow):
            return
        if slow:
            log.warning("peer %s answers too late: pages go to the backup, and come from there", peer.address)
        else:
            log.info("peer %s answers in time again", peer.address)

    def reconcile(self) -> None:
        """Take from the engine's tables what lost events would have told."""
        states = self._engine.slabs["state"]
        for peer in self._peers:
            gone = [slab for slab in peer.slabs if states[slab] == SlabState.UNMAPPED]
            for slab in [slab for slab in gone if slab not in self._slabs.mapping]:
                self._released(peer, slab)
        if self._policy == "eager":
            unmapped = (states == SlabState.UNMAPPED) & (self._engine.slabs["page_outs"] > 0)
            for index in np.flatnonzero(unmapped):
                self._want(int(index))

    def tick(self, elapsed_s: float) -> None:
        """Update activity, queue what should be mapped, give up what is cold."""
        table = self._engine.slabs
        self.activity.update(table["page_ins"] + table["page_outs"], elapsed_s)
        states = table["state"]
        if self._policy != "never":
            self._fill_queue(states)
        if self._thresholds.cold is not None:
            self._give_up_cold(states)
        for peer in self._peers:
            if (peer.retired or peer.upgrading) and peer.lease is not None:
                self._retire(peer, states)
            elif self._slow.drained(peer.slot):
                self._drain(peer, states, DRAIN_SLABS_PER_S)
        if self._policy != "never" and self._rebalance.due():
            self._move_one(states)

    def _want(self, slab: int) -> None:
        self._touched[slab] = None
        if self._clock() >= self._paused_until_s:
            self._queue.append(slab)
            self._queued.set()

    def _fill_queue(self, states: NDArray[Any]) -> None:
        for slab in [slab for slab in self._touched if states[slab] != SlabState.UNMAPPED]:
            del self._touched[slab]
        if self._peers.came_up.is_set():
            self._peers.came_up.clear()
            self._pause_s = self._paused_until_s = 0.0
        if self._clock() < self._paused_until_s or not self._peers.up():
            self._queue.clear()
            return
        hot = [int(slab) for slab in self.activity.hot(self._thresholds) if states[slab] == SlabState.UNMAPPED]
        # Built anew each time: what is no longer hot drops out, and the queue is never longer than the slab table.
        self._queue = deque(slab for slab in dict.fromkeys([*hot, *self._touched]) if slab not in self._slabs.mapping)
        if self._queue:
            self._queued.set()

    def _give_up_cold(self, states: NDArray[Any]) -> None:
        begun = 0
        for found in self.activity.cold(self._thresholds):
            slab = int(found)
            if states[slab] != SlabState.MAPPED or self._slabs.held_for_s(slab) < RESIDENCE_MIN_S:
                continue
            if not self._give_up(slab):
                continue
            log.debug("slab %d is cold and is given up", slab)
            begun += 1
            if begun == RELEASES_PER_TICK:
                return

    def _move_one(self, states: NDArray[Any]) -> None:
        """Begin to move a slab to a peer that holds far fewer, unless anything else is going on."""
        ins, outs = self._engine.slabs["page_ins"].copy(), self._engine.slabs["page_outs"].copy()
        (ins_before, outs_before), self._io_before = self._io_before, (ins, outs)
        up = self._peers.up()
        troubled = any(peer.lease is not None and (peer.retired or peer.upgrading) for peer in self._peers)
        left_alone = any(self._cool_down.active(peer.slot) or self._slow.avoided(peer.slot) for peer in up)
        if troubled or left_alone or (states == SlabState.DRAINING).any():
            return
        pair = self._rebalance.pair([Share(p.slot, len(p.slabs), p.free_bytes, p.attached_s) for p in up])
        if pair is None:
            return
        giver, taker = (self._peers.all[share.slot] for share in pair)
        # One that would not be mapped again at once would only lose by it.
        held = (
            giver.slabs if self._policy == "eager" else giver.slabs & set(self.activity.hot(self._thresholds).tolist())
        )
        slab = cheapest(
            Use(slab, int(ins[slab] - ins_before[slab]), int(outs[slab] - outs_before[slab]))
            for slab in held
            if states[slab] == SlabState.MAPPED and self._slabs.held_for_s(slab) >= RESIDENCE_MIN_S
        )
        if slab is not None and self._give_up(slab):
            self.counts.moved += 1
            self._slabs.move(slab, taker.slot)
            log.info("slab %d moves from peer %s to %s, which holds far fewer", slab, giver.address, taker.address)

    def _give_up(self, slab: int) -> bool:
        """Begin to drain slab; False while the engine holds it, because pages of it are on no backup yet."""
        try:
            self._engine.unmap_slab(slab)
        except OSError as error:
            log.debug("slab %d is not given up yet: %s", slab, error)
            return False
        return True

    def _drain(self, peer: Peer, states: NDArray[Any], most: int) -> None:
        """Begin to give up slabs of peer, at most so many."""
        begun = 0
        for slab in [slab for slab in peer.slabs if states[slab] == SlabState.MAPPED]:
            if begun == most:
                return
            begun += self._give_up(slab)

    def _retire(self, peer: Peer, states: NDArray[Any]) -> None:
        """Drain what a peer holds that is not configured any more, or is to be reached anew, then end its lease."""
        self._drain(peer, states, RELEASES_PER_TICK)
        if not peer.slabs and not self._slabs.asked(peer.slot):
            if peer.retired:
                log.info("peer %s is not configured any more and holds nothing now", peer.address)
            self._peers.dismiss(peer)

    def _released(self, peer: Peer, slab: int) -> None:
        """The engine refers to the remote slab no more: give its memory back."""
        if peer.lease is None or slab not in peer.slabs:
            return
        self._slabs.let_go(slab)
        self.counts.released += 1
        self._record.unmapped(peer.lease, slab)
        self._spawn(peer.give_back(peer.lease, slab))

    def _slab_lost(self, peer: Peer, slab: int, error: int) -> None:
        """The peer refused a page of slab, so the engine dropped its remote copies; the peer's other slabs live on."""
        if peer.lease is None or slab not in peer.slabs:
            return
        log.warning("peer %s refuses slab %d, which is lost there: %s", peer.address, slab, os.strerror(error))
        self.counts.lost += 1
        self._cool_down.start(peer.slot)
        self._released(peer, slab)
        self.counts.released -= 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # At most one per slab: a slab is released only after it was mapped.
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        last_s = due_s = loop.time()
        while True:
            due_s = max(due_s + TICK_S, loop.time())
            await asyncio.sleep(due_s - loop.time())
            now_s = loop.time()
            try:
                self.tick(now_s - last_s)
            except Exception:
                log.exception("a second of mapping went wrong")
            last_s = now_s

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._queued.clear()
                await self._queued.wait()
            slab = self._queue.popleft()
            if slab in self._slabs.mapping or self._engine.slabs["state"][slab] != SlabState.UNMAPPED:
                continue
            if self._peers.owner(slab) is not None:
                continue  # let go by the engine just now: the news of it would be taken for news of a new mapping
            self._slabs.mapping.add(slab)
            try:
                await self.map_one(slab)
            except Exception:
                log.exception("slab %d could not be mapped", slab)
            finally:
                self._slabs.mapping.discard(slab)

    async def map_one(self, slab: int) -> bool:
        """Find a peer for slab by the power of two choices and map it there; False when none took it."""
        usable = [peer for peer in self._peers.up() if not self._slow.avoided(peer.slot)]
        candidates = self._cool_down.usable(Candidate(peer.slot, len(peer.slabs)) for peer in usable)
        if not candidates:
            self._queue.clear()  # nobody to ask before the next tick
            return False
        meant = self._slabs.meant_for(slab)
        first = [(candidate,) for candidate in candidates if candidate.slot == meant]
        for pair in itertools.chain(first, pairs(candidates, self._rng)):
            offers = await asyncio.gather(*(self._ask(candidate) for candidate in pair))
            for offer in ranked([offer for offer in offers if offer is not None], self._slab_bytes):
                if await self._try(slab, self._peers.all[offer.slot]):
                    self._pause_s = 0.0
                    return True
        self._no_room()
        return False

    def _no_room(self) -> None:
        self.counts.no_room += 1
        if self._clock() >= self._paused_until_s:
            self._pause_s = min(max(2 * self._pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
            self._paused_until_s = self._clock() + self._pause_s
        self._queue.clear()

    async def _ask(self, candidate: Candidate) -> Offer | None:
        peer = self._peers.all[candidate.slot]
        try:
            offered: Offered = await peer.client.offer()
        except PeerError as error:
            self._failed(peer, error)
            return None
        peer.note_offer(offered)
        if offered.free_bytes < self._slab_bytes:
            self.counts.refused += 1
        return Offer(candidate.slot, candidate.slabs, offered.free_bytes)

    def _failed(self, peer: Peer, error: PeerError) -> None:
        self.counts.failed += 1
        peer.note_failure(error)
        self._cool_down.start(peer.slot)

    async def _try(self, slab: int, peer: Peer) -> bool:
        lease = peer.lease
        if lease is None or self._slabs.is_given_back(peer.slot, slab) or not self._on_record(peer, lease):
            return False
        try:
            with self._slabs.asking(peer.slot, slab):
                mapped = await peer.client.map_slab(lease, slab)
                peer.free_bytes = mapped.free_bytes
                return peer.lease is lease and self._hand_over(slab, peer, lease, mapped.region)
        except RefusedError as error:
            self.counts.refused += 1
            log.debug("peer %s: slab %d: %s", peer.address, slab, error)
        except PeerError as error:
            self._failed(peer, error)
        return False

    def _on_record(self, peer: Peer, lease: Lease) -> bool:
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

    def _hand_over(self, slab: int, peer: Peer, lease: Lease, region: Region | None) -> bool:
        """On record first, then to the engine."""
        self._slabs.take(slab, peer.slot)
        try:
            self._record.mapped(lease, slab)
            self._engine.map_slab(slab, peer.slot, region=peer.key_to(slab, region))
        except OSError as error:
            self._slabs.let_go(slab)
            self._record.unmapped(lease, slab)
            self.counts.failed += 1
            log.warning("slab %d is not mapped to peer %s: %s", slab, peer.address, error)
            self._spawn(peer.give_back(lease, slab))
            return False
        self._touched.pop(slab, None)
        self.counts.mapped += 1
        log.debug("slab %d is mapped to peer %s", slab, peer.address)
        return True
