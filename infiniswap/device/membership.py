"""Peers that come and go while the device serves: who may come, and the way out, which loses nothing.

A peer that is removed takes no more slabs; the mapper moves those that it holds to other peers, or drains them to the
backup, a few a second, and the last one ends the lease. At a deadline what is left is given up at once, as when a
donor dies, but only while every page of the device has another copy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from infiniswap.device.config import DeviceConfig
from infiniswap.device.limits import PEERS_MAX
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.reach import Reach
from infiniswap.device.slabs import Slabs
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.host_names import known_addresses

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.25
DEADLINE_S_DEFAULT = 600.0
DEADLINE_S_MAX = 86_400.0
SPARE_SLOTS = 4  # for peers that come while the device serves; each slot takes 0.6 MiB
SLOTS_MIN = 8


@dataclass(slots=True)
class _Leaving:
    slabs: int  # that it held at the beginning
    begun_s: float
    deadline_s: float
    waiting: str = ""  # why it is still here after the deadline


class MembershipEngine(Protocol):
    """What is needed of the data path (binding.DeviceEngine)."""

    peers: NDArray[Any]

    def counter(self, name: str) -> int:
        """See DeviceEngine.counter."""


def slots_for(config: DeviceConfig, retired: int) -> int:
    """Slots of an engine that begins with the configured peers and those retired, and has room for some more."""
    peers = len(config.peers) + retired
    if config.peers_max is not None:
        return min(PEERS_MAX, max(peers, config.peers_max))
    return PEERS_MAX if config.discovers else min(PEERS_MAX, max(SLOTS_MIN, peers + SPARE_SLOTS))


class Membership:
    """Adds and removes peers of a device that serves."""

    def __init__(
        self,
        peers: Peers,
        slabs: Slabs,
        engine: MembershipEngine,
        *,
        make: Callable[[int, HostPort], Peer],
        clock: Clock,
    ) -> None:
        """make: a peer in a slot. clock: monotonic seconds."""
        self._peers = peers
        self._slabs = slabs
        self._engine = engine
        self._slots = len(engine.peers)
        self._make = make
        self._clock = clock
        self.reach = Reach()
        self._leaving: dict[int, _Leaving] = {}  # by slot
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look at deadlines."""
        self._task = asyncio.create_task(self._watch(), name="membership")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def find(self, address: HostPort) -> Peer | None:
        """The peer of that name, one that leaves among them."""
        return next((peer for peer in self._peers if peer.address == address), None)

    async def admit(self, address: HostPort) -> bool:
        """As add(), after a look at what its name is known as.

        UserError REFUSED: another peer is the same daemon, or it is further than the device reaches.
        A name that is not known now is a peer all the same: it is looked up again until it is known.
        """
        others = [peer.address for peer in self._peers if peer.address != address]
        if (others or self.reach.local_only is not None) and self.find(address) is None:
            known = await known_addresses([address, *others])
            self.reach.refuse(address, (host for host, _ in known.get(address, ())))
            same = [other for other in others if known.get(address, frozenset()) & known.get(other, frozenset())]
            if same:
                raise UserError(f"{address} and {same[0]} are the same daemon; name each once", ExitCode.REFUSED)
        return self.add(address)

    def add(self, address: HostPort) -> bool:
        """Make it a peer, or keep it one if it was about to leave; False when it is one anyway.

        UserError: no room, or an address that the device must not reach.
        """
        peer = self.find(address)
        if peer is not None:
            was_leaving = peer.retired
            peer.retired = False
            self._leaving.pop(peer.slot, None)
            if was_leaving:
                log.info("peer %s stays", address)
            return was_leaving
        self.reach.refuse(address)
        peer = self._make(self._free_slot(), address)
        self._peers.add(peer)
        log.info("peer %s is added", address)
        return True

    def remove(self, address: HostPort, deadline_s: float = DEADLINE_S_DEFAULT) -> Peer:
        """Begin to take its slabs elsewhere; again: another deadline. UserError when there is no such peer."""
        peer = self.find(address)
        if peer is None:
            known = ", ".join(str(each.address) for each in self._peers)
            has = f"its peers are {known}" if known else "it has none"
            raise UserError(f"{address} is no peer of this device; {has}", ExitCode.NOT_FOUND)
        now_s = self._clock()
        begun = self._leaving.get(peer.slot)
        if not peer.retired or begun is None:
            begun = _Leaving(len(peer.slabs), now_s, 0.0)
            log.info("peer %s is to leave with %d slabs", address, len(peer.slabs))
        begun.deadline_s = now_s + deadline_s
        self._leaving[peer.slot] = begun
        peer.retired = True
        return peer

    def progress(self, peer: Peer) -> dict[str, Any] | None:
        """How far a peer is on its way out, as GET /v1/peers tells; None where it stays."""
        leaving = self._leaving.get(peer.slot)
        if leaving is None or not peer.retired:
            return None
        now_s = self._clock()
        return {
            "slabs": leaving.slabs,
            "left": len(peer.slabs),
            "elapsed_s": round(now_s - leaving.begun_s, 3),
            "deadline_in_s": round(max(0.0, leaving.deadline_s - now_s), 3),
            "waiting": leaving.waiting or None,
        }

    def look(self) -> None:
        """Give up at once what has passed its deadline; forget who is gone."""
        for slot, leaving in list(self._leaving.items()):
            peer = self._peers.all[slot]
            if peer.gone or not peer.retired:
                del self._leaving[slot]
            elif self._clock() >= leaving.deadline_s and peer.lease is not None:
                self._cut(peer, leaving)

    def _cut(self, peer: Peer, leaving: _Leaving) -> None:
        pages = self._engine.counter("only_remote_pages")
        if pages:
            if not leaving.waiting:
                log.warning("peer %s stays beyond its time: %d pages are not on the backup yet", peer.address, pages)
            leaving.waiting = f"{pages} pages are on no backup yet"
            return
        self._peers.lose(peer, "it was to leave by now")

    def _free_slot(self) -> int:
        slots = self._peers.all
        if len(slots) < self._slots:
            return len(slots)
        for peer in slots:
            busy = self._slabs.asked(peer.slot) or self._slabs.is_busy(peer.slot)
            if peer.gone and not busy:
                return peer.slot
        raise UserError(
            f"the device has room for {self._slots} peers at once since it was started; remove one, or start it again",
            ExitCode.RESOURCES,
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                self.look()
            except Exception:
                log.exception("a look at leaving peers went wrong")
