"""The device's end of a lease's stream: hears at once what a poll would tell later, and shows that the device lives.

One task a lease, for as long as the lease lives. A stream that breaks or falls silent makes the device poll at once,
and is opened again after a pause; until then, and with daemons that have no streams, polling does it all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace
from random import Random
from typing import Protocol

import aiohttp

from infiniswap.device.daemon_client import HeldLease, LeaseGoneError, PeerError
from infiniswap.device.peer import Peer
from infiniswap.shared.clock import Clock
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.stream_messages import (
    SILENCE_S,
    ActivityAnswer,
    Ask,
    Echo,
    Evict,
    FromDaemon,
    FromDevice,
    Noticed,
    Policy,
    StreamBeat,
    StreamError,
    Taken,
    encode,
    from_daemon,
)

log = logging.getLogger(__name__)

DEAD_S = 5.0  # of silence, until another stream is opened
SEND_TIMEOUT_S = 2.0  # for a daemon to take what it is told
PAUSE_MIN_S, PAUSE_MAX_S = 0.25, 10.0  # until a stream that broke is opened again
ECHOES_MAX = 16  # whose time is remembered


class Listener(Protocol):
    """What becomes of what a daemon says (eviction.Evictions)."""

    def evict(self, peer: Peer, notice: Evict) -> Noticed:
        """Slabs are to be given up; what of it is begun."""

    def taken(self, peer: Peer, slabs: tuple[int, ...]) -> None:
        """Slabs are gone by force."""

    def activity(self, peer: Peer, ask: Ask) -> ActivityAnswer:
        """How active slabs are."""


class LeaseStream:
    """The task of one lease."""

    def __init__(self, peer: Peer, lease: HeldLease, listener: Listener, *, clock: Clock, rng: Random) -> None:
        """clock: monotonic seconds, the one of the leases."""
        self._peer = peer
        self._lease = lease
        self._listener = listener
        self._clock = clock
        self._rng = rng
        self._echoes: deque[tuple[int, float]] = deque(maxlen=ECHOES_MAX)  # numbers of beats, and when we echoed them
        self._complaints = Complaints(log, clock)

    async def run(self) -> None:
        """Open a stream, again and again, and hear what it says; until cancelled."""
        pause_s = PAUSE_MIN_S
        try:
            while True:
                try:
                    socket = await self._peer.client.open_stream(self._lease)
                except PeerError as error:
                    log.debug("peer %s: no stream: %s", self._peer.address, error)
                    if isinstance(error, LeaseGoneError):
                        self._poll()  # or the daemon is one without streams
                else:
                    try:
                        if await self._hear(socket):
                            pause_s = PAUSE_MIN_S
                    finally:
                        await socket.close()
                    self._poll()
                self._peer.listening = False
                await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        finally:
            self._peer.listening = False

    def _poll(self) -> None:
        """Have the daemon asked about the lease at once, by HTTP."""
        self._peer.wake.set()

    async def _hear(self, socket: aiohttp.ClientWebSocketResponse) -> bool:
        """Until the stream ends; whether it was of use."""
        useful = False
        self._echoes.clear()
        silent_s = 0.0
        while silent_s < DEAD_S:
            try:
                message = await socket.receive(timeout=SILENCE_S)
            except TimeoutError:
                silent_s += SILENCE_S
                if self._peer.listening or silent_s == SILENCE_S:
                    self._peer.listening = False
                    self._poll()
                continue
            silent_s = 0.0
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                log.debug("peer %s: the stream ends: %s", self._peer.address, message.extra)
                break
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            try:
                heard = from_daemon(message.data)
            except StreamError as error:
                self._peer.stream_nonsense += 1
                said = f"peer {self._peer.address}: a message was passed over: {error}"
                self._complaints.say("nonsense", said, logging.WARNING)
                continue
            useful = True
            if heard is not None and not await self._answer(socket, heard):
                break
        return useful

    async def _answer(self, socket: aiohttp.ClientWebSocketResponse, heard: FromDaemon) -> bool:
        """Do what is to be done; False: the stream is of no use any more."""
        answer = self._handle(heard)
        if answer is None:
            return True
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await socket.send_str(encode(answer))
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            log.debug("peer %s: the stream breaks: %s", self._peer.address, str(error) or "no room")
            return False
        return True

    def _handle(self, heard: FromDaemon) -> FromDevice | None:
        peer = self._peer
        if peer.lease is not self._lease:
            return None
        match heard:
            case StreamBeat():
                return self._beat(heard)
            case Evict():
                return self._listener.evict(peer, heard)
            case Ask():
                return self._listener.activity(peer, heard)
            case Taken():
                self._listener.taken(peer, heard.slabs)
            case Policy():
                peer.standing = replace(peer.standing, lending=heard.lending, draining=heard.draining)
        return None

    def _beat(self, beat: StreamBeat) -> Echo | None:
        peer, lease = self._peer, self._lease
        if beat.incarnation != lease.incarnation:
            self._poll()  # which finds the lease gone
            return None
        peer.listening = True
        peer.free_bytes = beat.free_bytes
        if peer.path is not None and not beat.rdma:
            self._poll()
        for number, sent_s in self._echoes:
            if number == beat.heard:
                lease.renewed(sent_s)
        self._echoes.append((beat.number, self._clock()))
        return Echo(beat.number)
