"""Takes connections that must begin with a TLS handshake, within limits, and says to others what they came to."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from infiniswap.shared.complaints import Complaints
from infiniswap.shared.crowd import Crowd
from infiniswap.shared.descriptors import readable
from infiniswap.shared.plain_answer import plain_answer
from infiniswap.shared.tls_reasons import find_error, kind

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
HANDSHAKES_MAX = 128  # at once; one gives way to others, of the address that has the most of them
GRACE_S = 1.0  # that each has before it gives way to another of its own address
_HANDSHAKE = 0x16  # first byte of a TLS record that begins one (RFC 8446, 5.1)
_PLAIN_BYTES = 16384  # of a request in the clear, which is read so that its sender reads the answer
TLS_ALONE = (
    "this daemon takes TLS with a certificate of its cluster alone: give --tls-dir, or --tls-cert, --tls-key, --tls-ca"
)

Factory = Callable[[], asyncio.Protocol]
Shown = Callable[[asyncio.BaseProtocol], None]


@dataclass(slots=True)
class HandshakeCounts:
    """What was wrong with those who were not let in; ever growing."""

    expired: int = 0
    not_yet_valid: int = 0
    unknown_authority: int = 0  # another's, or nobody's
    revoked: int = 0
    no_certificate: int = 0
    plain: int = 0  # no TLS at all
    protocol: int = 0  # no TLS 1.3, or what only begins like TLS
    slow: int = 0  # not within HANDSHAKE_TIMEOUT_S
    full: int = 0  # made room for others, or there was none
    gone: int = 0  # it left in the middle
    other: int = 0

    def add(self, what: str) -> None:
        """One more."""
        setattr(self, what, getattr(self, what) + 1)


class TlsAccept:
    """Handshakes in progress."""

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        explain: Callable[[BaseException], str | None],
        *,
        who: str = "this daemon",
        otherwise: str = TLS_ALONE,
    ) -> None:
        """context: for the next connection; explain: what a failure means, as a sentence about the other end.

        who: takes TLS alone, as a sentence calls it; otherwise: what those are told who speak HTTP without.
        """
        self._who = who
        self._otherwise = otherwise
        self._context = context
        self._explain = explain
        self.counts = HandshakeCounts()
        self._tasks: dict[asyncio.Task[None], float] = {}  # since when (monotonic, s)
        self._crowd: Crowd[asyncio.Task[None]] = Crowd()
        self._complaints = Complaints(log)

    def begin(self, client: socket.socket, network: str, factory: Factory, shown: Shown) -> None:
        """Have client, which is ours from here on, served by a protocol of factory once it has shown who it is.

        network: where it comes from (crowd.network_of); shown: told of the protocol then.
        """
        if len(self._tasks) >= HANDSHAKES_MAX and not self._make_room(network):
            client.close()
            return
        task = asyncio.create_task(self._serve(client, factory, shown), name="TLS handshake")
        self._tasks[task] = time.monotonic()
        self._crowd.enter(task, network)
        task.add_done_callback(lambda done: self._ended(client, done))

    def _make_room(self, network: str) -> bool:
        """End the oldest of the address that has the most: at once for another's, else when it has had its time.

        So who floods waits for himself, and others are looked at while he does.
        """
        self.counts.full += 1
        message = f"a client was dropped: {HANDSHAKES_MAX} are showing who they are"
        self._complaints.say("full", message, logging.WARNING)
        oldest = self._crowd.stranger(lambda _: True)
        if oldest is None:
            return False
        if self._crowd.network(oldest) == network and time.monotonic() - self._tasks[oldest] < GRACE_S:
            return False
        self._forget(oldest)
        oldest.cancel()
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._crowd.leave(task)

    async def close(self) -> None:
        """End all."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        self._forget(task)
        if task.cancelled():
            client.close()
        elif (error := task.exception()) is not None:
            client.close()
            log.error("a TLS handshake failed unexpectedly", exc_info=error)

    async def _serve(self, client: socket.socket, factory: Factory, shown: Shown) -> None:
        who = _name(client)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                first = await _peek(client)
            if first and first[0] != _HANDSHAKE:
                self.counts.plain += 1
                message = f"{who} is not let in: it speaks no TLS, which {self._who} takes alone"
                self._complaints.say("plain", message, logging.WARNING)
                await _answer_plainly(client, self._otherwise)
            elif first:
                shown(await self._shake_hands(client, factory))
                return
            else:
                self.counts.gone += 1
        except (OSError, TimeoutError) as error:
            reason, found = self._explain(error), find_error(error)
            if reason is not None and found is not None:
                self.counts.add(kind(found))
                # Not the sentence itself: some have the time in them, and would each be another.
                about = kind(found), getattr(found, "verify_code", found.reason)
                self._complaints.say(about, f"{who} is not let in: {reason}", logging.WARNING)
            elif isinstance(error, TimeoutError | ConnectionAbortedError):
                self.counts.slow += 1
                message = f"{who} was dropped: no TLS handshake within {HANDSHAKE_TIMEOUT_S:g} s"
                self._complaints.say("slow", message, logging.WARNING)
            else:  # it has gone; why is its affair
                self.counts.gone += 1
        client.close()

    async def _shake_hands(self, client: socket.socket, factory: Factory) -> asyncio.BaseProtocol:
        """OSError; then the other end has got the alert that says why, which asyncio would throw away."""
        loop = asyncio.get_running_loop()
        context = _Watched(self._context())
        with client.dup() as spare:
            try:
                _, protocol = await loop.connect_accepted_socket(
                    factory, client, ssl=cast(ssl.SSLContext, context), ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
                )
            except ssl.SSLError:
                await _say_last(spare, context.alert)
                raise
        return protocol


class _Watched:
    """A context that keeps the alert of a handshake that fails; all that asyncio needs of a context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.alert = b""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **options: Any) -> ssl.SSLObject:
        """As asyncio calls it."""
        ours = self._context.wrap_bio(incoming, outgoing, **options)
        theirs = ours.do_handshake

        def do_handshake() -> None:
            try:
                theirs()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError:
                self.alert = outgoing.read()
                raise

        ours.do_handshake = do_handshake  # type: ignore[method-assign]
        return ours


def _name(client: socket.socket) -> str:
    with suppress(OSError):
        return str(client.getpeername()[0])
    return "a client"


async def _peek(client: socket.socket) -> bytes:
    """The first byte, which stays where it is; empty: it has gone."""
    while True:
        try:
            return client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            await readable(client)


async def _answer_plainly(client: socket.socket, sentence: str) -> None:
    """Say by HTTP what is spoken here, to who has asked by HTTP without TLS."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await loop.sock_recv(client, _PLAIN_BYTES)
    await _say_last(client, plain_answer(HTTPStatus.FORBIDDEN, sentence))


async def _say_last(client: socket.socket, content: bytes) -> None:
    """Send it and wait for the other end to close: what is closed with bytes unread is reset, and content is lost."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await loop.sock_sendall(client, content)
            client.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(client, _PLAIN_BYTES):
                pass
