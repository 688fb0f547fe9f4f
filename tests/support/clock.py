"""A clock that a test moves."""

from __future__ import annotations


class FakeClock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
