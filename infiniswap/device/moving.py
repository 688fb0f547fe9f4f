"""Takes slabs from one peer to another with their pages, where they are in use and another peer has room.

Another peer is looked for and maps the slab, and the engine copies the pages there while the slab is used as ever. When
the engine tells that the new place has all of them (SLAB_MOVED) the new peer goes on record and the engine is told so,
in one turn of the event loop; the old one's memory is given back when the engine refers to it no more. Whatever goes
wrong on the way leaves the slab where it was, and what is to leave all the same is drained to the backup then.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Coroutine
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from numpy.typing import NDArray

from infiniswap.device.daemon_client import HeldLease
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.placing import MapperCounts, Placer, SlabRecord
from infiniswap.device.slabs import Slabs
from infiniswap.engine.binding import Event, EventKind, SlabState
from infiniswap.policy.mapping import MappingPolicy, Reason
from infiniswap.policy.placement import Candidate, CoolDown
from infiniswap.shared.path_messages import Region

log = logging.getLogger(__name__)

MOVES_AT_ONCE = 32  # that the engine may have under way or a peer is looked for; others are drained
LIMIT_MS = 30_000  # for copying, where nobody is in a hurry
LIMIT_MS_MIN = 200  # with less time nothing is begun
FORGET_S = 60.0  # after dropped news: by then no request to the old peer is out any more, or it is lost
SEEK_SHARE = 0.3  # of the time, for finding a peer; what is left is for copying
COPY_SHARE = 0.7


class MovingEngine(Protocol):
    """What moving needs of the data path (binding.DeviceEngine)."""

    slabs: NDArray[Any]

    def unmap_slab(self, slab: int) -> None:
        """See DeviceEngine.unmap_slab."""

    def move_slab(self, slab: int, peer: int, limit_ms: int = 0, region: tuple[int, int] | None = None) -> None:
        """See DeviceEngine.move_slab."""

    def cancel_move(self, slab: int) -> None:
        """See DeviceEngine.cancel_move."""

    def settle_slab(self, slab: int) -> None:
        """See DeviceEngine.settle_slab."""


class _Stage(Enum):
    SEEKING = auto()  # a peer is looked for
    COPYING = auto()  # the engine is at it
    LEAVING = auto()  # the new peer has the slab; the engine still refers to the old one's memory


@dataclass(slots=True)
class _Move:
    slab: int
    reason: Reason
    deadline_s: float  # of the event loop's clock
    giver: Peer
    giver_lease: HeldLease
    stage: _Stage = _Stage.SEEKING
    taker: Peer | None = None
    lease: HeldLease | None = None  # of the taker
    key: tuple[int, int] | None = None  # to its memory, over RDMA
    guard: ExitStack = field(default_factory=ExitStack)  # a peer has memory for the slab, and does not hold it

    def keep(self, context: AbstractContextManager[None]) -> None:
        """Guard something else from now on."""
        self.guard.close()
        self.guard.enter_context(context)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _copy_ms(move: _Move) -> int:
    """What is left for copying; the rest is for what follows."""
    return max(1, int((move.deadline_s - _now_s()) * 1000 * COPY_SHARE))


class Moves:
    """Slabs on their way from one peer to another."""

    def __init__(
        self,
        engine: MovingEngine,
        peers: Peers,
        slabs: Slabs,
        policy: MappingPolicy,
        placer: Placer,
        counts: MapperCounts,
        *,
        cool_down: CoolDown,
        record: SlabRecord,
    ) -> None:
        """Nothing moves yet."""
        self._engine = engine
        self._peers = peers
        self._slabs = slabs
        self._policy = policy
        self._placer = placer
        self._counts = counts
        self._cool_down = cool_down
        self._record = record
        self._moves: dict[int, _Move] = {}  # by slab
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """End the tasks; what the engine copies it may still tell of."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __contains__(self, slab: int) -> bool:
        """Whether slab is on its way."""
        return slab in self._moves

    def __len__(self) -> int:
        """How many are."""
        return len(self._moves)

    # ---- beginning ----

    def begin(self, slab: int, reason: Reason, *, to: int | None = None, limit_ms: int = LIMIT_MS) -> bool:
        """Take slab to another peer; False: it is not worth it, or there is no peer or no time.

        to: this one and no other. limit_ms: until it is to be over. When it comes to nothing the slab is drained,
        unless it was only to be moved (Reason.MOVE).
        """
        move = self._moves.get(slab)
        if move is not None:
            return self._hurry(move, reason, limit_ms)
        giver = self._peers.owner(slab)
        if giver is None or giver.lease is None or limit_ms < LIMIT_MS_MIN or len(self._moves) >= MOVES_AT_ONCE:
            return False
        if self._engine.slabs["state"][slab] != SlabState.MAPPED or not self._policy.worth_moving(slab):
            return False
        candidates = [peer for peer in self._placer.candidates(but=giver.slot) if to is None or peer.slot == to]
        if not candidates:
            return False
        move = self._moves[slab] = _Move(slab, reason, _now_s() + limit_ms / 1000, giver, giver.lease)
        self._slabs.leave(slab, reason)
        self._spawn(self._seek(move, candidates, to))
        return True

    def _hurry(self, move: _Move, reason: Reason, limit_ms: int) -> bool:
        """It is on its way already; perhaps there is less time now."""
        if move.stage is _Stage.LEAVING:
            return False
        move.reason = reason
        self._slabs.leave(move.slab, reason)
        deadline_s = _now_s() + limit_ms / 1000
        if deadline_s >= move.deadline_s:
            return True
        move.deadline_s = deadline_s
        if move.stage is _Stage.COPYING and move.taker is not None:
            try:
                self._engine.move_slab(move.slab, move.taker.slot, _copy_ms(move), move.key)
            except OSError as error:
                log.debug("slab %d is not hurried: %s", move.slab, error)
        return True

    async def _seek(self, move: _Move, candidates: list[Candidate], to: int | None) -> None:
        def hand_over(slab: int, peer: Peer, lease: HeldLease, region: Region | None) -> bool:
            return self._hand_over(move, slab, peer, lease, region)

        try:
            async with asyncio.timeout((move.deadline_s - _now_s()) * SEEK_SHARE):
                await self._placer.place(move.slab, candidates, to, hand_over)
        except TimeoutError:
            log.debug("slab %d: no peer was found in time", move.slab)
        except Exception:
            log.exception("slab %d cannot be moved", move.slab)
        if self._moves.get(move.slab) is move and move.stage is _Stage.SEEKING:
            self._failed(move)

    def _hand_over(self, move: _Move, slab: int, peer: Peer, lease: HeldLease, region: Region | None) -> bool:
        """A peer has memory for the slab. True: that was the last one to be asked."""
        try:
            if self._moves.get(slab) is not move or self._slabs.holder(slab) != move.giver.slot:
                raise OSError(errno.ESTALE, "it is not there any more")
            move.key = peer.key_to(slab, region)
            self._engine.move_slab(slab, peer.slot, _copy_ms(move), move.key)
        except OSError as error:
            log.debug("slab %d does not move to peer %s: %s", slab, peer.address, error)
            self._spawn(peer.give_back(lease, slab))
            return True
        move.stage, move.taker, move.lease = _Stage.COPYING, peer, lease
        move.keep(self._slabs.asking(peer.slot, slab))
        log.debug("slab %d moves from peer %s to %s: %s", slab, move.giver.address, peer.address, move.reason)
        return True

    # ---- news ----

    def handle(self, event: Event) -> bool:
        """News of the engine; whether they were about a move, and nobody else's affair."""
        move = self._moves.get(event.slab)
        if event.kind == EventKind.SLAB_MOVED:
            if move is not None and move.taker is not None and move.taker.slot == event.peer:
                self._moved(move, event.value)
            return True
        if event.kind == EventKind.MOVE_FAILED:
            if move is not None and move.stage is _Stage.COPYING:
                self._came_to_nothing(move, event.value)
            return True
        leaving = move is not None and move.stage is _Stage.LEAVING and move.giver.slot == event.peer
        if event.kind == EventKind.SLAB_RELEASED and move is not None and leaving:
            self._left(move)
            return True
        return False

    def _moved(self, move: _Move, pages: int) -> None:
        """The new peer has what is remote: on record first, then the engine may write there."""
        taker, lease = move.taker, move.lease
        assert taker is not None
        assert lease is not None
        if move.stage is not _Stage.COPYING:
            return
        try:
            if taker.lease is not lease:
                raise OSError(errno.ESTALE, "its lease has ended")
            self._record.mapped(lease, move.slab)
        except OSError as error:
            # The engine has lost that peer, or is about to: the slab is nobody's then, and the old peer is told.
            log.debug("slab %d does not settle at peer %s: %s", move.slab, taker.address, error)
            self._end(move)
            return
        self._slabs.take(move.slab, taker.slot)
        move.stage = _Stage.LEAVING
        move.keep(self._slabs.asking(move.giver.slot, move.slab))
        try:
            self._engine.settle_slab(move.slab)
        except OSError as error:
            log.debug("slab %d is lost at peer %s: %s", move.slab, taker.address, error)
        else:
            self._counts.moved += 1
            self._policy.mapped(move.slab)
            message = "slab %d has moved from peer %s to %s with %d pages: %s"
            log.debug(message, move.slab, move.giver.address, taker.address, pages, move.reason)
        if move.giver.lease is not move.giver_lease:
            self._end(move)  # its end will not be told

    def _left(self, move: _Move) -> None:
        """The engine has done with the old peer's memory."""
        self._end(move)
        self._counts.released += 1
        if move.giver.lease is move.giver_lease:
            self._spawn(move.giver.give_back(move.giver_lease, move.slab))

    def _came_to_nothing(self, move: _Move, error: int) -> None:
        taker, lease = move.taker, move.lease
        assert taker is not None
        assert lease is not None
        self._failed(move)
        if taker.lease is lease:
            if error != errno.ECANCELED:
                self._cool_down.start(taker.slot)
            self._spawn(taker.give_back(lease, move.slab))

    def lost(self, peer: Peer) -> None:
        """A peer's lease died."""
        for move in list(self._moves.values()):
            if move.stage is _Stage.COPYING and move.taker is peer:
                self._failed(move)
            elif move.stage is _Stage.LEAVING and move.giver is peer:
                self._end(move)

    def abandon(self, slot: int, slab: int) -> None:
        """The peer that slab is on its way to wants the memory itself."""
        move = self._moves.get(slab)
        if move is None or move.stage is not _Stage.COPYING or move.taker is None or move.taker.slot != slot:
            return
        try:
            self._engine.cancel_move(slab)
        except OSError as error:
            log.debug("slab %d: %s", slab, error)

    def reconcile(self) -> None:
        """News were dropped: what is copied is called off, and what was left is given back by a heartbeat."""
        table = self._engine.slabs
        for move in list(self._moves.values()):
            if move.stage is _Stage.COPYING and move.taker is not None:
                try:
                    self._engine.cancel_move(move.slab)
                except OSError as error:
                    at = int(table["peer"][move.slab])
                    if error.errno == errno.EALREADY and at == move.taker.slot:
                        self._moved(move, int(table["remote_pages"][move.slab]))
                    elif error.errno == errno.EINVAL:
                        self._came_to_nothing(move, errno.EIO)
            elif move.stage is _Stage.LEAVING:
                asyncio.get_running_loop().call_later(FORGET_S, self._forget, move)

    def _forget(self, move: _Move) -> None:
        if self._moves.get(move.slab) is move and move.stage is _Stage.LEAVING:
            self._left(move)

    # ---- the end ----

    def _failed(self, move: _Move) -> None:
        """The slab stays where it is, or is drained if it must go."""
        self._end(move)
        if self._slabs.holder(move.slab) != move.giver.slot:
            return
        if move.reason is Reason.MOVE:
            self._slabs.stay(move.slab)
            return
        if self._engine.slabs["state"][move.slab] != SlabState.MAPPED:
            return
        try:
            self._engine.unmap_slab(move.slab)
        except OSError as error:
            log.debug("slab %d is not given up: %s", move.slab, error)
            self._slabs.stay(move.slab)

    def _end(self, move: _Move) -> None:
        move.guard.close()
        if self._moves.get(move.slab) is move:
            del self._moves[move.slab]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # At most two a move: the one that looks for a peer, and the one that gives memory back.
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
