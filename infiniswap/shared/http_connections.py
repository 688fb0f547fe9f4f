"""The connections of one HTTP server: how long each may say nothing, and who goes when there is no room for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from infiniswap.shared.crowd import Crowd

HEAD_TIMEOUT_S = 5.0  # from the connection to the end of its first request's head
IDLE_TIMEOUT_S = 10.0  # from an answer to the end of the next request's head; our clients let go after half of it
ADDRESS_MAX = 256  # connections of strangers from one network: half of what the control port has
HOLDER_MAX = 16  # connections that count as one lease's; a device has at most 8, and its stream


@dataclass(slots=True)
class DoorCounts:
    """What became of connections that came to nothing."""

    ended_silent: int = 0  # no head of a request within HEAD_TIMEOUT_S
    ended_idle: int = 0
    gave_way: int = 0
    refused: int = 0  # there was no room, and nobody to give way


class HttpConnections:
    """Who is connected. A connection is known by its aiohttp protocol."""

    def __init__(self, connections_max: Callable[[], int], *, give_way: bool) -> None:
        """connections_max: asked each time. give_way: at the limit somebody ends for a new one."""
        self.counts = DoorCounts()
        self._connections_max = connections_max
        self._give_way = give_way
        self._crowd: Crowd[web.RequestHandler] = Crowd()
        self._requests: dict[web.RequestHandler, web.Request] = {}  # in progress
        self._ends: dict[web.RequestHandler, asyncio.TimerHandle] = {}

    def admit(self, network: str, alive: Collection[web.RequestHandler]) -> bool:
        """Whether a further connection from network may come, if need be in the place of another.

        alive: those that are connected now.
        """
        room = True
        if self._give_way and network and self._has_its_part(network, alive):
            room = self._end_stranger(network)
        elif len(alive) >= self._connections_max():
            room = self._give_way and self.make_room(alive)
        self.counts.refused += not room
        return room

    def make_room(self, alive: Collection[web.RequestHandler]) -> bool:
        """End the connection that matters least, at the next turn of the loop; False: all have something under way."""
        self._forget_all_but(alive)
        return self._end_stranger(None) or self._end(self._crowd.extra(self._may_go))

    def came(self, protocol: web.RequestHandler, network: str) -> None:
        """A connection was made."""
        if len(self._crowd) > 2 * self._connections_max():
            self._forget_the_gone()
        self._crowd.enter(protocol, network)
        self._end_after(protocol, HEAD_TIMEOUT_S, silent=True)

    def begins(self, request: web.Request) -> None:
        """A request's head is complete. Whose it is, it has to prove anew."""
        protocol = request.protocol
        self._requests[protocol] = request
        self._crowd.use(protocol)
        self._crowd.prove(protocol, None)
        self._stop_timer(protocol)

    def ends(self, protocol: web.RequestHandler) -> None:
        """Its answer is on the way."""
        self._requests.pop(protocol, None)
        if protocol.transport is None:
            self._forget(protocol)
        else:
            self._crowd.use(protocol)
            self._end_after(protocol, IDLE_TIMEOUT_S, silent=False)

    def prove(self, protocol: web.RequestHandler, holder: Hashable) -> None:
        """The request in progress is the holder's: until its next one the connection gives way to no stranger's.

        A holder of too many loses the one that it used longest ago.
        """
        self._crowd.prove(protocol, holder)
        if self._crowd.held(holder) > HOLDER_MAX:
            self._forget_the_gone()
            if self._crowd.held(holder) > HOLDER_MAX:
                self._end(self._crowd.extra(self._may_go, holder))

    def close(self) -> None:
        """End the timers."""
        for timer in self._ends.values():
            timer.cancel()
        self._ends.clear()

    def _may_go(self, protocol: web.RequestHandler) -> bool:
        """Whether nothing is under way: a request whose body does not come is nothing."""
        if protocol.transport is None or protocol.transport.is_closing():
            return False
        request = self._requests.get(protocol)
        return request is None or not request.content.is_eof()

    def _has_its_part(self, network: str, alive: Collection[web.RequestHandler]) -> bool:
        if self._crowd.strangers(network) >= ADDRESS_MAX:
            self._forget_all_but(alive)
        return self._crowd.strangers(network) >= ADDRESS_MAX

    def _end_stranger(self, network: str | None) -> bool:
        return self._end(self._crowd.stranger(self._may_go, network))

    def _end(self, protocol: web.RequestHandler | None) -> bool:
        if protocol is None or protocol.transport is None:
            return False
        self.counts.gave_way += 1
        protocol.transport.abort()  # at the next turn of the loop; close() would wait for the handler's leave
        self._forget(protocol)
        return True

    def _end_after(self, protocol: web.RequestHandler, timeout_s: float, *, silent: bool) -> None:
        self._stop_timer(protocol)
        end = partial(self._time_is_over, protocol, silent=silent)
        self._ends[protocol] = asyncio.get_running_loop().call_later(timeout_s, end)

    def _time_is_over(self, protocol: web.RequestHandler, *, silent: bool) -> None:
        transport = protocol.transport
        self._forget(protocol)
        if transport is not None:
            self.counts.ended_silent += silent
            self.counts.ended_idle += not silent
            transport.abort()

    def _forget_the_gone(self) -> None:
        self._forget_all_but({one for one in self._crowd.keys() if one.transport is not None})  # noqa: SIM118

    def _forget_all_but(self, alive: Collection[web.RequestHandler]) -> None:
        self._crowd.keep(alive)
        for protocol in [known for known in self._ends if known not in self._crowd]:
            self._stop_timer(protocol)
        for protocol in [known for known in self._requests if known not in self._crowd]:
            del self._requests[protocol]

    def _forget(self, protocol: web.RequestHandler) -> None:
        self._crowd.leave(protocol)
        self._requests.pop(protocol, None)
        self._stop_timer(protocol)

    def _stop_timer(self, protocol: web.RequestHandler) -> None:
        if (timer := self._ends.pop(protocol, None)) is not None:
            timer.cancel()
