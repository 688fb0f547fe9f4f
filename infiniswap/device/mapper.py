"""Gives slabs remote memory and takes it from them, as policy/mapping.py decides each second.

Slabs wait in a queue, hottest first; a few at a time ask for offers, take the best and are handed to the engine. A slab
belongs to a peer (Slabs) from before the engine hears of it until after the engine has let it go.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

import numpy as np

from infiniswap.device.daemon_client import HeldLease
from infiniswap.device.moving import Moves, MovingEngine
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.placing import MapperCounts, Placer, SlabRecord
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import Event, EventKind, SlabState
from infiniswap.policy.mapping import Drain, Holder, MappingPolicy, Reason
from infiniswap.policy.placement import CoolDown
from infiniswap.shared.logs import detail
from infiniswap.shared.path_messages import Region

log = logging.getLogger(__name__)

TICK_S = 1.0
MAPPINGS_AT_ONCE = 4


class SlabEngine(MovingEngine, Protocol):
    """What the mapper needs of the data path (binding.DeviceEngine)."""

    def forget_slab(self, slab: int) -> None:
        """See DeviceEngine.forget_slab."""

    def map_slab(self, slab: int, peer: int, adopt: bool = False, region: tuple[int, int] | None = None) -> None:
        """See DeviceEngine.map_slab."""


class Mapper:
    """Carries out what the policy decides, with peers and the engine."""

    def __init__(
        self,
        engine: SlabEngine,
        peers: Peers,
        slabs: Slabs,
        policy: MappingPolicy,
        *,
        slab_bytes: int,
        cool_down: CoolDown,
        record: SlabRecord,
    ) -> None:
        """record: every slab is on it before the engine maps it."""
        self._engine = engine
        self._peers = peers
        self._slabs = slabs
        self._policy = policy
        self._cool_down = cool_down
        self._record = record
        self.counts = MapperCounts()
        self._placer = Placer(
            peers, slabs, policy, self.counts, slab_bytes=slab_bytes, cool_down=cool_down, record=record
        )
        self.moves = Moves(engine, peers, slabs, policy, self._placer, self.counts, cool_down=cool_down, record=record)
        self._queue: deque[int] = deque()
        self._queued = asyncio.Event()
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
        await asyncio.gather(*tasks, self.moves.stop(), return_exceptions=True)
        self._workers.clear()

    def handle(self, event: Event) -> None:
        """News of the engine that concern slabs."""
        if self.moves.handle(event):
            return
        if event.kind == EventKind.SLAB_TOUCHED and self._policy.eager:
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
        self.moves.lost(peer)
        self._policy.slow.note(peer.slot, False)
        log.info("%d slabs of peer %s are served from the backup and pending buffers now", len(slabs), peer.address)

    def note_slow(self, peer: Peer, slow: bool) -> None:
        """The engine finds that a peer answers too late, or does not any more."""
        if not self._policy.slow.note(peer.slot, slow):
            return
        if slow:
            message = "peer %s answers too late: pages go to the backup, and come from there"
            log.warning(message, peer.address, extra=detail(peer=peer.address))
        else:
            log.info("peer %s answers in time again", peer.address)

    def reconcile(self) -> None:
        """Take from the engine's tables what lost events would have told."""
        states = self._engine.slabs["state"]
        self.moves.reconcile()
        for peer in self._peers:
            gone = [slab for slab in peer.slabs if states[slab] == SlabState.UNMAPPED]
            for slab in [slab for slab in gone if slab not in self._slabs.mapping]:
                self._released(peer, slab)
        if self._policy.eager:
            unmapped = (states == SlabState.UNMAPPED) & (self._engine.slabs["page_outs"] > 0)
            for index in np.flatnonzero(unmapped):
                self._want(int(index))

    def tick(self, elapsed_s: float) -> None:
        """Update activity, queue what should be mapped, give up what is to go."""
        table, policy = self._engine.slabs, self._policy
        policy.activity.update(table["page_ins"] + table["page_outs"], elapsed_s)
        self._fill_queue()
        self._drain(policy.cold(table["state"] == SlabState.MAPPED))
        mapped = table["state"] == SlabState.MAPPED
        for holder in self._holders():
            if (drain := policy.parting(holder, mapped)) is not None:
                self._drain(drain)
            if holder.parting:
                self._dismiss(self._peers.all[holder.slot])
        state = table["state"]
        draining = bool((state == SlabState.DRAINING).any()) or len(self.moves) > 0
        move = policy.move(
            self._holders(), state == SlabState.MAPPED, table["page_ins"], table["page_outs"], draining=draining
        )
        if move is not None:
            self._drain(move)

    def _holders(self) -> list[Holder]:
        return [
            Holder(peer.slot, peer.slabs, peer.free_bytes, peer.attached_s, parting=peer.parting)
            for peer in self._peers
            if peer.lease is not None and not peer.held
        ]

    def _want(self, slab: int) -> None:
        if self._policy.touch(slab):
            self._queue.append(slab)
            self._queued.set()

    def _fill_queue(self) -> None:
        if self._peers.came_up.is_set():
            self._peers.came_up.clear()
            self._policy.came_up()
        wanted = self._policy.to_map(self._engine.slabs["state"] == SlabState.UNMAPPED)
        if not self._peers.up():
            wanted = []
        # Built anew each time: what is no longer hot drops out, and the queue is never longer than the slab table.
        self._queue = deque(slab for slab in wanted if slab not in self._slabs.mapping)
        if self._queue:
            self._queued.set()

    def _drain(self, drain: Drain) -> None:
        """Begin to give up slabs."""
        begun = 0
        for slab in drain.slabs:
            if slab in self.moves:
                continue
            if drain.reason is not Reason.COLD and self.moves.begin(slab, drain.reason, to=drain.to):
                begun += 1
            elif self._give_up(slab):
                self._slabs.leave(slab, drain.reason, drain.to)
                log.debug("slab %d is given up: %s", slab, drain.reason)
                begun += 1
            if begun == drain.most:
                return

    def _give_up(self, slab: int) -> bool:
        """Begin to drain slab; False while the engine holds it, because pages of it are on no backup yet."""
        try:
            self._engine.unmap_slab(slab)
        except OSError as error:
            log.debug("slab %d is not given up yet: %s", slab, error)
            return False
        return True

    def _dismiss(self, peer: Peer) -> None:
        """End the lease of a peer that is to be let go or reached anew, once it holds nothing."""
        if not peer.slabs and not self._slabs.asked(peer.slot):
            if peer.retired:
                log.info("peer %s is not configured any more and holds nothing now", peer.address)
            self._peers.dismiss(peer)

    def _released(self, peer: Peer, slab: int) -> None:
        """The engine refers to the remote slab no more: give its memory back."""
        if peer.lease is None or slab not in peer.slabs:
            return
        reason = self._slabs.leaving(slab) or "it is lost there"
        log.debug("peer %s does not hold slab %d any more: %s", peer.address, slab, reason)
        self._slabs.let_go(slab)
        self.counts.released += 1
        self._record.unmapped(peer.lease, slab)
        self._spawn(peer.give_back(peer.lease, slab))

    def _slab_lost(self, peer: Peer, slab: int, error: int) -> None:
        """The peer refused a page of slab, so the engine dropped its remote copies; the peer's other slabs live on."""
        if peer.lease is None or slab not in peer.slabs:
            return
        log.warning(
            "peer %s refuses slab %d, which is lost there: %s",
            peer.address,
            slab,
            os.strerror(error),
            extra=detail(peer=peer.address, slab=slab, errno=error),
        )
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
        candidates = self._placer.candidates()
        if not candidates:
            self._queue.clear()  # nobody to ask before the next tick
            return False
        if await self._placer.place(slab, candidates, self._slabs.meant_for(slab), self._hand_over):
            return True
        self.counts.no_room += 1
        self._policy.no_room()
        self._queue.clear()
        return False

    def _hand_over(self, slab: int, peer: Peer, lease: HeldLease, region: Region | None) -> bool:
        """On record first, then to the engine.

        Before both: a process killed between the two must leave no page that seems to be at the new place.
        """
        self._slabs.take(slab, peer.slot)
        try:
            self._engine.forget_slab(slab)
            self._record.mapped(lease, slab)
            self._engine.map_slab(slab, peer.slot, region=peer.key_to(slab, region))
        except OSError as error:
            self._slabs.let_go(slab)
            self._record.unmapped(lease, slab)
            self.counts.failed += 1
            log.warning("slab %d is not mapped to peer %s: %s", slab, peer.address, error)
            self._spawn(peer.give_back(lease, slab))
            return False
        self._policy.mapped(slab)
        self.counts.mapped += 1
        log.debug("slab %d is mapped to peer %s", slab, peer.address)
        return True
