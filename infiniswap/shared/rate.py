"""How often somebody may do a thing: so many at once, and so many a second after that."""

from __future__ import annotations

from collections.abc import Hashable

from infiniswap.shared.clock import Clock

CLIENTS_MAX = 1024  # that are remembered; those who have been quiet longest are forgotten first


class Rate:
    """One bucket of tokens a client."""

    def __init__(self, *, burst: int, per_second: float, clock: Clock, clients_max: int = CLIENTS_MAX) -> None:
        """clock: monotonic seconds."""
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._clients_max = clients_max
        self._left: dict[Hashable, tuple[float, float]] = {}  # tokens, and when; the latest last

    def take(self, client: Hashable) -> bool:
        """Whether the client may, once more, now."""
        now = self._clock()
        tokens, at_s = self._left.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - at_s) * self._per_second)
        granted = tokens >= 1
        self._left[client] = (tokens - granted, now)
        if len(self._left) > self._clients_max:
            del self._left[next(iter(self._left))]
        return granted
