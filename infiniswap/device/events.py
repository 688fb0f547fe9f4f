"""The device's news for whoever listens: nobody waits for a slow listener."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

SUBSCRIBERS_MAX = 16
EVENTS_WAITING_MAX = 256  # per subscriber; beyond that it is told that it missed some

News = dict[str, Any]


class TooManyListenersError(Exception):
    """As many listen as may."""


class EventHub:
    """Hands news to those who listen; a slow listener misses some and is told so, and nobody waits for it."""

    def __init__(self) -> None:
        """Nobody listens yet."""
        self._queues: set[asyncio.Queue[News | None]] = set()

    def publish(self, kind: str, **details: Any) -> None:
        """Tell everybody."""
        for queue in self._queues:
            self._put(queue, {"kind": kind, **details})

    def close(self) -> None:
        """End all subscriptions."""
        for queue in self._queues:
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[News | None]]:
        """A queue of news; None ends it. TooManyListenersError at the limit."""
        if len(self._queues) >= SUBSCRIBERS_MAX:
            raise TooManyListenersError(f"{SUBSCRIBERS_MAX} clients are listening already")
        queue: asyncio.Queue[News | None] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    @staticmethod
    def _put(queue: asyncio.Queue[News | None], news: News) -> None:
        if queue.full():
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait({"kind": "missed"})
        queue.put_nowait(news)
