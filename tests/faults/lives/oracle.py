"""What each page may hold: the rules by which every answer of a device is judged, in one place.

A page is a register of versions, numbered as they are sent; its content tells page and version. Of a page the oracle
keeps which versions a read may return (`allowed`), which the backup may hold after a power cut (`since`: those from the
last durable one on), and whether a read may fail (`lossy`).

1. A read returns a version that was allowed, or in flight, at some moment between its sending and its answer. What it
   returned stays: nothing else is allowed then, unless a write met the read.
2. An acknowledged write is what is allowed. One that was answered with an error, or not at all, may have happened.
3. A FLUSH that succeeds makes durable what was acknowledged before it was sent; FUA that of its own write; an orderly
   stop (exit code 0) everything: the image then equals the model byte by byte.
4. The device is killed, its state stays: what was allowed is allowed. Not one older version.
5. EIO is allowed only where every copy may be gone. Pages that are not durable have lost their pending copy when the
   device dies (`orphan`); such a page is lossy when a donor is harmed until it is durable again, or was harmed between
   the last FLUSH and the device's death. Harmed: killed, without its lease, cut off for longer than it is waited for,
   or given wrong bytes. While the backup's disk fails reads, pages on it may fail; while it fails writes, so may these.
6. That a page was lost is told by one FLUSH, FUA write or orderly stop that fails. One that succeeds before any has
   failed since the page became lossy, with no other in flight, says that the page is durable; after one has failed it
   says nothing of lossy pages. (Told is a loss also when the page has been written anew since.)
7. Power cut, or a start from the image alone (state gone, --accept-backup): each page is one of `since`.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.support.load import PAGE_BYTES

_STAMP = struct.Struct("<QQ")
ZERO_PAGE = bytes(PAGE_BYTES)
HISTORY_SHOWN = 6
WRONG_PAGES_SHOWN = 20
STORY_EVENTS = 20  # kept of each page, for what is said of one that is wrong


class WrongError(AssertionError):
    """The device broke a promise."""


@dataclass(slots=True)
class Page:
    """One register."""

    allowed: set[int] = field(default_factory=lambda: {0})
    since: list[int] = field(default_factory=lambda: [0])
    in_flight: set[int] = field(default_factory=set)
    newest: int = 0
    changes: int = 0  # writes sent and answered: a read between two equal counts met none
    orphan: bool = False
    lossy: bool = False
    told: bool = False  # a FLUSH has failed since the page became lossy
    zero: set[int] = field(default_factory=lambda: {0})
    patched: dict[int, bytes] = field(default_factory=dict)  # versions that wrote a part of the page
    meeting: list[set[int]] = field(default_factory=list)  # what the reads now in flight may return
    story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY_EVENTS))


@dataclass(slots=True)
class Read:
    """A read in flight: of each page what it may return, and the page's count of changes."""

    pages: range
    may: list[set[int]]
    changes: list[int]
    lossy: bool  # may fail


@dataclass(slots=True)
class Flush:
    """A FLUSH in flight: of each page that is not durable, the oldest version that it may make so."""

    oldest: dict[int, int]
    lossy: set[int]  # of these
    harms: int  # donors harmed before


