"""The daemon's end of the leases' streams: what devices are told at once, and what they answer.

At most one stream a lease. A device that takes nothing from its stream finds it closed once STREAM_QUEUE_MAX messages
wait for it: it polls then, and opens another. What it says is read with distrust: a message that makes no sense is
counted and passed over.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.lender import Lender
from infiniswap.shared.clock import Clock
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.http_server import opened
from infiniswap.shared.stream_messages import (
    BEAT_S,
    MESSAGE_BYTES_MAX,
    MESSAGE_SLABS_MAX,
    SILENCE_S,
    ActivityAnswer,
    Ask,
    Echo,
    FromDaemon,
    FromDevice,
    Policy,
    StreamBeat,
    StreamError,
    encode,
    from_device,
)

log = logging.getLogger(__name__)

STREAM_QUEUE_MAX = 64  # messages that wait for a device
ASKS_MAX = 16  # questions to one device that wait for an answer
CLOSE_TIMEOUT_S = 0.5  # for a device to say good-bye; who is gone does not


class Socket(Protocol):
    """What a stream needs of its connection (web.WebSocketResponse)."""

    async def send_str(self, data: str) -> None:
        """See WebSocketResponse.send_str."""


class Stream:
    """One device's. Messages to it wait in a queue; beats go out by themselves while run() runs."""

    def __init__(self, lender: Lender, lease: Lease, socket: Socket, clock: Clock) -> None:
        """clock: monotonic seconds."""
        self.lease = lease
        self.ended = asyncio.Event()
        self.end_reason = ""
        self._lender = lender
        self._socket = socket
        self._clock = clock
        self._heard_s = clock()
        self._beats = 0  # sent
        self._echoed = 0  # the last that came back
        self._queue: asyncio.Queue[FromDaemon] = asyncio.Queue(STREAM_QUEUE_MAX)
        self._ask_numbers = itertools.count(1)
        self._asks: dict[int, asyncio.Future[dict[int, float]]] = {}

    @property
    def silent(self) -> bool:
        """Whether nothing was heard of the device for so long that nobody should wait for it."""
        return self.ended.is_set() or self._clock() - self._heard_s > SILENCE_S

    def end(self, reason: str) -> None:
        """Let run() end; the device is told why."""
        if not self.ended.is_set():
            self.end_reason = reason
            self.ended.set()

    def send(self, message: FromDaemon) -> bool:
        """Have the device told; False when it has not taken what it was told before, and is told nothing more here."""
        if self.ended.is_set():
            return False
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            self._lender.counts.streams_overrun += 1
            self.end("its messages are not taken")
            return False
        return True

    async def ask(self, slabs: Iterable[int], deadline_s: float) -> dict[int, float] | None:
        """Page I/O per second of the slabs, as the device tells; None: not within deadline_s."""
        asked = tuple(slabs)
        number = next(self._ask_numbers)
        if len(self._asks) >= ASKS_MAX or not self.send(Ask(number, asked, int(deadline_s * 1000))):
            return None
        answer: asyncio.Future[dict[int, float]] = asyncio.get_running_loop().create_future()
        self._asks[number] = answer
        try:
            async with asyncio.timeout(deadline_s):
                told = await answer
        except TimeoutError:
            return None
        finally:
            del self._asks[number]
        return {slab: told[slab] for slab in asked if slab in told}

    def hear(self, message: FromDevice | None) -> None:
        """The device has said something."""
        self._heard_s = self._clock()
        if isinstance(message, Echo):
            self._hear_echo(message)
        elif isinstance(message, ActivityAnswer):
            answer = self._asks.get(message.ask)
            if answer is not None and not answer.done():
                answer.set_result(message.activity)

    def _hear_echo(self, echo: Echo) -> None:
        """It renews the lease, unless it is old or of a beat that was never sent."""
        if self._echoed < echo.number <= self._beats and self._lender.leases.is_live(self.lease):
            self._echoed = echo.number
            self._lender.renew(self.lease)

    async def write(self) -> None:
        """Send what waits, and a beat whenever it is time for one, until the lease has ended."""
        due_s = self._clock()
        while self._lender.leases.is_live(self.lease):
            wait_s = due_s - self._clock()
            if wait_s <= 0:
                due_s = max(due_s + BEAT_S, self._clock())
                await self._socket.send_str(encode(self._beat()))
                continue
            try:
                async with asyncio.timeout(wait_s):
                    message = await self._queue.get()
            except TimeoutError:
                continue
            await self._socket.send_str(encode(message))
        self.end("the lease has ended")

    def _beat(self) -> StreamBeat:
        self._beats += 1
        lender, lease = self._lender, self.lease
        return StreamBeat(
            number=self._beats,
            incarnation=lender.incarnation,
            expires_in_s=round(lender.leases.remaining_s(lease), 3),
            free_bytes=lender.free_bytes(lease),
            rdma=lender.keys.healthy(lease),
            heard=self._echoed,
        )


