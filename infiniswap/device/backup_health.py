"""Whether the backup is well: what the data path reports of it, and whether its path still leads to the file we write.

A device whose backup fails in part goes on by default (degrade); with --on-backup-error stop it stops in order.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from infiniswap.engine.binding import Event, EventKind
from infiniswap.shared.clock import Clock
from infiniswap.shared.logs import detail

log = logging.getLogger(__name__)

TICK_S = 1.0
RECENT_S = 10.0  # after an error the backup counts as failing for so long


class HealthEngine(Protocol):
    """What is read of the data path (binding.DeviceEngine)."""

    def counter(self, name: str) -> int:
        """See DeviceEngine.counter."""


class WatchedBackup(Protocol):
    """What is read of the backup (backup.Backup)."""

    path: Path

    def fileno(self) -> int:
        """See Backup.fileno."""

    def facts(self) -> dict[str, int | str | None]:
        """See Backup.facts."""


class BackupHealth:
    """Says once when the backup begins to fail and once when it is well again."""

    def __init__(
        self,
        engine: HealthEngine,
        backup: WatchedBackup,
        *,
        failed: Callable[[str], None] | None = None,
        clock: Clock,
    ) -> None:
        """failed: called once, with a sentence, at the first problem."""
        self._engine = engine
        self._backup = backup
        self.failed = failed
        self._clock = clock
        self._error = ""
        self._error_s = float("-inf")
        self._cut_pages: int | None = None
        self._told = False
        self._bad_pages = 0
        self._task: asyncio.Task[None] | None = None
        self.failure = ""  # why the device stops

    def start(self) -> None:
        """Begin to look, each second."""
        self._task = asyncio.create_task(self._look_forever(), name="backup health")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def handle(self, event: Event) -> None:
        """News of the engine that concern the backup."""
        if event.kind == EventKind.BACKUP_ERROR:
            self._error, self._error_s = os.strerror(event.value), self._clock()
        elif event.kind == EventKind.BACKUP_CUT:
            self._cut_pages = event.slab + (self._cut_pages or 0)
            log.error(
                "backup %s was cut short to %d bytes by somebody else: %d pages are lost",
                self._backup.path,
                event.value,
                event.slab,
            )

    def problems(self) -> list[str]:
        """What is wrong now, a sentence each."""
        found = []
        if self.removed():
            found.append("its file was removed or replaced; what is written now is found by nobody later")
        elif self.moved():
            found.append("its path leads elsewhere or nowhere now; what is written goes where it led before")
        if self._cut_pages is not None:
            found.append(f"it was cut short by somebody else, and {self._cut_pages} pages were lost")
        if doubtful := self._engine.counter("doubtful_pages"):
            found.append(
                f"{doubtful} pages may not be on it, for an fdatasync failed; FLUSH fails until they are written"
            )
        if resting := self._engine.counter("backup_resting_pages"):
            reason = self._error or "it reports errors"
            found.append(f"{reason}; {resting} pages are not on it yet and are tried again")
        elif self._clock() - self._error_s < RECENT_S:
            found.append(f"{self._error}; what is pending is tried again")
        return found

    def removed(self) -> bool:
        """Whether the file that is written has no name any more, so that it ends with this process."""
        return os.fstat(self._backup.fileno()).st_nlink == 0

    def moved(self) -> bool:
        """Whether the path does not lead to the file that is written: renamed, or its file system is not mounted."""
        try:
            ours, there = os.fstat(self._backup.fileno()), self._backup.path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False  # cannot be told now
        return (ours.st_dev, ours.st_ino, ours.st_rdev) != (there.st_dev, there.st_ino, there.st_rdev)

    def look(self) -> None:
        """Log when the backup begins to fail or is well again."""
        problems = self.problems()
        if problems and not self._told:
            log.error("the backup fails: %s", "; ".join(problems), extra=detail(backup=self._backup.path))
            if self.failed is not None:
                self.failure, failed, self.failed = problems[0], self.failed, None
                failed(f"the backup fails: {problems[0]}")
        elif self._told and not problems:
            log.info("the backup is well again")
        self._told = bool(problems)
        self._look_for_bad_pages()

    def _look_for_bad_pages(self) -> None:
        """What a log gave back changed: a line for those since the last look."""
        found = self._backup.facts().get("log_bad_pages")
        if isinstance(found, int) and found > self._bad_pages:
            log.error(
                "backup %s: %d pages read from its log do not meet their checksums: reading them fails until they are "
                "written again",
                self._backup.path,
                found - self._bad_pages,
            )
            self._bad_pages = found

    def snapshot(self) -> dict[str, Any]:
        """For GET /v1/status."""
        problems = self.problems()
        state = "degraded" if problems else "good"
        return {"backup_state": state, "backup_problems": problems, **self._backup.facts()}

    def numbers(self) -> dict[str, float | None]:
        """For Prometheus."""
        facts = {name: value for name, value in self._backup.facts().items() if not isinstance(value, str)}
        return {**facts, "backup_degraded": bool(self.problems())}

    async def _look_forever(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("the backup's health cannot be told")
            await asyncio.sleep(TICK_S)