class Oracle:
    """The model of one device."""

    def __init__(self, pages: int, note_losses: Callable[[], None] = lambda: None) -> None:
        """All pages are as never written. note_losses: calls donor_harmed() where that has not been told yet."""
        self._note_losses = note_losses
        self.pages = [Page() for _ in range(pages)]
        self.harming = False  # something goes wrong at a donor now
        self.harmed = False  # a donor was, since all was durable
        self.harms = 0
        self.untold = False  # a page may have been lost, also one written since, and no FLUSH has failed for it
        self.disk_fails_reads = False
        self.disk_fails_writes = False
        self.checked = 0  # pages compared

    # ---- writes ----

    def content(self, number: int, version: int) -> bytes:
        """Page `number` in that version."""
        page = self.pages[number]
        if version in page.patched:
            return page.patched[version]
        return ZERO_PAGE if version in page.zero else _STAMP.pack(number, version) * (PAGE_BYTES // _STAMP.size)

    def is_free(self, pages: range) -> bool:
        """No write of these is in flight: NBD leaves the order of two open, so the model sends one at a time."""
        return not any(self.pages[number].in_flight for number in pages)

    def send(self, pages: range, kind: str, *, zero: bool = False, part: tuple[int, bytes] | None = None) -> list[int]:
        """New versions, about to be sent. part: offset and bytes, for one page whose content is known."""
        versions = []
        for number in pages:
            page = self.pages[number]
            page.newest += 1
            version = page.newest
            if zero:
                page.zero.add(version)
            if part is not None:
                (base,) = page.allowed
                at, data = part
                old = self.content(number, base)
                page.patched[version] = old[:at] + data + old[at + len(data) :]
            page.in_flight.add(version)
            page.story.append(f"{kind} {version} of {pages.start}+{len(pages)}")
            page.since.append(version)
            page.changes += 1
            for may in page.meeting:
                may.add(version)
            versions.append(version)
        return versions

    def acknowledged(self, pages: range, versions: list[int], *, durable: bool = False, part: bool = False) -> None:
        """The write succeeded. durable: FUA."""
        for number, version in zip(pages, versions, strict=True):
            page = self.pages[number]
            page.in_flight.discard(version)
            page.allowed = {version}
            page.changes += 1
            page.story.append("ok")
            page.orphan = False
            page.lossy = page.lossy and part
            if durable:
                page.since = [other for other in page.since if other >= version]

    def unknown(self, pages: range, versions: list[int]) -> None:
        """The write failed, or its connection did: it may have happened, or may not."""
        for number, version in zip(pages, versions, strict=True):
            page = self.pages[number]
            page.in_flight.discard(version)
            page.allowed.add(version)
            page.changes += 1
            page.story.append("failed or not answered")

    # ---- reads ----

    def begin_read(self, pages: range) -> Read:
        """About to be sent."""
        may = []
        for number in pages:
            page = self.pages[number]
            may.append(page.allowed | page.in_flight)
            page.meeting.append(may[-1])
        lossy = any(self.pages[number].lossy for number in pages)
        return Read(pages, may, [self.pages[number].changes for number in pages], lossy)

    def end_read(self, read: Read, data: bytes | None) -> None:
        """Judge what came; None: nothing did, the connection was lost."""
        for index, number in enumerate(read.pages):
            page, may = self.pages[number], read.may[index]
            page.meeting = [other for other in page.meeting if other is not may]
            if data is None:
                continue
            found = data[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
            settled = not page.in_flight and page.changes == read.changes[index]
            self._judge(number, found, may, settled, "a read returned")

    def read_failed(self, read: Read, error: str) -> None:
        """A read of one page was answered with an error."""
        self.end_read(read, None)
        (number,) = read.pages
        page = self.pages[number]
        if self.disk_fails_reads or read.lossy or page.lossy:
            return
        if page.orphan:
            self._note_losses()
        if not page.lossy:
            raise WrongError(f"reading page {number} failed ({error}), though a copy must be left: {self._story(page)}")

    def _story(self, page: Page) -> str:
        return ", ".join(page.story)

    def _judge(self, number: int, found: bytes, may: Iterable[int], settled: bool, what: str) -> None:
        page = self.pages[number]
        self.checked += 1
        same = {version for version in may if self.content(number, version) == found}
        if not same:
            raise WrongError(self._wrong(number, found, may, what))
        if settled:
            page.story.append(f"{what.split()[1]} {min(same)}")
            page.allowed = same
            if not self.harmed:
                page.lossy = False

    def _wrong(self, number: int, found: bytes, may: Iterable[int], what: str) -> str:
        page = self.pages[number]
        known = [version for version in range(page.newest + 1) if self.content(number, version) == found]
        if known:
            kinds = ["never written" if v == 0 else "zeroes" if v in page.zero else "data" for v in known]
            is_what = " or ".join(f"version {v} ({kind})" for v, kind in zip(known, kinds, strict=True))
        elif found == ZERO_PAGE:
            is_what = "zeroes, which it never was"
        else:
            other, version = _STAMP.unpack_from(found)
            whole = found == found[: _STAMP.size] * (PAGE_BYTES // _STAMP.size)
            is_what = f"page {other} version {version}" if whole else f"torn or garbage ({found[:16].hex()}…)"
        shown = sorted(may)[-HISTORY_SHOWN:]
        return (
            f"page {number}: {what} {is_what}, not version {' or '.join(map(str, shown))}"
            f" (sent up to {page.newest}, durable from {page.since[0]}): {self._story(page)}"
        )

    def block_status(self, pages: range, zeroes: bool, may: list[set[int]]) -> None:
        """The device says that these read as zeroes, or makes no such claim."""
        for number, versions in zip(pages, may, strict=True):
            if zeroes and not any(self.content(number, version) == ZERO_PAGE for version in versions):
                raise WrongError(f"page {number}: BLOCK_STATUS says zeroes, it is version {sorted(versions)}")

    # ---- durability ----

    def begin_flush(self) -> Flush:
        """About to be sent."""
        oldest = {number: min(page.allowed) for number, page in enumerate(self.pages) if len(page.since) > 1}
        return Flush(oldest, {number for number in oldest if self.pages[number].lossy}, self.harms)

    def flush_failed(self) -> None:
        """A FLUSH or a FUA write was answered with an error."""
        for page in self.pages:
            page.told = page.told or page.lossy
            if len(page.since) > 1:
                page.story.append("flush failed")

    def flushed(self, flush: Flush, *, alone: bool) -> None:
        """It has succeeded. alone: no other was in flight meanwhile."""
        for number, version in flush.oldest.items():
            page = self.pages[number]
            # A write may have taken the place of a lost page meanwhile: what was lost is not durable for that.
            if (page.lossy or number in flush.lossy) and (page.told or not alone):
                continue
            page.lossy = False
            page.since = [other for other in page.since if other >= version]
            page.story.append("flushed")
            page.orphan = page.orphan and len(page.since) > 1
        if alone and not any(page.lossy for page in self.pages):
            self.untold = False
        if flush.harms == self.harms and not any(page.orphan for page in self.pages):
            self.harmed = self.harming

    # ---- deaths ----

    def donor_harmed(self) -> None:
        """A donor's pages may be gone or wrong."""
        self.harmed = True
        self.harms += 1
        for page in self.pages:
            if page.orphan:
                self._may_be_lost(page)

    def _may_be_lost(self, page: Page) -> None:
        self.untold = True
        if not page.lossy:
            page.lossy, page.told = True, False
            page.story.append("may be lost")

    def device_died(self) -> None:
        """Killed; its state is kept. Requests in flight have been reported as unknown()."""
        for page in self.pages:
            page.story.append("death")
            if len(page.since) > 1:
                page.orphan = True
                if self.harmed:
                    self._may_be_lost(page)

    def image_counts(self) -> None:
        """A power cut, or a start that takes the image as it is: no copy but the backup's is left."""
        for page in self.pages:
            page.story.append("image counts")
            page.allowed = set(page.since)
            page.orphan = False

    def forgotten(self) -> None:
        """The device's state is gone, and with it what it knew of lost pages."""
        for page in self.pages:
            page.lossy = False
        self.harmed, self.untold = self.harming, False

    def stopped(self, image: bytes) -> None:
        """An orderly stop: the image is the device, and durable."""
        wrong: list[str] = []
        for number, page in enumerate(self.pages):
            found = image[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            if page.lossy:
                continue
            try:
                self._judge(number, found, page.allowed, True, "after an orderly stop the image has")
            except WrongError as error:
                wrong.append(str(error))
            page.since = [version for version in page.since if version >= min(page.allowed)]
            page.orphan = False
        if wrong:
            raise WrongError("\n".join([f"{wrong[0]}; {len(wrong)} pages in all", *wrong[1:WRONG_PAGES_SHOWN]]))
        self.harmed = self.harming
