"""The clock that is passed through, so that a test or a simulator can turn it."""

from collections.abc import Callable

Clock = Callable[[], float]  # seconds that only grow, from any beginning
