"""When a slab moves from a peer that holds many to one that holds few: a donor that comes back is used again, slowly.

Placement decides about slabs that are mapped anew; once all are mapped, a new donor, or one that was drained or down
for a while, would stay empty for ever. A move has a price: the pages are copied, and what cannot be copied in time
comes from the backup until it is written again. So only slabs that are being written to are moved, the least read
first, and a few a minute; only where shares differ much, and only to where placement would put it, too; and never while
peers have troubles of their own. Pure decisions; the mapper carries them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from infiniswap.shared.clock import Clock

MOVE_INTERVAL_S = 10.0  # between two moves of a device: six slabs a minute
SETTLED_S = 30.0  # a peer that was attached later than that neither gives nor takes
SHARE_RATIO = 2  # the giver holds more than so many times what the taker does
SHARE_DIFFERENCE_MIN = 3  # and so many slabs more; a move makes it two less, so no slab goes to and fro
FREE_DIFFERENCE_SLABS_MIN = 2  # the taker has room for so many slabs more than the giver, before the move


@dataclass(frozen=True, slots=True)
class Share:
    """A peer that is up: how many slabs of this device it holds, what it has free, since when it is attached."""

    slot: int
    slabs: int
    free_bytes: int
    attached_s: float


@dataclass(frozen=True, slots=True)
class Use:
    """A slab of the giver, and the page I/O on it since the last look."""

    slab: int
    page_ins: int
    page_outs: int


class Rebalance:
    """Decides about one move at a time."""

    def __init__(self, slab_bytes: int, rng: Random, clock: Clock) -> None:
        """clock: monotonic seconds, the same as in Share.attached_s."""
        self._slab_bytes = slab_bytes
        self._rng = rng
        self._clock = clock
        self._next_s = clock() + MOVE_INTERVAL_S

    def due(self) -> bool:
        """Whether it is time for a look; the next one is due MOVE_INTERVAL_S later, whatever comes of this one."""
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + MOVE_INTERVAL_S
        return True

    def pair(self, shares: Sequence[Share]) -> tuple[Share, Share] | None:
        """Giver and taker: two peers drawn at random, when their shares differ so much; None otherwise.

        Two choices and not the extremes: devices that all see the same empty donor must not all run to it at once.
        """
        settled = [share for share in shares if self._clock() - share.attached_s >= SETTLED_S]
        if len(settled) < 2:
            return None
        taker, giver = sorted(self._rng.sample(settled, 2), key=lambda share: share.slabs)
        much = giver.slabs > SHARE_RATIO * taker.slabs and giver.slabs - taker.slabs >= SHARE_DIFFERENCE_MIN
        room = taker.free_bytes - giver.free_bytes >= FREE_DIFFERENCE_SLABS_MIN * self._slab_bytes
        return (giver, taker) if much and room else None


def cheapest(slabs: Iterable[Use]) -> int | None:
    """The slab to move: the least read of those that are written to, which so become remote again; None: no such."""
    written = [use for use in slabs if use.page_outs > 0]
    return min(written, key=lambda use: (use.page_ins, -use.page_outs, use.slab)).slab if written else None
