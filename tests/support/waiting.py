"""Waiting for a condition with a deadline, in place of sleeping for luck: one way in threads, one on an event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.support.pace import paced

Value = TypeVar("Value")
TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.02
LOOP_INTERVAL_S = 0.005  # a turn of the loop costs less than a look from outside


def wait_for(condition: Callable[[], Value], timeout_s: float = TIMEOUT_S, what: str = "the condition") -> Value:
    """The first true value of condition(); AssertionError that names what was waited for after timeout_s."""
    end_s = time.monotonic() + paced(timeout_s)
    while not (value := condition()):
        assert time.monotonic() < end_s, f"{what} did not come true within {timeout_s:g} s; last: {value!r}"
        time.sleep(POLL_INTERVAL_S)
    return value


async def eventually(
    condition: Callable[[], Awaitable[object] | object], what: str = "the condition", timeout_s: float = TIMEOUT_S
) -> None:
    """Let the loop run until condition() is true, a coroutine's result too; AssertionError after timeout_s."""
    end_s = time.monotonic() + paced(timeout_s)
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return
        assert time.monotonic() < end_s, f"{what} did not come true within {timeout_s:g} s; last: {value!r}"
        await asyncio.sleep(LOOP_INTERVAL_S)
