"""Says a thing once and counts the rest: what happens a thousand times a second is worth a line in ten seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable

from infiniswap.shared.clock import Clock
from infiniswap.shared.logs import LIMITED

COMPLAINT_INTERVAL_S = 10.0  # between log lines of one kind, however often it happens


class Complaints:
    """Lets one log line of a kind through every COMPLAINT_INTERVAL_S, and tells how many it held back."""

    def __init__(self, log: logging.Logger, clock: Clock = time.monotonic) -> None:
        """Nothing was said yet. Kinds are few: they are remembered for ever."""
        self._log = log
        self._clock = clock
        self._last_s: dict[Hashable, float] = {}
        self._held_back: dict[Hashable, int] = {}

    def say(self, kind: Hashable, message: str, level: int = logging.ERROR) -> None:
        """Log message, unless one of its kind was logged just now."""
        now = self._clock()
        if now - self._last_s.get(kind, float("-inf")) < COMPLAINT_INTERVAL_S:
            self._held_back[kind] = self._held_back.get(kind, 0) + 1
            return
        more = self._held_back.pop(kind, 0)
        self._last_s[kind] = now
        told = f" ({more} more like this suppressed)" if more else ""
        self._log.log(level, "%s%s", message, told, extra={LIMITED: True})
