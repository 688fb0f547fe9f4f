"""Who holds a slab, since when, and why it is to go; and which slabs are on their way to a peer or back.

One table for the device. A peer, named by its slot, holds a slab from before the engine hears of it until after the
engine has let it go.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from infiniswap.policy.mapping import Reason
from infiniswap.shared.clock import Clock


class Slabs:
    """What of each slab is known beside the engine's table. Its size is bounded by the slabs of the device."""

    def __init__(self, clock: Clock) -> None:
        """Nobody holds anything. clock: monotonic seconds."""
        self._clock = clock
        self._held: dict[int, set[int]] = {}  # by slot
        self._holder: dict[int, int] = {}  # by slab
        self._since_s: dict[int, float] = {}
        self._leaving: dict[int, Reason] = {}
        self._meant_for: dict[int, int] = {}
        self._asked: dict[int, Counter[int]] = {}  # by slot
        self._returning: dict[int, set[int]] = {}
        self.mapping: set[int] = set()  # slabs for which a peer is looked for just now

    def held(self, slot: int) -> AbstractSet[int]:
        """Slabs that the peer holds; the set lives on."""
        return self._held.setdefault(slot, set())

    def holder(self, slab: int) -> int | None:
        """The peer that holds slab."""
        return self._holder.get(slab)

    def held_for_s(self, slab: int) -> float:
        """How long slab has been where it is; 0 where nobody holds it."""
        now_s = self._clock()
        return now_s - self._since_s.get(slab, now_s)

    def take(self, slab: int, slot: int) -> None:
        """The peer holds slab from now on, and nobody else."""
        self.let_go(slab)
        self._held.setdefault(slot, set()).add(slab)
        self._holder[slab] = slot
        self._since_s[slab] = self._clock()

    def let_go(self, slab: int) -> None:
        """Nobody holds slab any more."""
        slot = self._holder.pop(slab, None)
        if slot is not None:
            self._held[slot].discard(slab)
            del self._since_s[slab]
            self._leaving.pop(slab, None)

    def lose(self, slot: int) -> frozenset[int]:
        """The peer holds nothing any more; what it held."""
        lost = frozenset(self.held(slot))
        for slab in lost:
            self.let_go(slab)
        return lost

    def leave(self, slab: int, reason: Reason, meant_for: int | None = None) -> None:
        """Slab is about to be let go. meant_for: the peer that is to have it then."""
        self._leaving[slab] = reason
        if meant_for is not None:
            self._meant_for[slab] = meant_for

    def stay(self, slab: int) -> None:
        """Slab is not to be let go after all."""
        self._leaving.pop(slab, None)
        self._meant_for.pop(slab, None)

    def leaving(self, slab: int) -> Reason | None:
        """Why slab is about to be let go; None: it is not, as far as is known here."""
        return self._leaving.get(slab)

    def meant_for(self, slab: int) -> int | None:
        """The peer that slab is meant for; asked once."""
        return self._meant_for.pop(slab, None)

    @contextlib.contextmanager
    def asking(self, slot: int, slab: int) -> Iterator[None]:
        """The peer may have memory for slab and does not hold it: it is being asked to take it, or slab moves."""
        asked = self._asked.setdefault(slot, Counter())
        asked[slab] += 1
        try:
            yield
        finally:
            asked[slab] -= 1
            if not asked[slab]:
                del asked[slab]

    def asked(self, slot: int) -> AbstractSet[int]:
        """Slabs that the peer may have memory for and does not hold; the set lives on."""
        return self._asked.setdefault(slot, Counter()).keys()

    @contextlib.contextmanager
    def giving_back(self, slot: int, slab: int) -> Iterator[None]:
        """The peer's memory for slab is being given back."""
        returning = self._returning.setdefault(slot, set())
        returning.add(slab)
        try:
            yield
        finally:
            returning.discard(slab)

    def is_busy(self, slot: int) -> bool:
        """Whether memory of any slab is being given back to the peer."""
        return bool(self._returning.get(slot))

    def is_given_back(self, slot: int, slab: int) -> bool:
        """Whether the peer's memory for slab is being given back."""
        return slab in self._returning.get(slot, ())
