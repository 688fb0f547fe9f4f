"""News of a device with shards: what each of them tells, with its name, and what becomes of them.

The parent listens to each as long as it serves, whoever listens to the parent: nothing is missed at the beginning.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import aiohttp

from infiniswap.device.events import EventHub
from infiniswap.device.events_api import HEARTBEAT_S, PATH
from infiniswap.shared.paths import control_socket

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
NEWS_BYTES_MAX = 64 << 10  # of one piece, with the reasons that it gives
AGAIN_S = 1.0  # between two tries to listen to one that serves


class ShardsNews:
    """Hands on what the shards tell."""

    def __init__(self, runtime_dir: Path) -> None:
        """Nobody is listened to yet."""
        self.hub = EventHub()
        self._runtime_dir = runtime_dir
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def serves(self, shard: str) -> None:
        """Listen to that one from now on."""
        self._end(shard)
        self._tasks[shard] = asyncio.create_task(self._follow(shard))

    def died(self, shard: str, why: str) -> None:
        """Nothing more comes from that one."""
        self._end(shard)
        self.hub.publish("shard_died", shard=shard, why=why)

    def restarted(self, shard: str) -> None:
        """It serves again."""
        self.hub.publish("shard_restarted", shard=shard)
        self.serves(shard)

    async def close(self) -> None:
        """End all subscriptions, ours and those of others."""
        self.hub.close()
        tasks = list(self._tasks.values())
        for name in list(self._tasks):
            self._end(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, shard: str) -> None:
        if (task := self._tasks.pop(shard, None)) is not None:
            task.cancel()

    async def _follow(self, shard: str) -> None:
        path = str(control_socket(self._runtime_dir, shard))
        while True:
            try:
                timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S)
                async with (
                    aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), timeout=timeout) as session,
                    session.ws_connect(
                        f"http://device{PATH}", heartbeat=HEARTBEAT_S, max_msg_size=NEWS_BYTES_MAX
                    ) as websocket,
                ):
                    async for message in websocket:
                        if message.type == aiohttp.WSMsgType.TEXT:
                            self._hand_on(shard, message.data)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.debug("'%s' cannot be listened to: %s", shard, error)
            await asyncio.sleep(AGAIN_S)

    def _hand_on(self, shard: str, text: str) -> None:
        try:
            news: dict[str, Any] = dict(json.loads(text))
            kind = str(news.pop("kind"))
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # it is our own program; another version's words are passed over
        news.pop("shard", None)
        self.hub.publish(kind, shard=shard, **news)
