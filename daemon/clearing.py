"""What takes milliseconds a block and is done by threads: clearing memory that came back, having pages there at once.

Until a block is cleared it is nobody's; one that cannot be cleared is never free again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.refused import Refusal, RefusedError

log = logging.getLogger(__name__)

CLEARING_THREADS = 2
CLEARING_BATCH = 64  # blocks that become free together; bounds the tasks that a large lease leaves behind


class Clearing:
    """The threads, and the blocks that they have in hand."""

    def __init__(self, arena: Arena) -> None:
        """Nothing is begun."""
        self.cleared_bytes = 0  # since the start
        self.in_hand_bytes = 0  # on its way back to the host
        self._arena = arena
        self._threads = ThreadPoolExecutor(CLEARING_THREADS, thread_name_prefix="clear")
        # A thread takes memory to begin, and when it is needed most there may be none: all of them begin now.
        together = threading.Barrier(CLEARING_THREADS + 1)
        for _ in range(CLEARING_THREADS):
            self._threads.submit(together.wait)
        together.wait()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until no thread touches the arena any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._threads.shutdown()

    async def populate(self, offset: int, size_bytes: int) -> None:
        """Have a block's pages there, by a thread; RefusedError."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self.populate_now, offset, size_bytes)

    def populate_now(self, offset: int, size_bytes: int) -> None:
        """Have a block's pages there when this returns; RefusedError."""
        try:
            self._arena.populate(offset, size_bytes)
        except OSError as error:
            log.warning("%s", error)
            sentence = "this host has no memory for another slab that must be there at once"
            raise RefusedError(Refusal.NO_MEMORY, sentence) from error

    async def recover(self, offsets: list[int], size_bytes: int) -> None:
        """Clear blocks that nobody can reach any more, and free them. Goes on when the caller is cancelled."""
        tasks = self.begin(offsets, size_bytes)
        if tasks:
            await asyncio.shield(asyncio.gather(*tasks))

    def begin(self, offsets: list[int], size_bytes: int) -> list[asyncio.Task[None]]:
        """As recover(), without waiting for it. The threads begin at once, not when the loop comes to it."""
        batches = [offsets[start : start + CLEARING_BATCH] for start in range(0, len(offsets), CLEARING_BATCH)]
        self.in_hand_bytes += size_bytes * len(offsets)
        loop = asyncio.get_running_loop()
        done = [loop.run_in_executor(self._threads, self._clear_in_thread, batch, size_bytes) for batch in batches]
        tasks = [
            asyncio.create_task(self._clear(future, batch, size_bytes))
            for future, batch in zip(done, batches, strict=True)
        ]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return tasks

    async def _clear(self, cleared: asyncio.Future[None], offsets: list[int], size_bytes: int) -> None:
        # Should this ever fail, the blocks stay allocated: memory that was not cleared is never lent again.
        try:
            await cleared
        finally:
            self.in_hand_bytes -= size_bytes * len(offsets)
        for offset in offsets:
            self._arena.allocator.free(offset)
        self.cleared_bytes += size_bytes * len(offsets)

    def _clear_in_thread(self, offsets: list[int], size_bytes: int) -> None:
        for offset in offsets:
            self._arena.clear(offset, size_bytes)
