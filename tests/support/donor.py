"""A memory daemon in a thread of this process, on a host whose other programs take memory as the test says.

Everything is real but the look at the host: what its programs have taken is a number here, and what the slabs occupy is
read from the kernel, as the daemon does.
"""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Callable
from typing import Any, Self, TypeVar

from infiniswap.daemon.evictor import GIVE_UP_S
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.options import MemoryAmount
from infiniswap.daemon.service import MemoryService
from infiniswap.policy.headroom import HostMemory
from tests.support.daemon_api import MIB, daemon_config

START_TIMEOUT_S = 20.0
Value = TypeVar("Value")


class Donor:
    """One daemon. Use it as a context manager."""

    def __init__(
        self, memory_mib: int, *, host_mib: int, headroom_mib: int, give_up_s: float = GIVE_UP_S, **options: Any
    ) -> None:
        """host_mib: memory of the host, of which headroom_mib are kept free for its own programs.

        A test that leaves the host less than half of that finds slabs taken at once. give_up_s: from notice to force;
        long where a slow machine must not make the one into the other.
        """
        self.host_bytes = host_mib * MIB
        self.others_bytes = 0  # what programs of the host have taken; the test may change it at any time
        self._config = daemon_config(
            memory_bytes=memory_mib * MIB, headroom=MemoryAmount(size_bytes=headroom_mib * MIB), **options
        )
        self._service = MemoryService(self._config, give_up_s=give_up_s, read_host=self._host)
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def _host(self) -> HostMemory:
        lender = self._service._lender
        occupied = 0 if lender is None else lender.arena.occupied_bytes()
        return HostMemory(self.host_bytes, max(0, self.host_bytes - self.others_bytes - occupied))

    async def _run(self) -> None:
        await self._service.start()
        self._started.set()
        try:
            await self._over.wait()
        finally:
            await self._service.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_TIMEOUT_S), "the daemon does not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(START_TIMEOUT_S)
        assert not self._thread.is_alive(), "the daemon does not end"
        self._loop.close()

    @property
    def address(self) -> str:
        """As --peer takes it."""
        return str(self._service.http_address)

    @property
    def lender(self) -> Lender:
        """Of the daemon: to be used by do() alone."""
        assert self._service._lender is not None
        return self._service._lender

    def do(self, work: Callable[[], Value]) -> Value:
        """Call work in the daemon's thread."""

        async def call() -> Value:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(START_TIMEOUT_S)

    def get(self, path: str) -> Any:
        """Its answer to GET path of the control API."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=START_TIMEOUT_S) as answer:
            return json.load(answer)

    def free_bytes(self) -> int:
        """What the host has free now."""
        return self._host().available_bytes

    def counts(self) -> dict[str, int]:
        """What the daemon has counted."""
        counts: dict[str, int] = self.get("/v1/stats")["counts"]
        return counts
