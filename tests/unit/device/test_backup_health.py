"""What is wrong with the backup is said once when it begins and when it ends, and stops a device that wants that."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from infiniswap.device.backup_health import RECENT_S, BackupHealth
from infiniswap.engine.binding import Event, EventKind

ERROR = Event(EventKind.BACKUP_ERROR, 0, 0, errno.EIO)


class Image:
    """A file as the backup, with counters that a test sets, as the engine, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "vol.img"
        self.path.write_bytes(bytes(8192))
        self.file = self.path.open("r+b")
        self.counters = {"doubtful_pages": 0, "backup_resting_pages": 0}
        self.now_s = 100.0
        self.bad_pages: int | None = None

    def fileno(self) -> int:
        """As of a backup."""
        return self.file.fileno()

    def facts(self) -> dict[str, int | str | None]:
        """As of a backup."""
        return {"backup_layout": "log", "backup_bytes": 8192, "log_bad_pages": self.bad_pages}

    def counter(self, name: str) -> int:
        """As of an engine."""
        return self.counters[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def test_an_error_is_told_once_and_so_is_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten errors are one line, and ten quiet seconds another."""
    caplog.set_level(logging.INFO)
    with Image(tmp_path) as image:
        health = BackupHealth(image, image, clock=lambda: image.now_s)
        health.look()
        assert health.snapshot() == {"backup_state": "good", "backup_problems": [], **image.facts()}
        for _ in range(10):
            health.handle(ERROR)
            health.look()
        assert health.snapshot()["backup_state"] == "degraded"
        image.now_s += RECENT_S
        health.look()
        assert [record.message for record in caplog.records] == [
            "the backup fails: Input/output error; what is pending is tried again",
            "the backup is well again",
        ]


@pytest.mark.parametrize("counter", ["doubtful_pages", "backup_resting_pages"])
def test_degraded_while_pages_are_not_on_it(tmp_path: Path, counter: str) -> None:
    """However long ago the error was."""
    with Image(tmp_path) as image:
        health = BackupHealth(image, image, clock=lambda: image.now_s)
        image.counters[counter] = 7
        assert health.snapshot()["backup_state"] == "degraded"
        assert "7 pages" in health.problems()[0]
        image.counters[counter] = 0
        assert health.snapshot()["backup_state"] == "good"


def test_another_file_at_its_path(tmp_path: Path) -> None:
    """Removed, and another put in its place: nobody would find what is written now."""
    with Image(tmp_path) as image:
        health = BackupHealth(image, image, clock=lambda: image.now_s)
        assert not health.removed()
        assert not health.moved()
        image.path.unlink()
        assert health.removed()
        image.path.write_bytes(bytes(8192))
        assert health.removed()
        assert "removed or replaced" in health.problems()[0]


def test_bad_pages_of_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line for those found since the last look, and none for nothing."""
    with Image(tmp_path) as image:
        health = BackupHealth(image, image, clock=lambda: image.now_s)
        for image.bad_pages in (None, 0, 2, 2, 5):
            health.look()
        found = [record.message for record in caplog.records if "do not meet their checksums" in record.message]
        assert [line.split(": ")[1].split()[0] for line in found] == ["2", "3"]
        assert health.numbers() == {"backup_bytes": 8192, "log_bad_pages": 5, "backup_degraded": False}


def test_moved_away(tmp_path: Path) -> None:
    """Still whole, under another name: shown, but nothing is missing at a stop."""
    with Image(tmp_path) as image:
        health = BackupHealth(image, image, clock=lambda: image.now_s)
        image.path.rename(tmp_path / "elsewhere")
        assert health.moved()
        assert not health.removed()
        assert "elsewhere" in health.problems()[0]


def test_cut_short(tmp_path: Path) -> None:
    """Told for the rest of the device's life, with how much was lost."""
    with Image(tmp_path) as image:
        health = BackupHealth(image, image, clock=lambda: image.now_s)
        health.handle(Event(EventKind.BACKUP_CUT, 0, 12, 4096))
        image.now_s += 10 * RECENT_S
        assert "12 pages" in health.problems()[0]


def test_a_device_that_wants_to_stop(tmp_path: Path) -> None:
    """Told once, with the reason."""
    reasons: list[str] = []
    with Image(tmp_path) as image:
        health = BackupHealth(image, image, failed=reasons.append, clock=lambda: image.now_s)
        health.look()
        assert not reasons
        for _ in range(3):
            health.handle(ERROR)
            health.look()
            image.now_s += 2 * RECENT_S
            health.look()
        assert reasons == [f"the backup fails: {os.strerror(errno.EIO)}; what is pending is tried again"]
        assert health.failure in reasons[0]
