"""Scrubbing and verifying: the engine compares all copies with their checksums in the background; only one mends.

One pass goes on at a time, of either kind; this begins, ends and tells.
"""

from __future__ import annotations

import errno
import logging
from typing import Any, Protocol

from infiniswap.engine.binding import PAGE_BYTES, Copy, Event, EventKind
from infiniswap.shared.clock import Clock

log = logging.getLogger(__name__)

_COUNTERS = ("checked_pages", "remote_repairs", "backup_repairs", "record_repairs", "unreadable_pages")
_VERIFY_COUNTERS = ("remote_pages", "backup_pages", "wrong_remote", "wrong_backup", "wrong_records", "skipped_pages")
_LOOKED_AT = ("checked_pages", "remote_pages", "backup_pages", "skipped_pages")
DIFFERENCES_MAX = 256  # that are told one by one; all are counted


class ScrubbedEngine(Protocol):
    """What is asked of the data path (binding.DeviceEngine)."""

    def scrub(self, pages_per_s: int) -> None:
        """Begin, or end with 0."""

    def verify(self, pages_per_s: int) -> None:
        """Begin a pass that changes nothing."""

    def counter(self, name: str) -> int:
        """One counter by its name."""


class ScrubRunningError(Exception):
    """One scrub at a time."""


class Scrub:
    """The device's scrub: the one that goes on, or the last one."""

    def __init__(self, engine: ScrubbedEngine, size_bytes: int, clock: Clock) -> None:
        """Nothing is begun. clock: monotonic seconds."""
        self._engine = engine
        self._pages = size_bytes // PAGE_BYTES
        self._clock = clock
        self._state = "never"
        self._rate_bytes_s = 0
        self._begun_s = self._ended_s = 0.0
        self._before: dict[str, int] = {}
        self._verifies = False
        self._differences: list[dict[str, Any]] = []
        self._counted: dict[str, int] = dict.fromkeys(self._counters(), 0)
        self._position = 0

    def begin(self, rate_bytes_s: int, *, verify: bool = False) -> None:
        """Look at the whole device from its first page on, and change nothing where verify. ScrubRunningError."""
        if self._state == "running":
            raise ScrubRunningError("a scrub is going on already")
        before = self._counters()
        try:
            begin = self._engine.verify if verify else self._engine.scrub
            begin(max(1, rate_bytes_s // PAGE_BYTES))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise ScrubRunningError("the last scrub is just ending; try again") from None
        self._before, self._verifies, self._differences = before, verify, []
        self._state, self._rate_bytes_s = "running", rate_bytes_s
        self._begun_s = self._clock()
        log.info("%s: comparing all copies, %d MiB a second", self._mode, rate_bytes_s >> 20)

    def end(self) -> None:
        """End it where it is; nothing to do when none goes on."""
        if self._state == "running":
            self._engine.scrub(0)
            self._close("ended")

    def handle(self, event: Event) -> None:
        """News of the engine; of a scrub that was ended it may come when the next one has begun."""
        if event.kind == EventKind.DIFFERS and self._verifies and len(self._differences) < DIFFERENCES_MAX:
            self._differences.append({"page": event.value, "copy": Copy(event.slab).name.lower()})
        at_end = event.kind == EventKind.SCRUBBED and self._engine.counter("scrub_position_pages") >= self._pages
        if at_end and self._state == "running":
            self._close("done")
            found = {name: count for name, count in self._counted.items() if count and name not in _LOOKED_AT}
            level = logging.WARNING if found else logging.INFO
            told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found.items())
            looked = self._counted["remote_pages" if self._verifies else "checked_pages"]
            log.log(level, "%s: %d pages compared; %s", self._mode, looked, told or "all of them right")

    def snapshot(self) -> dict[str, Any]:
        """As GET /v1/scrub answers: state is never, running, done or ended; counts are those of this scrub."""
        if self._state == "running":
            self._count()
        until_s = self._clock() if self._state == "running" else self._ended_s
        return {
            "state": self._state,
            "mode": self._mode,
            "rate_bytes_s": self._rate_bytes_s,
            "position_bytes": self._position * PAGE_BYTES,
            "size_bytes": self._pages * PAGE_BYTES,
            "seconds": round(until_s - self._begun_s, 3),
            **self._counted,
            "differences": list(self._differences),
        }

    @property
    def _mode(self) -> str:
        return "verify" if self._verifies else "scrub"

    def _close(self, state: str) -> None:
        self._count()
        self._state, self._ended_s = state, self._clock()

    def _counters(self) -> dict[str, int]:
        now = {name: self._engine.counter(f"scrub_{name}") for name in _COUNTERS}
        now |= {name: self._engine.counter(f"verify_{name}") for name in _VERIFY_COUNTERS}
        # Of a pass of one kind the other counts nothing.
        now["unreadable_pages"] += self._engine.counter("verify_unreadable_pages")
        return {**now, "lost_pages": self._engine.counter("lost_pages")}

    def _count(self) -> None:
        now = self._counters()
        self._counted = {name: now[name] - self._before[name] for name in now}
        self._position = self._engine.counter("scrub_position_pages")
