"""Waiting for a condition with a deadline, in place of sleeping for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.support.pace import paced

Value = TypeVar("Value")
POLL_INTERVAL_S = 0.02


def wait_for(condition: Callable[[], Value], timeout_s: float = 10.0, what: str = "the condition") -> Value:
    """The first true value of condition(); AssertionError that names what was waited for after timeout_s."""
    end_s = time.monotonic() + paced(timeout_s)
    while not (value := condition()):
        assert time.monotonic() < end_s, f"{what} did not come true within {timeout_s:g} s; last: {value!r}"
        time.sleep(POLL_INTERVAL_S)
    return value
