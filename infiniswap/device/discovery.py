"""Peers that are found: in a file that somebody keeps, and by DNS SRV.

Each source has its task or thread; another task carries out what the policy makes of them. Whatever a source does, it
drops no peer: a file that is gone, half-written or nonsense, and a name service that does not answer, leave what was
named last as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from infiniswap.device import srv
from infiniswap.policy.discovery import Discovery
from infiniswap.shared import file_sd
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0  # at a file; it is believed when two looks agree
STEP_INTERVAL_S = 1.0
REFRESH_MIN_S, REFRESH_MAX_S = 5.0, 300.0  # between lookups, whatever records say how long they hold
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0  # after a lookup that failed


class Applier(Protocol):
    """Who adds and removes peers (changes.Changes)."""

    def discovered(self, discovery: Discovery) -> None:
        """Do what follows now."""


@dataclass(slots=True)
class _Source:
    state: str = "waiting"  # good, lost
    reason: str = ""
    named: int = 0
    since_s: float = 0.0


class FileLook:
    """One file, looked at again and again; tells a content once, when it is whole."""

    def __init__(self, file: Path) -> None:
        """Nothing is read yet."""
        self._file = file
        self._seen: tuple[int, ...] | None = None
        self._read: tuple[int, ...] | None = None

    def look(self) -> frozenset[HostPort] | None:
        """The targets, if the file has other content than at the last time; else None. OSError, ValueError: no list.

        A file that changes between two looks is still being written, and is left for the next one.
        """
        try:
            fd = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a FIFO, an open would wait
        except OSError:
            self._read = None
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no regular file")
            now = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            if now != self._seen or now == self._read:
                self._seen = now
                return None
            raw = os.read(fd, file_sd.FILE_BYTES_MAX + 1)
            self._read = now
        finally:
            os.close(fd)
        return file_sd.parse(raw, self._file)


class Finder:
    """The sources of one device, asked until it stops."""

    def __init__(
        self,
        *,
        file: Path | None,
        domain: str | None,
        server: HostPort | None,
        grace_s: float,
        known: tuple[HostPort, ...],
        applier: Applier,
        clock: Clock,
    ) -> None:
        """known: what was discovered when the device served last. clock: monotonic seconds."""
        self._file = file
        self._domain = domain
        self._server = server
        self._applier = applier
        self._clock = clock
        names = [str(file)] if file is not None else []
        names += [f"{srv.SERVICE}.{domain}"] if domain is not None else []
        self._sources = {name: _Source(since_s=clock()) for name in names}
        self.policy = Discovery(names, grace_s, clock, known)
        self._tasks: list[asyncio.Task[None]] = []
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to ask."""
        if not self._sources:
            return
        if self._file is not None:
            self._watch_file(self._file)
        if self._domain is not None:
            self._tasks.append(asyncio.create_task(self._ask_dns(self._domain), name="discovery by DNS"))
        self._tasks.append(asyncio.create_task(self._step_forever(), name="discovery"))

    async def stop(self) -> None:
        """End the tasks."""
        self._over.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def snapshot(self) -> list[dict[str, Any]]:
        """How the sources are, as GET /v1/config tells."""
        now_s = self._clock()
        return [
            {
                "source": name,
                "state": source.state,
                "reason": source.reason or None,
                "named": source.named,
                "for_s": round(now_s - source.since_s, 3),
            }
            for name, source in self._sources.items()
        ]

    def _good(self, name: str, named: frozenset[HostPort]) -> None:
        source = self._sources[name]
        if source.state != "good":
            if source.state == "lost":
                log.info("discovery: %s is good again", name)
            source.state, source.reason, source.since_s = "good", "", self._clock()
        source.named = len(named)
        if self.policy.heard(name, named):
            log.info("discovery: %s names %d peers", name, len(named))
            self._step()

    def _lost(self, name: str, reason: str) -> None:
        source = self._sources[name]
        if (source.state, source.reason) == ("lost", reason):
            return
        # Said once a reason: what it named last goes on to count.
        log.warning("discovery: %s is of no use, its peers stay as they are: %s", name, reason)
        if source.state != "lost":
            source.since_s = self._clock()
        source.state, source.reason = "lost", reason

    def _step(self) -> None:
        try:
            self._applier.discovered(self.policy)
        except Exception:
            log.exception("discovery went wrong; it goes on")

    async def _step_forever(self) -> None:
        while True:
            self._step()
            await asyncio.sleep(STEP_INTERVAL_S)

    def _watch_file(self, file: Path) -> None:
        """In a thread of its own, which is left behind at the end: a file system may hang, and nobody waits for it."""
        look = FileLook(file)
        loop = asyncio.get_running_loop()
        name = str(file)

        def tell(act: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(act)

        def watch() -> None:
            while not self._over.wait(LOOK_INTERVAL_S):
                try:
                    named = look.look()
                except OSError as error:
                    tell(partial(self._lost, name, error.strerror or str(error)))
                except ValueError as error:
                    tell(partial(self._lost, name, str(error)))
                except Exception as error:  # noqa: BLE001 - nothing that a file holds may end the watching
                    tell(partial(self._lost, name, f"it cannot be read: {type(error).__name__}"))
                else:
                    if named is not None:
                        tell(partial(self._good, name, named))

        threading.Thread(target=watch, name="discovery by file", daemon=True).start()

    async def _ask_dns(self, domain: str) -> None:
        name = f"{srv.SERVICE}.{domain}"
        retry_s = RETRY_MIN_S
        while True:
            pause_s = retry_s
            try:
                named, ttl_s = await srv.look_up(domain, self._server)
            except srv.NoAnswerError as error:
                self._lost(name, str(error))
                retry_s = min(2 * retry_s, RETRY_MAX_S)
            except Exception:
                log.exception("discovery: %s went wrong; it is tried again", name)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
            else:
                self._good(name, named)
                pause_s, retry_s = min(max(ttl_s, REFRESH_MIN_S), REFRESH_MAX_S), RETRY_MIN_S
            await asyncio.sleep(pause_s)
