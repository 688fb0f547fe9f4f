"""Clocks for tests: one that a test moves, and one on which a machine that stands still takes no time."""

from __future__ import annotations

import time


class FakeClock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class SteadyClock:
    """Monotonic seconds that pass while it is looked at: of a longer pause between two looks only step_max_s count.

    For what has deadlines below the time that a busy machine may stand still for: they come as looks go on, and not
    because nobody had a turn.
    """

    def __init__(self, step_max_s: float = 0.05) -> None:
        self._step_max_s = step_max_s
        self._now_s = 1000.0
        self._looked_s = time.monotonic()

    def __call__(self) -> float:
        looked_s = time.monotonic()
        self._now_s += min(looked_s - self._looked_s, self._step_max_s)
        self._looked_s = looked_s
        return self._now_s
