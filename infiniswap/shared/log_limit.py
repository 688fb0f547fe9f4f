"""How often lines of one kind are worth saying: a few, then one with the number of those that were held back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from infiniswap.shared.clock import Clock

BURST = 5  # lines of a kind that are said within INTERVAL_S
INTERVAL_S = 10.0
KINDS_MAX = 256  # that are remembered; of more, the one heard of longest ago is forgotten


@dataclass(slots=True)
class _Kind:
    began_s: float
    said: int = 0
    held_back: int = 0


class LogLimit:
    """Remembers at most KINDS_MAX kinds."""

    def __init__(self, clock: Clock) -> None:
        """Nothing was said yet."""
        self._clock = clock
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def admit(self, kind: Hashable) -> int | None:
        """None: hold this line back. Else say it, and that so many of its kind were held back before."""
        now_s = self._clock()
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Kind(now_s)
            if len(self._kinds) > KINDS_MAX:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(kind)
        held_back = 0
        if now_s - known.began_s >= INTERVAL_S:
            held_back = known.held_back
            known.began_s, known.said, known.held_back = now_s, 0, 0
        if known.said == BURST:
            known.held_back += 1
            return None
        known.said += 1
        return held_back
