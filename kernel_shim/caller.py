"""Calls that may hang in the kernel, made in a thread that is left behind when they do.

The thread is started beforehand and kept: the moment when it is needed may be one at which the host has no memory for a
new one, because what would free some waits for this very call.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Job:
    call: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]

    def run(self) -> None:
        failure: BaseException | None = None
        try:
            self.call()
        except Exception as error:  # noqa: BLE001  (handed to the waiter whatever it is)
            failure = error
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._finish, failure)

    def _finish(self, failure: BaseException | None) -> None:
        if self.done.done():
            return
        if failure is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(failure)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()


class Caller:
    """One thread for one call at a time; a call that hangs costs the thread, and the next one gets another."""

    def __init__(self, name: str) -> None:
        """name: the threads'."""
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] | None = None

    def prepare(self) -> None:
        """Start the thread, if there is none."""
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True).start()

    async def call(self, call: Callable[[], None], timeout_s: float) -> None:
        """Run call; what it raises is raised here. TimeoutError when it has not returned within timeout_s."""
        self.prepare()
        assert self._jobs is not None
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._jobs.put(_Job(call, loop, done))
        returned = False
        try:
            await asyncio.wait_for(done, timeout_s)
            returned = True
        except (TimeoutError, asyncio.CancelledError):
            raise
        except Exception:
            returned = True
            raise
        finally:
            if not returned:
                self.close()

    def close(self) -> None:
        """Let the thread end, once it comes back."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None
