"""Random page writes through libnbd, many in flight on several connections, and what each page may hold afterwards.

Every write of a page is a version of its own, and a page's content tells which page and version it is. So a lost, an
old, a torn or a misplaced page shows, also after the server was killed: it holds what was acknowledged, or something
newer that was sent.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Self

import nbd

from tests.support.pace import paced

PAGE_BYTES = 4096
_STAMP = struct.Struct("<QQ")
_POLL_TIMEOUT_MS = 50
_ZERO_PAGE = bytes(PAGE_BYTES)
_ZERO_EVERY = 8  # so many versions of a page are one that is zeroes
_CHECK_BYTES = 1 << 20
CONNECTION_LOST = frozenset({"ENOTCONN", "EPIPE", "ECONNRESET"})


def is_zero(version: int) -> bool:
    """Whether that version of any page is all zeroes; version 0 is the page that was never written."""
    return version % _ZERO_EVERY == 0


def content_of(page: int, version: int) -> bytes:
    """The page in that version."""
    return _ZERO_PAGE if is_zero(version) else _STAMP.pack(page, version) * (PAGE_BYTES // _STAMP.size)


class Ledger:
    """What a client knows of each page: the newest version acknowledged and the newest one sent."""

    def __init__(self, pages: int) -> None:
        """All pages are as never written."""
        self.acknowledged = [0] * pages
        self.sent = [0] * pages

    def __len__(self) -> int:
        return len(self.sent)

    def next(self, page: int, *, zero: bool) -> int:
        """A new version of page, about to be sent."""
        version = self.sent[page] + 1
        if zero:
            version += -version % _ZERO_EVERY
        elif is_zero(version):
            version += 1
        self.sent[page] = version
        return version

    def wrong(self, page: int, data: bytes, oldest: int) -> str:
        """Empty when data is page in a version from oldest to the newest that was sent; else what is wrong."""
        newest = self.sent[page]
        if data == _ZERO_PAGE:
            newest_zero = newest - newest % _ZERO_EVERY
            return "" if newest_zero >= oldest else f"page {page} is zeroes, not version {oldest} to {newest}"
        found_page, version = _STAMP.unpack_from(data)
        if data != content_of(found_page, version):
            return f"page {page} is torn or garbage: {data[:32].hex()}…"
        if found_page != page or not oldest <= version <= newest:
            return f"page {page} is page {found_page} version {version}, not version {oldest} to {newest}"
        return ""

    def check(self, read: Callable[[int, int], bytes], *, at_least: Sequence[int] | None = None) -> None:
        """Read everything by read(offset, length); AssertionError unless each page is what was acknowledged or newer.

        at_least: other versions in place of those acknowledged.
        """
        oldest = self.acknowledged if at_least is None else at_least
        wrong: list[str] = []
        size = len(self) * PAGE_BYTES
        for offset in range(0, size, _CHECK_BYTES):
            data = read(offset, min(_CHECK_BYTES, size - offset))
            for start in range(0, len(data), PAGE_BYTES):
                page = (offset + start) // PAGE_BYTES
                wrong.append(self.wrong(page, data[start : start + PAGE_BYTES], oldest[page]))
        wrong = [text for text in wrong if text]
        assert not wrong, f"{len(wrong)} pages are wrong; the first: " + "\n".join(wrong[:5])


@dataclass(slots=True)
class _Request:
    first: int
    versions: list[int]  # writes: sent; reads: oldest that is right
    write: bool
    buffer: nbd.Buffer | None
    sent_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Connection:
    handle: nbd.NBD
    requests: dict[int, _Request] = field(default_factory=dict)  # in flight, by cookie
    lost: bool = False

    def send(self, request: _Request, *, trim: bool = False) -> bool:
        """Send; False when the connection is lost."""
        offset, length = request.first * PAGE_BYTES, len(request.versions) * PAGE_BYTES
        try:
            if request.buffer is None:
                cookie = (self.handle.aio_trim if trim else self.handle.aio_zero)(length, offset)
            elif request.write:
                cookie = self.handle.aio_pwrite(request.buffer, offset)
            else:
                cookie = self.handle.aio_pread(request.buffer, offset)
        except nbd.Error as error:
            self._note_loss(error)
            return False
        self.requests[cookie] = request
        return True

    def wants(self) -> tuple[int, int] | None:
        """Descriptor and the events to poll it for; None when the connection is lost."""
        if self._is_lost():
            return None
        direction = self.handle.aio_get_direction()
        events = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
        return self.handle.aio_get_fd(), events | (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)

    def handle_events(self, events: int) -> None:
        """Go on after poll."""
        try:
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self.handle.aio_notify_read()
            elif events & select.POLLOUT:
                self.handle.aio_notify_write()
        except nbd.Error as error:
            self._note_loss(error)

    def answers(self) -> Iterator[tuple[_Request, str]]:
        """Requests that were answered, with their errors ("": none)."""
        while self.requests and (cookie := self._completed()) > 0:
            error = ""
            try:
                self.handle.aio_command_completed(cookie)
            except nbd.Error as failure:
                if self._is_lost():
                    return  # that is no answer: it stays among those in flight
                error = failure.string
            yield self.requests.pop(cookie), error

    def _completed(self) -> int:
        """Cookie of a request that was answered, 0: none."""
        try:
            return int(self.handle.aio_peek_command_completed())
        except nbd.Error:
            if self._is_lost():
                return 0  # libnbd has given up those that we still count as in flight
            raise

    def _is_lost(self) -> bool:
        self.lost = self.lost or self.handle.aio_is_dead() or self.handle.aio_is_closed()
        return self.lost

    def _note_loss(self, error: nbd.Error) -> None:
        assert self.handle.aio_is_dead() or self.handle.aio_is_closed() or error.errno in CONNECTION_LOST, error
        self.lost = True


def _connected(uri: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


@dataclass(slots=True)
class Counts:
    """What a load has done so far."""

    errors: list[str] = field(default_factory=list)
    written_pages: int = 0
    zeroed_pages: int = 0
    read_pages: int = 0
    answers: int = 0
    waited_s: float = 0.0  # for all answers together
    slowest_s: float = 0.0

    @property
    def mean_s(self) -> float:
        """Mean time from sending a request to its answer."""
        return self.waited_s / max(self.answers, 1)


class Load:
    """Clients of one export. Use it as a context manager.

    A page has at most one write in flight, because NBD leaves the order of two open; reads meet writes freely.
    """

    def __init__(
        self,
        uri: str,
        ledger: Ledger,
        *,
        seed: int,
        connections: int = 2,
        depth: int = 24,
        read_share: float = 0.3,
        zero_share: float = 0.05,
        pages_max: int = 16,
        pages: range | None = None,
        errors_allowed: bool = False,
    ) -> None:
        """depth: requests in flight on each connection; pages: those that are touched, all unless given."""
        self.ledger = ledger
        self.counts = Counts()
        self._random = Random(seed)
        self._depth = depth
        self._read_share = read_share
        self._zero_share = zero_share
        self._pages_max = pages_max
        self._pages = range(len(ledger)) if pages is None else pages
        self._errors_allowed = errors_allowed
        self._writing: set[int] = set()
        self._connections = [_Connection(_connected(uri)) for _ in range(connections)]

    @property
    def lost(self) -> bool:
        """A connection has died."""
        return any(connection.lost for connection in self._connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connections.clear()  # which closes them

    def run(self, until: Callable[[], object], timeout_s: float = 30.0, *, drain: bool = True) -> None:
        """Keep requests in flight until until() is true (asked often), then, unless told not to, wait for the answers.

        AssertionError: a wrong byte, an error unless errors are allowed, or timeout_s are over. A lost connection ends
        the run, once the others are answered or lost too; what was in flight on it is neither acknowledged nor ruled
        out.
        """
        end_s = time.monotonic() + paced(timeout_s)
        while not self.lost and not until():
            self.step(end_s)
        if drain:
            self.finish(max(0.0, end_s - time.monotonic()))

    def step(self, end_s: float, timeout_ms: int = _POLL_TIMEOUT_MS) -> None:
        """Fill the queues, take the answers that are there or come within timeout_ms; end_s as of time.monotonic()."""
        for connection in self._connections:
            while len(connection.requests) < self._depth and self._submit(connection):
                pass
        self._poll(end_s, timeout_ms)

    def write_all(self, timeout_s: float = 30.0) -> None:
        """Write every page once."""
        end_s = time.monotonic() + paced(timeout_s)
        for first in range(self._pages.start, self._pages.stop, self._pages_max):
            span = range(first, min(first + self._pages_max, self._pages.stop))
            connection = self._connections[first // self._pages_max % len(self._connections)]
            while len(connection.requests) >= self._depth and not connection.lost:
                self._poll(end_s)
            self._write(connection, span, zero=False)
        self.finish(max(0.0, end_s - time.monotonic()))

    def finish(self, timeout_s: float = 30.0) -> None:
        """Wait for all answers that are owed, and where a connection is lost for those of the others or their end."""
        end_s = time.monotonic() + paced(timeout_s)
        while any(connection.requests and not connection.lost for connection in self._connections):
            self._poll(end_s)

    def flush(self) -> None:
        """FLUSH on the first connection; nbd.Error when it fails."""
        self._connections[0].handle.flush()

    def check(self) -> None:
        """Read everything back; the load must be at rest."""
        self.ledger.check(lambda offset, length: bytes(self._connections[0].handle.pread(length, offset)))

    def _submit(self, connection: _Connection) -> bool:
        """Send one request; False when the pages drawn are being written."""
        draw = self._random
        first = draw.choice(self._pages)
        span = range(first, min(first + draw.randint(1, self._pages_max), self._pages.stop))
        if draw.random() < self._read_share:
            return self._read(connection, span)
        if not self._writing.isdisjoint(span):
            return False
        return self._write(connection, span, zero=draw.random() < self._zero_share)

    def _read(self, connection: _Connection, span: range) -> bool:
        buffer = nbd.Buffer(len(span) * PAGE_BYTES)
        oldest = [self.ledger.acknowledged[page] for page in span]
        return connection.send(_Request(span.start, oldest, False, buffer))

    def _write(self, connection: _Connection, span: range, *, zero: bool) -> bool:
        versions = [self.ledger.next(page, zero=zero) for page in span]
        self._writing.update(span)
        if zero:
            return connection.send(_Request(span.start, versions, True, None), trim=self._random.random() < 0.5)
        data = b"".join(content_of(page, version) for page, version in zip(span, versions, strict=True))
        return connection.send(_Request(span.start, versions, True, nbd.Buffer.from_bytearray(bytearray(data))))

    def _poll(self, end_s: float, timeout_ms: int = _POLL_TIMEOUT_MS) -> None:
        assert time.monotonic() < end_s, f"requests were not answered in time: {self.counts}"
        poller = select.poll()
        by_fd = {}
        for connection in self._connections:
            wanted = connection.wants()
            if wanted is not None:
                poller.register(*wanted)
                by_fd[wanted[0]] = connection
        for fd, events in poller.poll(timeout_ms):
            by_fd[fd].handle_events(events)
        for connection in self._connections:
            for request, error in connection.answers():
                self._answered(request, error)

    def _answered(self, request: _Request, error: str) -> None:
        span = range(request.first, request.first + len(request.versions))
        took_s = time.monotonic() - request.sent_s
        self.counts.answers += 1
        self.counts.waited_s += took_s
        self.counts.slowest_s = max(self.counts.slowest_s, took_s)
        if request.write:
            self._writing.difference_update(span)
        if error:
            self.counts.errors.append(error)
            assert self._errors_allowed, f"pages {span.start} to {span.stop - 1}: {error}"
            return
        if request.write:
            for page, version in zip(span, request.versions, strict=True):
                self.ledger.acknowledged[page] = version
            if request.buffer is None:
                self.counts.zeroed_pages += len(span)
            else:
                self.counts.written_pages += len(span)
            return
        assert request.buffer is not None
        data = bytes(request.buffer.to_bytearray())
        for index, page in enumerate(span):
            start = index * PAGE_BYTES
            text = self.ledger.wrong(page, data[start : start + PAGE_BYTES], request.versions[index])
            assert not text, text
        self.counts.read_pages += len(span)
