"""Watches over the host's memory, hears of pressure and of blown fuses, and has lent memory taken back.

Slow: a sample each second; what is lent beyond what may be is the evictor's to ask back. Fast: while slabs occupy
memory and less than four headrooms are left, a look each tenth of a second, since a program takes half a gigabyte in
less than one. At once: a PSI trigger, and a fuse that the OOM killer blew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infiniswap.daemon import cgroup
from infiniswap.daemon.fuses import Fuses
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import PRESSURE_PATH, MemoryMonitor
from infiniswap.daemon.pressure import PressureTriggers
from infiniswap.shared.clock import Clock
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)

SAMPLE_INTERVAL_S = 1.0  # of the paper's monitor
LOOK_INTERVAL_S = 0.1
NEAR_HEADROOMS = 4  # with less than so many left it is looked at more often
BLOWN_SHARE = 8  # a blown fuse costs at least one part in so many of what slabs occupy


class Taker(Protocol):
    """Who takes lent memory back (evictor.Evictor)."""

    def wake(self) -> None:
        """Ask back what is lent beyond what may be."""

    def force_now(self, wanted_bytes: int) -> int:
        """Take so much at once, without asking; bytes whose freeing has begun."""


@dataclass(slots=True)
class GuardCounts:
    """Events since the start, ever growing."""

    looks: int = 0
    hard_pressed: int = 0
    pressure_events: int = 0
    fuses_blown: int = 0


class Guard:
    """The loop, and what is told to it from outside. start() once, then close() once."""

    def __init__(
        self,
        lender: Lender,
        monitor: MemoryMonitor,
        taker: Taker,
        *,
        clock: Clock,
        fuses: int,
        pressure_files: list[Path] | None = None,
        interval_s: float = SAMPLE_INTERVAL_S,
    ) -> None:
        """fuses: how many, 0 for none; pressure_files: None for this host's own."""
        self.counts = GuardCounts()
        self.fuses = Fuses(fuses, self.blown, clock=clock)
        files = [PRESSURE_PATH, *cgroup.pressure_files()] if pressure_files is None else pressure_files
        self.triggers = PressureTriggers(files, self.pressed)
        self._lender = lender
        self._monitor = monitor
        self._taker = taker
        self._clock = clock
        self._interval_s = interval_s
        self._complaints = Complaints(log, clock)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self.triggers.start()
        self.fuses.start()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, and end the fuses."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.triggers.close()
        await self.fuses.close()

    @property
    def near(self) -> bool:
        """Whether a burst could use up what is left before the next sample."""
        left_bytes = self._monitor.host.available_bytes
        return self._monitor.occupied_bytes > 0 and left_bytes < NEAR_HEADROOMS * self._monitor.headroom_bytes

    def pressed(self) -> None:
        """Tasks of this host wait for memory."""
        self.counts.pressure_events += 1
        self.look()

    def blown(self) -> None:
        """The OOM killer has taken a fuse, and will take the next: a share of lent memory goes at once.

        By what was seen last: to look at the host takes memory of the kernel's, and so does a line in a log; whoever
        wants some now waits until there is some.
        """
        self.counts.fuses_blown += 1
        wanted_bytes = max(self._lender.arena.occupied_bytes() // BLOWN_SHARE, self._missing_bytes())
        if wanted_bytes > 0:
            self._taker.force_now(wanted_bytes)
        log.warning("the OOM killer took a fuse: %s of lent memory went at once", format_size(wanted_bytes))
        self.look()

    def look(self) -> None:
        """Look at the host and do what follows."""
        self.counts.looks += 1
        if self._see(self._monitor.refresh):
            self._act()

    def sample(self) -> None:
        """As look(), and the averages move; to be called every second."""
        self.counts.looks += 1
        if self._see(self._monitor.sample):
            self._act()

    def _see(self, look: Callable[[], None]) -> bool:
        """Whether the host could be looked at."""
        try:
            look()
        except OSError as error:  # no descriptor is free
            self._complaints.say(error.errno, f"the host's memory cannot be looked at: {error}")
            return False
        return True

    def _act(self) -> None:
        if self._lender.shortage_bytes() > 0:
            self._taker.wake()
        if not self._monitor.hard_pressed:
            return
        missing_bytes = self._missing_bytes()
        if missing_bytes > 0:
            self.counts.hard_pressed += 1
            self._taker.force_now(missing_bytes)

    def _missing_bytes(self) -> int:
        """What is missing beyond what is being cleared just now."""
        return max(0, self._monitor.missing_bytes - self._lender.clearing.in_hand_bytes)

    async def _run(self) -> None:
        next_sample_s = self._clock() + self._interval_s
        while True:
            due_s = max(0.0, next_sample_s - self._clock())
            await asyncio.sleep(min(LOOK_INTERVAL_S, due_s) if self.near else due_s)
            try:
                if self._clock() < next_sample_s:
                    self.look()
                    continue
                next_sample_s = self._clock() + self._interval_s
                self.sample()
            except Exception:
                log.exception("a look at the host failed; the next one comes")
