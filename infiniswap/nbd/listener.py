"""Accepts NBD clients, negotiates with them under a deadline, and hands the sockets on.

Sockets are used through the event loop's sock_* calls, never through streams: nothing is read ahead, and the descriptor
is clean when the engine gets it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from infiniswap.nbd.handshake import (
    DEFAULT_LIMITS,
    ExportInfo,
    HandshakeLimits,
    HandshakeState,
    Negotiated,
    ServerHandshake,
)
from infiniswap.nbd.sockets import OwnedUnixSocket, open_tcp_socket, open_unix_socket, sockets_from_environment
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.crowd import Crowd, network_of
from infiniswap.shared.descriptors import readable, too_many
from infiniswap.shared.rate import Rate

__all__ = ["NbdListener", "OwnedUnixSocket", "open_tcp_socket", "open_unix_socket", "sockets_from_environment"]

_log = logging.getLogger(__name__)

HANDSHAKES_MAX = 256
ADDRESS_SHARE = 2  # one network's negotiations are at most this part (1/n) of all; UNIX sockets are nobody's network
LOCAL_SHARE = 4  # where there is a UNIX socket, this part (1/n) of the connections is for its clients alone
# New connections of one network: so many at once, so many a second. Beyond that they are closed unseen, which is quick,
# so that those who wait behind a flood are served soon. As on the control port (shared/http_server.py).
ADDRESS_BURST, ADDRESS_PER_S = 1024, 128.0
CLOSED_AT_ONCE_MAX = 64  # before others have their turn
_RECEIVE_BYTES = 16 << 10  # at once; also the bound of Negotiated.early, which the engine limits to 64 KiB
WATCH_INTERVAL_S = 1.0
_ACCEPT_RETRY_S = 0.2  # after accept failed for want of descriptors or memory


class NbdListener:
    """Listening sockets and the negotiations in progress on them."""

    def __init__(
        self,
        sockets: list[socket.socket],
        exports: Callable[[str], ExportInfo | None],
        names: Callable[[], list[str]],
        on_connection: Callable[[socket.socket, Negotiated], None],
        *,
        connections_max: int,
        open_connections: Callable[[], int],
        handshake_timeout_s: float = 10.0,
        handshakes_max: int = HANDSHAKES_MAX,
        limits: HandshakeLimits = DEFAULT_LIMITS,
        protocol_errors: Callable[[], int] = lambda: 0,
    ) -> None:
        """Serve on sockets (listening, non-blocking; closed with the listener).

        exports, names: as for ServerHandshake. on_connection gets each negotiated socket and owns it from then on; what
        it raises is logged and ends that connection only. open_connections: how many negotiated ones are open now; at
        connections_max new ones are closed at once, those over TCP somewhat earlier where there is a UNIX socket. At
        handshakes_max, or at one network's part of them, the one that was silent longest gives way, of the network that
        has the most: so idle clients cannot keep others out.

        protocol_errors: how often negotiated clients have broken the protocol; looked at every WATCH_INTERVAL_S.
        """
        self._sockets = sockets
        self._exports = exports
        self._names = names
        self._on_connection = on_connection
        self._connections_max = connections_max
        self._open_connections = open_connections
        self._handshake_timeout_s = handshake_timeout_s
        self._handshakes_max = handshakes_max
        self._limits = limits
        self._protocol_errors = protocol_errors
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: Crowd[asyncio.Task[None]] = Crowd()
        self._giving_way: set[asyncio.Task[None]] = set()  # at their next turn
        self._complaints = Complaints(_log)
        self._rate = Rate(burst=ADDRESS_BURST, per_second=ADDRESS_PER_S, clock=asyncio.get_running_loop().time)
        self.accepted_total = 0
        self.refused_total = 0  # closed at the limit of connections
        self.failed_total = 0  # negotiations that ended without an export
        self.gave_way_total = 0  # negotiations ended to make room for others
        self.flooded_total = 0  # closed unseen, for their address opens too many

    @property
    def handshakes(self) -> int:
        """Negotiations in progress."""
        return len(self._handshakes)

    async def start(self) -> None:
        """Begin to accept."""
        for sock in self._sockets:
            sock.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(sock)))
        self._accepting.append(asyncio.create_task(self._watch()))

    async def close(self) -> None:
        """Stop accepting, end every negotiation, close the listening sockets. Connections handed on are not touched."""
        tasks = [*self._accepting, *self._handshakes.keys(), *self._giving_way]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._accepting.clear()
        for sock in self._sockets:
            sock.close()

    async def _accept(self, listening: socket.socket) -> None:
        closed = 0
        while True:
            try:
                # Not sock_accept: cancelled at the wrong moment it loses a connection that it has taken already.
                client, peer = listening.accept()
            except BlockingIOError:
                await readable(listening)
                continue
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._complaints.say("accept", f"cannot accept connections: {error.strerror or error}", logging.WARNING)
                await asyncio.sleep(_ACCEPT_RETRY_S)
                continue
            self.accepted_total += 1
            network = network_of(str(peer[0])) if isinstance(peer, tuple) else ""
            if network and not self._rate.take(network):
                client.close()
                self.flooded_total += 1
                message = f"connections were closed unseen: {network} opens more than {ADDRESS_PER_S:g} a second"
                self._complaints.say("flooded", message, logging.WARNING)
                closed += 1
                if closed % CLOSED_AT_ONCE_MAX == 0:
                    await asyncio.sleep(0)
                continue
            if self._is_full_for(client):
                self._refuse(client, f"{self._open_connections()} are open")
            elif too_many(client.fileno(), for_control=False):
                self._refuse(client, "few descriptors are left ('ulimit -n')")
                self._make_room(None)
            else:
                self._begin(client, network)
            await asyncio.sleep(0)  # a flood of connections must not keep the loop from its other work

    def _is_full_for(self, client: socket.socket) -> bool:
        """Strangers on the network must not take all connections of a device that serves this very host as well."""
        kept = 0
        if client.family != socket.AF_UNIX and any(sock.family == socket.AF_UNIX for sock in self._sockets):
            kept = self._connections_max // LOCAL_SHARE
        return self._open_connections() >= self._connections_max - kept

    def _begin(self, client: socket.socket, network: str) -> None:
        """Negotiate with a client, for whom others make room where there is none."""
        if network and self._handshakes.strangers(network) >= max(1, self._handshakes_max // ADDRESS_SHARE):
            self._make_room(network)
        elif len(self._handshakes) >= self._handshakes_max:
            self._make_room(None)
        task = asyncio.create_task(self._serve(client))
        self._handshakes.enter(task, network)
        task.add_done_callback(partial(self._ended, client))

    def _make_room(self, network: str | None) -> None:
        """End the negotiation that was silent longest: of network, or of the one that has the most."""
        oldest = self._handshakes.stranger(lambda _: True, network)
        if oldest is not None:
            self._handshakes.leave(oldest)
            self._giving_way.add(oldest)
            oldest.cancel()
            self.gave_way_total += 1
            self._say_dropped("it was slow, and others waited")

    def _say_dropped(self, reason: str) -> None:
        self._complaints.say(reason, f"a client was dropped: {reason}", logging.WARNING)

    async def _watch(self) -> None:
        """Tell of clients that the data path has answered with an error, or dropped, for what they sent."""
        told = self._protocol_errors()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if (now := self._protocol_errors()) > told:
                message = f"clients sent {now - told} requests that are none, or that are not allowed"
                self._complaints.say("protocol", message, logging.WARNING)
                told = now

    def _ended(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        self._handshakes.leave(task)
        self._giving_way.discard(task)
        if task.cancelled():
            client.close()  # a task cancelled before its first step has closed nothing
        elif (error := task.exception()) is not None:
            _log.error("a client's negotiation failed unexpectedly", exc_info=error)

    async def _serve(self, client: socket.socket) -> None:
        """Negotiate with one client and hand it on; whatever happens otherwise, its socket is closed."""
        try:
            async with asyncio.timeout(self._handshake_timeout_s):
                negotiated = await self._negotiate(client)
            if negotiated is None:
                self.failed_total += 1
            elif self._is_full_for(client):
                self._refuse(client, f"{self._open_connections()} are open")
            else:
                self._hand_on(client, negotiated)
                return
        except TimeoutError:
            self.failed_total += 1
            self._say_dropped(f"its negotiation took more than {self._handshake_timeout_s:g} s")
        except OSError as error:  # it has gone; why is its affair
            self.failed_total += 1
            _log.debug("a client did not finish its negotiation: %s", error.strerror or type(error).__name__)
        except BaseException:
            client.close()
            raise
        client.close()

    async def _negotiate(self, client: socket.socket) -> Negotiated | None:
        """The outcome, or None when the connection is to be closed."""
        loop = asyncio.get_running_loop()
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if client.family in (socket.AF_INET, socket.AF_INET6):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found: dict[str, ExportInfo] = {}  # in this negotiation: as many as it has options, which is limited

        def export(name: str) -> ExportInfo | None:
            """A name may be good for one connection alone, which may ask for it more than once (INFO before GO)."""
            if name not in found and (info := self._export(name)) is not None:
                found[name] = info
            return found.get(name)

        handshake = ServerHandshake(export, self._names, limits=self._limits)
        await loop.sock_sendall(client, handshake.greeting())
        while handshake.state is HandshakeState.NEGOTIATING:
            data = await loop.sock_recv(client, _RECEIVE_BYTES)
            if not data:
                return None
            if (task := asyncio.current_task()) is not None:
                self._handshakes.use(task)
            answer = handshake.feed(data)
            if answer:
                await loop.sock_sendall(client, answer)
        if handshake.fault:
            self._say_dropped(handshake.fault)
        return handshake.result if handshake.state is HandshakeState.DONE else None

    def _export(self, name: str) -> ExportInfo | None:
        export = self._exports(name)
        if export is None:  # its name may be a secret that has been mistyped
            self._complaints.say("export", "a client asked for an export that is not here", logging.WARNING)
        return export

    def _hand_on(self, client: socket.socket, negotiated: Negotiated) -> None:
        try:
            self._on_connection(client, negotiated)
        except Exception:  # noqa: BLE001 - one connection that cannot be served must not end the service
            client.close()
            _log.exception("a negotiated connection could not be handed on")

    def _refuse(self, client: socket.socket, reason: str) -> None:
        client.close()
        self.refused_total += 1
        self._complaints.say("refused", f"a new connection was closed: {reason}", logging.WARNING)
