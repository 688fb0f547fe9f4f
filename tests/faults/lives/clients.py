"""Several clients of the device with many requests in flight, all drawn from a seed and judged by the oracle."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import nbd

from tests.faults.lives.oracle import Flush, Oracle, Read, WrongError
from tests.support.load import CONNECTION_LOST, PAGE_BYTES
from tests.support.pace import paced

ANSWER_TIMEOUT_S = paced(30.0)
DEPTH = 12  # requests in flight on each connection
CHECK_PAGES = 64
PAGES_MAX = 24
_POLL_TIMEOUT_MS = 20
_MANY_PAGES = 96
CHANGES = ("write", "fua", "part", "zero", "trim")
# Kind of request -> weight of its being drawn.
MIXES = {
    "writes": {"write": 70, "part": 4, "zero": 6, "trim": 6, "read": 10, "flush": 2, "fua": 2},
    "reads": {"write": 12, "part": 2, "zero": 2, "trim": 2, "read": 76, "status": 4, "flush": 2},
    "mixed": {"write": 38, "part": 6, "zero": 7, "trim": 7, "read": 30, "status": 4, "flush": 4, "fua": 4},
    "zeroes": {"write": 25, "zero": 22, "trim": 22, "read": 20, "status": 6, "flush": 5},
}


@dataclass(slots=True)
class _Request:
    kind: str
    pages: range
    sent_s: float
    versions: list[int]
    read: Read | None = None
    flush: Flush | None = None
    extents: list[int] | None = None
    buffer: nbd.Buffer | None = None
    lossy: bool = False  # may fail, because a page of it is lost
    beside: bool = False  # another FLUSH or FUA was in flight


class _Client:
    def __init__(self, uri: str) -> None:
        self.handle = nbd.NBD()
        self.handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        self.handle.connect_uri(uri)
        self.requests: dict[int, _Request] = {}
        self.lost = False

    def is_lost(self) -> bool:
        self.lost = self.lost or self.handle.aio_is_dead() or self.handle.aio_is_closed()
        return self.lost

    def note_loss(self, error: nbd.Error) -> None:
        if not (self.is_lost() or error.errno in CONNECTION_LOST):
            raise error
        self.lost = True


class Clients:
    """Connections to one life of a device; they end with it."""

    def __init__(self, uri: str, oracle: Oracle, *, connections: int, errors_allowed: Callable[[str], bool]) -> None:
        """errors_allowed: whether a write, flush … of that kind may fail now."""
        self.oracle = oracle
        self.answers = 0
        self.flush_errors = 0
        self._again: list[range] = []  # to be read page by page
        self._errors_allowed = errors_allowed
        self._clients = [_Client(uri) for _ in range(connections)]

    @property
    def lost(self) -> bool:
        """A connection is."""
        return any(client.lost for client in self._clients)

    def work(self, count: int, seed: int, mix: str, meanwhile: Callable[[], None] | None = None) -> None:
        """Send so many requests. After half of them, with the queues full, meanwhile(); then all answers are awaited.

        When meanwhile() kills the device, what was in flight becomes unknown to the oracle.
        """
        draw = Random(seed)
        weights = MIXES[mix]
        kinds, shares = list(weights), list(weights.values())
        base = draw.randrange(len(self.oracle.pages))
        done_meanwhile = meanwhile is None
        sent = tries = 0
        while sent < count and not self.lost and tries < 20 * count:
            if not done_meanwhile and meanwhile is not None and sent >= count // 2:
                meanwhile()
                done_meanwhile = True
            client = draw.choice(self._clients)
            tries += 1
            if len(client.requests) >= DEPTH:
                self._poll(client)
            elif self._submit(client, draw.choices(kinds, shares)[0], self._draw_pages(draw, base), draw):
                sent += 1
        if not done_meanwhile and meanwhile is not None:
            meanwhile()
        self.finish()

    def _draw_pages(self, draw: Random, base: int) -> range:
        """Mostly near base, so that requests meet; few large ones, some across slabs."""
        total = len(self.oracle.pages)
        first = (base + int(draw.expovariate(1 / 60))) % total if draw.random() < 0.7 else draw.randrange(total)
        count = _MANY_PAGES if draw.random() < 0.03 else draw.randint(1, PAGES_MAX) if draw.random() < 0.4 else 1
        return range(first, min(first + count, total))

    def _submit(self, client: _Client, kind: str, pages: range, draw: Random) -> bool:
        """Send one request; False when the oracle wants none of these pages now, or the connection is lost."""
        oracle = self.oracle
        if kind == "part":
            pages = range(pages.start, pages.start + 1)
            if len(oracle.pages[pages.start].allowed) > 1:
                return False  # what the rest of the page will be is not known
        if kind in CHANGES and not oracle.is_free(pages):
            return False
        request = _Request(kind, pages, time.monotonic(), [], lossy=any(oracle.pages[n].lossy for n in pages))
        try:
            send = self._send_change if kind in CHANGES else self._send_question
            cookie = send(client.handle, request, draw)
        except nbd.Error as error:
            self._unanswered(request)
            client.note_loss(error)
            return False
        if kind in ("flush", "fua"):
            for other in (r for c in self._clients for r in c.requests.values() if r.kind in ("flush", "fua")):
                other.beside = request.beside = True
        client.requests[cookie] = request
        return True

    def _send_change(self, handle: nbd.NBD, request: _Request, draw: Random) -> int:
        """Send what changes pages; the cookie."""
        kind, pages = request.kind, request.pages
        offset, length = pages.start * PAGE_BYTES, len(pages) * PAGE_BYTES
        if kind in ("zero", "trim"):
            request.versions = self.oracle.send(pages, kind, zero=True)
            return int((handle.aio_zero if kind == "zero" else handle.aio_trim)(length, offset))
        if kind == "part":
            at = draw.randrange(PAGE_BYTES - 1)
            data = draw.randbytes(draw.randint(1, PAGE_BYTES - 1 - at))
            request.versions = self.oracle.send(pages, kind, part=(at, data))
            offset += at
        else:
            request.versions = self.oracle.send(pages, kind)
            contents = (self.oracle.content(n, v) for n, v in zip(pages, request.versions, strict=True))
            data = b"".join(contents)
        request.buffer = nbd.Buffer.from_bytearray(bytearray(data))
        return int(handle.aio_pwrite(request.buffer, offset, flags=nbd.CMD_FLAG_FUA if kind == "fua" else 0))

    def _send_question(self, handle: nbd.NBD, request: _Request, draw: Random) -> int:
        """Send a FLUSH, or what only reads; the cookie."""
        offset, length = request.pages.start * PAGE_BYTES, len(request.pages) * PAGE_BYTES
        if request.kind == "flush":
            request.flush = self.oracle.begin_flush()
            return int(handle.aio_flush())
        request.read = self.oracle.begin_read(request.pages)
        if request.kind == "read":
            request.buffer = nbd.Buffer(length)
            return int(handle.aio_pread(request.buffer, offset))
        extents: list[int] = []
        request.extents = extents

        def note(context: str, at: int, entries: list[int], error: object) -> int:
            extents.extend(entries)
            return 0

        return int(handle.aio_block_status(length, offset, note))

    def finish(self) -> None:
        """Wait for all answers; where a connection is lost, what was in flight on it is unknown."""
        while any(client.requests for client in self._clients) or (self._again and not self.lost):
            while self._again and len(self._clients[0].requests) < DEPTH:
                self._submit(self._clients[0], "read", self._again.pop(), Random(0))
            for client in self._clients:
                if client.requests:
                    self._poll(client)

    def _poll(self, client: _Client) -> None:
        if client.is_lost():
            requests, client.requests = client.requests, {}
            for request in requests.values():
                self._unanswered(request)
            return
        try:
            direction = client.handle.aio_get_direction()
            events = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
            events |= select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
            poller = select.poll()
            poller.register(client.handle.aio_get_fd(), events)
            for _, found in poller.poll(_POLL_TIMEOUT_MS):
                if found & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    client.handle.aio_notify_read()
                elif found & select.POLLOUT:
                    client.handle.aio_notify_write()
        except nbd.Error as error:
            client.note_loss(error)
        self._take_answers(client)
        # Behind the look at the socket: what has lain there while nobody looked is not late.
        oldest = min((request.sent_s for request in client.requests.values()), default=time.monotonic())
        if time.monotonic() - oldest > ANSWER_TIMEOUT_S:
            kinds = ", ".join(f"{r.kind} of pages {r.pages.start}+{len(r.pages)}" for r in client.requests.values())
            raise WrongError(f"not answered within {ANSWER_TIMEOUT_S:g} s: {kinds}")

    def _take_answers(self, client: _Client) -> None:
        while client.requests:
            try:
                cookie = int(client.handle.aio_peek_command_completed())
            except nbd.Error:
                cookie = 0
            if cookie <= 0:
                return
            error = ""
            try:
                client.handle.aio_command_completed(cookie)
            except nbd.Error as failure:
                if client.is_lost():
                    return  # that is no answer
                error = failure.errno or failure.string
            self.answers += 1
            self._answered(client.requests.pop(cookie), error)

    def _answered(self, request: _Request, error: str) -> None:
        oracle = self.oracle
        if error:
            if request.read is not None:
                self._read_failed(request, request.read, error)
                return
            self._unanswered(request)
            if not (request.kind == "part" and request.lossy) and not self._errors_allowed(request.kind):
                raise WrongError(f"{request.kind} of page {request.pages.start}+{len(request.pages)} failed: {error}")
            if request.kind in ("flush", "fua"):
                self.flush_errors += 1
                oracle.flush_failed()
        elif request.flush is not None:
            oracle.flushed(request.flush, alone=not request.beside)
        elif request.extents is not None and request.read is not None:
            self._judge_extents(request, request.read)
        elif request.read is not None:
            assert request.buffer is not None
            oracle.end_read(request.read, bytes(request.buffer.to_bytearray()))
        else:
            oracle.acknowledged(
                request.pages, request.versions, durable=request.kind == "fua", part=request.kind == "part"
            )

    def _read_failed(self, request: _Request, read: Read, error: str) -> None:
        """One page alone is judged; of several each is read again."""
        if request.kind == "status":
            raise WrongError(f"BLOCK_STATUS of page {request.pages.start}+{len(request.pages)} failed: {error}")
        if len(request.pages) == 1:
            self.oracle.read_failed(read, error)
            return
        self.oracle.end_read(read, None)
        self._again += [range(number, number + 1) for number in request.pages]

    def _judge_extents(self, request: _Request, read: Read) -> None:
        assert request.extents is not None
        at = request.pages.start * PAGE_BYTES
        for length, flags in zip(request.extents[::2], request.extents[1::2], strict=True):
            first, last = -(-at // PAGE_BYTES), min((at + length) // PAGE_BYTES, request.pages.stop)
            span = range(first - request.pages.start, max(last, first) - request.pages.start)
            zeroes = bool(flags & nbd.STATE_ZERO)
            self.oracle.block_status(range(first, max(last, first)), zeroes, [read.may[index] for index in span])
            at += length
        self.oracle.end_read(read, None)

    def _unanswered(self, request: _Request) -> None:
        if request.versions:
            self.oracle.unknown(request.pages, request.versions)
        if request.read is not None:
            self.oracle.end_read(request.read, None)

    def flush(self) -> bool:
        """FLUSH, and wait; False when it failed and may."""
        before = self.flush_errors
        self._submit(self._clients[0], "flush", range(1), Random(0))
        self.finish()
        return not self.lost and self.flush_errors == before

    def rewrite(self) -> None:
        """Write every page anew."""
        client = self._clients[0]
        for first in range(0, len(self.oracle.pages), CHECK_PAGES):
            while len(client.requests) >= DEPTH:
                self._poll(client)
            pages = range(first, min(first + CHECK_PAGES, len(self.oracle.pages)))
            self._submit(client, "write", pages, Random(0))
        self.finish()

    def check(self) -> None:
        """Read every page."""
        client = self._clients[0]
        for first in range(0, len(self.oracle.pages), CHECK_PAGES):
            pages = range(first, min(first + CHECK_PAGES, len(self.oracle.pages)))
            while len(client.requests) >= DEPTH:
                self._poll(client)
            self._submit(client, "read", pages, Random(0))
        self.finish()

    def close(self) -> None:
        """Close the connections."""
        self._clients.clear()
