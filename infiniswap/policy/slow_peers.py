"""Peers that answer, but too late: left alone by placement, drained when it lasts, tried again after growing rests.

The engine notices (peer_slow.c): within a fraction of a request's deadline it stops to wait for such a peer. Here is
what follows for slabs. Pure decisions; the mapper carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass

from infiniswap.shared.clock import Clock

DRAIN_AFTER_S = 5.0  # slow for so long: what it holds is worth more elsewhere
DRAIN_SLABS_PER_S = 2  # drained slabs are served from the backup meanwhile; a few at a time
REST_MIN_S = 30.0  # without new slabs, after it was slow
REST_MAX_S = 900.0
GOOD_S = 600.0  # quick for so long after a rest: the next rest is a short one again


@dataclass(slots=True)
class _History:
    slow: bool = False
    changed_s: float = float("-inf")
    rest_s: float = 0.0
    rests_until_s: float = float("-inf")


class SlowPeers:
    """What to do with slow peers, by their slots."""

    def __init__(self, clock: Clock) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._peers: dict[int, _History] = {}

    def note(self, slot: int, slow: bool) -> bool:
        """The engine says so; whether that is news."""
        history = self._peers.setdefault(slot, _History())
        if history.slow == slow:
            return False
        now_s = self._clock()
        if slow:
            again = now_s - history.rests_until_s < GOOD_S
            history.rest_s = min(2 * history.rest_s, REST_MAX_S) if again else REST_MIN_S
        history.rests_until_s = now_s + history.rest_s  # from its end on: a peer that is slow rests anyway
        history.slow = slow
        history.changed_s = now_s
        return True

    def forget(self, slot: int) -> None:
        """Another peer has that slot now."""
        self._peers.pop(slot, None)

    def avoided(self, slot: int) -> bool:
        """Whether it is to get no slabs now."""
        history = self._peers.get(slot)
        return history is not None and (history.slow or self._clock() < history.rests_until_s)

    def drained(self, slot: int) -> bool:
        """Whether what it holds is to be given up, DRAIN_SLABS_PER_S."""
        history = self._peers.get(slot)
        return history is not None and history.slow and self._clock() - history.changed_s >= DRAIN_AFTER_S