class Streams:
    """All streams of a daemon."""

    def __init__(self, lender: Lender, clock: Clock) -> None:
        """clock: monotonic seconds."""
        self.draining = False  # told to devices
        self.opened: Callable[[Stream], None] = lambda _: None  # whom to tell of a new stream
        self._lender = lender
        self._clock = clock
        self._streams: dict[Lease, Stream] = {}
        self._complaints = Complaints(log, clock)

    def find(self, lease: Lease) -> Stream | None:
        """The lease's stream."""
        return self._streams.get(lease)

    def silent(self, lease: Lease) -> bool:
        """Whether nobody should wait for an answer of this device."""
        stream = self._streams.get(lease)
        return stream is None or stream.silent

    def tell_policy(self) -> None:
        """Tell every device whether slabs are lent now."""
        for stream in list(self._streams.values()):
            stream.send(self._policy())

    def _policy(self) -> Policy:
        return Policy(self._lender.lending, self.draining)

    def close(self) -> None:
        """End all."""
        for stream in list(self._streams.values()):
            stream.end("the daemon ends")

    async def serve(self, lease: Lease, request: web.Request) -> web.StreamResponse:
        """Speak with the lease's device until the stream ends; an earlier stream of the lease ends now."""
        socket = web.WebSocketResponse(
            autoping=True, compress=False, max_msg_size=MESSAGE_BYTES_MAX, timeout=CLOSE_TIMEOUT_S
        )
        if not await opened(socket, request):
            return web.Response()  # that nobody reads
        stream = Stream(self._lender, lease, socket, self._clock)
        self.begin(stream)
        try:
            await self._run(stream, socket)
        finally:
            self.finish(stream)
        reason = stream.end_reason.encode()[:120]
        await socket.close(code=WSCloseCode.GOING_AWAY, message=reason)
        return socket

    def begin(self, stream: Stream) -> None:
        """The stream is its lease's from now on."""
        lease = stream.lease
        earlier = self._streams.get(lease)
        if earlier is not None:
            self._lender.counts.streams_replaced += 1
            earlier.end("another stream of this lease was opened")
        self._lender.counts.streams_opened += 1
        self._streams[lease] = stream
        if not self._lender.lending or self.draining:
            stream.send(self._policy())
        self.opened(stream)

    def finish(self, stream: Stream) -> None:
        """The stream is nobody's any more."""
        stream.end("its device has gone")
        if self._streams.get(stream.lease) is stream:
            del self._streams[stream.lease]

    async def _run(self, stream: Stream, socket: web.WebSocketResponse) -> None:
        """Until one of its tasks ends."""
        tasks = [
            asyncio.create_task(work) for work in (stream.write(), self._read(stream, socket), stream.ended.wait())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    log.error("a stream ended by a failure", exc_info=ended)

    async def _read(self, stream: Stream, socket: web.WebSocketResponse) -> None:
        """Until the device closes the stream, or sends more at once than a message may have."""
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                self._nonsense("a message that is no text")
                continue
            try:
                stream.hear(from_device(message.data))
            except StreamError as error:
                self._nonsense(str(error))

    def _nonsense(self, sentence: str) -> None:
        self._lender.counts.stream_nonsense += 1
        self._complaints.say("nonsense", f"a device's message was passed over: {sentence}", logging.WARNING)


def in_messages(slabs: Iterable[int]) -> list[tuple[int, ...]]:
    """Slabs in as many parts as they need messages."""
    rest = list(slabs)
    return [tuple(rest[start : start + MESSAGE_SLABS_MAX]) for start in range(0, len(rest), MESSAGE_SLABS_MAX)]
