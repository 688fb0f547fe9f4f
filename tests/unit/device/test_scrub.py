"""A scrub is begun once, counted for itself, ended in order, and told in words that fit what was found."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from infiniswap.cli.device_scrub import read_rate, verdict
from infiniswap.cli.device_verify import lacking, words
from infiniswap.device.scrub import DIFFERENCES_MAX, Scrub, ScrubRunningError
from infiniswap.engine.binding import PAGE_BYTES, Event, EventKind
from infiniswap.shared.errors import UserError

PAGES = 100


class FakeEngine:
    """Counters that the test sets."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.calls: list[int] = []
        self.busy = False

    def scrub(self, pages_per_s: int) -> None:
        if self.busy:
            raise OSError(errno.EBUSY, "scrub: busy")
        self.calls.append(pages_per_s)
        if pages_per_s:
            self.counters["scrub_position_pages"] = 0

    def verify(self, pages_per_s: int) -> None:
        self.scrub(-pages_per_s)

    def counter(self, name: str) -> int:
        return self.counters.get(name, 0)

    def count(self, **more: int) -> None:
        for name, value in more.items():
            self.counters[name] = self.counters.get(name, 0) + value


@pytest.fixture
def engine() -> FakeEngine:
    """Nothing is counted yet."""
    return FakeEngine()


@pytest.fixture
def scrub(engine: FakeEngine) -> Scrub:
    """Of a device of PAGES."""
    return Scrub(engine, PAGES * PAGE_BYTES, clock=lambda: 5.0)


def scrubbed() -> Event:
    """The engine has come to the end."""
    return Event(EventKind.SCRUBBED, 0, 0, 0)


def test_counts_are_those_of_this_scrub(engine: FakeEngine, scrub: Scrub) -> None:
    """What was counted before it began is not its own."""
    engine.count(scrub_checked_pages=7, lost_pages=3)
    scrub.begin(8 * PAGE_BYTES)
    assert engine.calls == [8]
    engine.count(scrub_checked_pages=100, scrub_remote_repairs=2, scrub_position_pages=PAGES)
    scrub.handle(scrubbed())
    told = scrub.snapshot()
    assert (told["state"], told["checked_pages"], told["remote_repairs"], told["lost_pages"]) == ("done", 100, 2, 0)
    assert told["position_bytes"] == told["size_bytes"] == PAGES * PAGE_BYTES


def test_one_at_a_time(engine: FakeEngine, scrub: Scrub) -> None:
    """A second one is refused while one goes on, and while the last operations of an ended one are out."""
    scrub.begin(PAGE_BYTES)
    with pytest.raises(ScrubRunningError):
        scrub.begin(PAGE_BYTES)
    scrub.end()
    assert scrub.snapshot()["state"] == "ended"
    engine.busy = True
    with pytest.raises(ScrubRunningError):
        scrub.begin(PAGE_BYTES)
    assert scrub.snapshot()["state"] == "ended"


def test_late_news_of_an_ended_scrub(engine: FakeEngine, scrub: Scrub) -> None:
    """The end of the last scrub does not end the one that has begun since."""
    scrub.begin(PAGE_BYTES)
    scrub.end()
    scrub.begin(PAGE_BYTES)
    engine.count(scrub_position_pages=PAGES - 1)
    scrub.handle(scrubbed())
    assert scrub.snapshot()["state"] == "running"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "12 pages compared in all: all of them right"),
        ({"state": "ended", "backup_repairs": 2}, "before it was ended: 2 wrong on the backup"),
        ({"lost_pages": 1}, "1 lost: no copy is right"),
        ({"state": "never"}, "no scrub since"),
    ],
)
def test_verdict(scrub: Scrub, changes: dict[str, Any], words: str) -> None:
    """The command's line says how far it came and what was wrong."""
    told = {**scrub.snapshot(), "state": "done", "checked_pages": 12, **changes}
    assert words in verdict(told)


@pytest.mark.parametrize("text", ["0", "1", "x", "2PiB", ""])
def test_wrong_rates(text: str) -> None:
    """A rate that cannot be is one line."""
    with pytest.raises(UserError):
        read_rate(text)


def test_a_verification_counts_for_itself_and_lists_what_differs(engine: FakeEngine, scrub: Scrub) -> None:
    """It begins the engine's other pass; differences are named, up to a limit, and belong to this pass alone."""
    engine.count(verify_wrong_remote=5)
    scrub.begin(8 * PAGE_BYTES, verify=True)
    assert engine.calls == [-8]
    engine.count(verify_remote_pages=100, verify_wrong_remote=1, verify_unreadable_pages=1, scrub_position_pages=PAGES)
    scrub.handle(Event(EventKind.DIFFERS, 0, 1, 42))
    scrub.handle(Event(EventKind.DIFFERS, 0, 4, 43))
    scrub.handle(scrubbed())
    told = scrub.snapshot()
    assert (told["mode"], told["state"], told["remote_pages"], told["wrong_remote"]) == ("verify", "done", 100, 1)
    assert told["unreadable_pages"] == 1
    assert told["differences"] == [{"page": 42, "copy": "remote"}, {"page": 43, "copy": "unreadable"}]
    scrub.begin(8 * PAGE_BYTES)
    scrub.handle(Event(EventKind.DIFFERS, 0, 1, 44))  # late news of the pass before
    assert scrub.snapshot()["differences"] == []


def test_differences_are_bounded(engine: FakeEngine, scrub: Scrub) -> None:
    """A device that is wrong everywhere fills no memory."""
    scrub.begin(PAGE_BYTES, verify=True)
    for page in range(DIFFERENCES_MAX + 50):
        scrub.handle(Event(EventKind.DIFFERS, 0, 2, page))
    assert len(scrub.snapshot()["differences"]) == DIFFERENCES_MAX


def found(**more: Any) -> dict[str, Any]:
    """A verification's answer."""
    counts = dict.fromkeys(("wrong_remote", "wrong_backup", "wrong_records", "unreadable_pages", "skipped_pages"), 0)
    return {"state": "done", "remote_pages": 7, "backup_pages": 9, "differences": [], **counts, **more}


def test_words_of_a_verification() -> None:
    """Each difference says page, slab and whose copy; what was not listed or not looked at is counted."""
    read = "vol: 7 copies at peers and 9 on the backup read"
    assert words("vol", found(), {}, 8192) == [f"{read}: all of them right"]
    differences = [{"page": 5, "copy": "remote"}, {"page": 1, "copy": "remote"}, {"page": 0, "copy": "record"}]
    told = words(
        "vol", found(wrong_remote=9, wrong_records=1, differences=differences, skipped_pages=3), {2: "a:1"}, 8192
    )
    assert told == [
        f"{read}: 10 wrong",
        "  page 5 (slab 2): the copy at a:1 does not meet its checksum",
        "  page 1 (slab 0): the copy at its peer does not meet its checksum",
        "  page 0 (slab 0): both copies agree, and the checksum on record is another",
        "  and 7 more",
        "vol: 3 pages were left out, for they were being written",
    ]


def test_words_of_what_no_reading_can_tell() -> None:
    """Lost and doubtful pages are part of the answer."""
    assert lacking("vol", {"unreadable_pages": 0, "doubtful_pages": 0}) == []
    told = lacking("vol", {"unreadable_pages": 2, "doubtful_pages": 3})
    assert ["2 pages have no copy left" in told[0], "whether 3 pages" in told[1]] == [True, True]
