"""The daemon's end: what asks for it, and the time that devices get to move their pages away before it."""

from __future__ import annotations

import asyncio
import logging
import signal

from infiniswap.daemon.draining import Draining
from infiniswap.shared.notify import notify
from infiniswap.shared.output import say

log = logging.getLogger(__name__)

TELL_INTERVAL_S = 1.0  # between words to the service manager
EXTENSION_S = 20.0  # for which each of them puts its patience off
LATE_S = 5.0  # after the deadline, for slabs that are being taken
LINGER_S = 1.0  # after a drain that was to end in a stop: who watches it sees the result


class StopSignals:
    """SIGTERM and SIGINT: the first asks for a stop in order, the second for one at once."""

    def __init__(self) -> None:
        """Take the running loop's signals."""
        self.wanted = asyncio.Event()
        self.at_once = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.come)

    def come(self) -> None:
        """One of them has come."""
        if self.wanted.is_set():
            self.at_once.set()
        self.wanted.set()


async def until_stop(signals: StopSignals, draining: Draining) -> None:
    """Until the daemon is to end: by a signal, or by a drain that was to end so."""
    await _first(signals.wanted, draining.stop_wanted)
    if not signals.wanted.is_set():
        await _first(signals.wanted, timeout_s=LINGER_S)


async def drain_before_stop(draining: Draining, signals: StopSignals, timeout_s: float) -> None:
    """Give devices timeout_s to move their pages away; a second signal ends the waiting.

    The service manager is asked for patience meanwhile (EXTEND_TIMEOUT_USEC, sd_notify(3)).
    """
    notify("STOPPING=1")
    if timeout_s <= 0 or draining.left() == 0:
        return
    say(
        f"infiniswapd: {draining.left()} slabs are moved away before the stop, within {timeout_s:g} s; "
        "a second signal stops at once"
    )
    draining.hasten(timeout_s)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s + LATE_S
    while not (draining.is_over.is_set() or signals.at_once.is_set()) and loop.time() < end_s:
        status = f"STATUS=stopping: {draining.left()} slabs are still lent"
        notify(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_S * 1e6)}", status)
        await _first(draining.is_over, signals.at_once, timeout_s=TELL_INTERVAL_S)
    if draining.left():
        log.warning("stopping with %d slabs still lent: their devices go on with their backups", draining.left())


async def _first(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Until one of events is set, or timeout_s have passed."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
