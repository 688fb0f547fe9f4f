"""Serves an aiohttp application on one listening socket within limits: connections, idle time, quiet log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from http import HTTPStatus
from typing import Any

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from infiniswap.shared.complaints import Complaints
from infiniswap.shared.crowd import network_of
from infiniswap.shared.descriptors import readable, too_many
from infiniswap.shared.errors import one_line
from infiniswap.shared.http_connections import HttpConnections
from infiniswap.shared.plain_answer import plain_answer
from infiniswap.shared.rate import Rate
from infiniswap.shared.tls_accept import TlsAccept

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512
# New connections of one address: so many at once, so many a second. Beyond that they are closed unseen, which is quick:
# what waits to be accepted is a queue that all share, and those behind a flood must not wait for it to be served.
ADDRESS_BURST, ADDRESS_PER_S = 1024, 128.0
CLOSED_AT_ONCE_MAX = 64  # before others have their turn
ACCEPT_RETRY_S = 0.2  # after accept failed for want of descriptors or memory
BODY_TIMEOUT_S = 10.0
AIOHTTP_IDLE_S = 3600.0  # never: HttpConnections ends what is idle long before
SHUTDOWN_TIMEOUT_S = 2.0  # for requests in progress
# How a daemon without room or without RDMA answers all day; its metrics count that.
ORDINARY_REFUSALS = (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.INSUFFICIENT_STORAGE)

# Text format 0.0.4, which every Prometheus reads. The name of prometheus_client's constant differs between releases.
METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# How the beginning of a TLS handshake (RFC 8446, 5.1) stands in an error of aiohttp's parser, and its own word for it.
_TLS_HELLO = re.compile(r"\\x16\\x03|\x16\x03|HTTPS traffic on an HTTP port")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BodyError(Exception):
    """A body that is no request of ours; the message is a sentence for who sent it."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        """status: of the answer."""
        super().__init__(message)
        self.status = status


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object in the body; an empty body is an empty object. BodyError."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await request.read()
        content = json.loads(raw, parse_constant=_no_constant) if raw else {}
    except TimeoutError:
        sentence = f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
        raise BodyError(HTTPStatus.REQUEST_TIMEOUT, sentence) from None
    except (OSError, RuntimeError, ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        # RuntimeError: some releases say so that the connection was cut while its body was waited for.
        raise BodyError(HTTPStatus.BAD_REQUEST, "the body was cut off") from None
    except (ValueError, RecursionError):
        raise BodyError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(content, dict):
        raise BodyError(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    return content


def require_websocket(request: web.Request) -> None:
    """BodyError that says what speaks here, unless request asks for a WebSocket (RFC 6455, 4.2.1)."""
    if "websocket" not in request.headers.get("Upgrade", "").lower():
        sentence = f"{request.path} is a WebSocket, not a page: it needs a client that speaks it, such as websocat"
        raise BodyError(HTTPStatus.UPGRADE_REQUIRED, sentence)


async def opened(socket: web.WebSocketResponse, request: web.Request) -> bool:
    """Answer the handshake; False when the client went meanwhile: then any other response ends the request quietly.

    A socket that was not opened must not be the response: some releases of aiohttp close it, and that raises.
    """
    try:
        await socket.prepare(request)
    except ValueError:  # aiohttp decodes the key of the handshake before it looks at it
        raise web.HTTPBadRequest(reason="the WebSocket handshake cannot be read") from None
    except ConnectionError:
        return False
    return True


def sentence_of(error: web.HTTPException) -> str:
    """What an error of aiohttp's has to say: its text where it is more than the name of its status."""
    text = error.text or ""
    return error.reason if text in ("", f"{error.status}: {error.reason}") else one_line(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class _OneLine(logging.Filter):
    """What clients send wrong is worth one line now and then, not a traceback each time."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        super().__init__()
        self._complaints = Complaints(log)

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if not (isinstance(error, web.HTTPException) or type(error).__module__.startswith("aiohttp.http")):
            return log.isEnabledFor(record.levelno)
        # Not what it said: that may hold a token.
        message = f"a client was dropped, for it speaks no HTTP ({type(error).__name__})"
        if _TLS_HELLO.search(str(error)):
            message = (
                "a client was dropped: it speaks TLS, and this program has no certificate: give this one too, "
                "or the other one --insecure as well"
            )
        self._complaints.say("malformed", message, logging.WARNING)
        return False


class _Busy(asyncio.Protocol):
    """Answers a connection beyond the limit and closes it."""

    def __init__(self, connections_max: int) -> None:
        """connections_max: the limit."""
        self._connections_max = connections_max

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say why, and go."""
        assert isinstance(transport, asyncio.Transport)
        sentence = f"{self._connections_max} connections are open; try again later"
        transport.write(plain_answer(HTTPStatus.SERVICE_UNAVAILABLE, sentence))
        transport.close()


def _renumbered(sock: socket.socket) -> socket.socket:
    """The same connection with the lowest number that is free, for numbers tell how many are in use."""
    try:
        moved = sock.dup()
    except OSError:
        return sock
    sock.close()
    return moved


class HttpServer:
    """One application on one socket."""

    def __init__(
        self,
        application: web.Application,
        listening: socket.socket,
        *,
        connections_max: int | None = None,
        life_s: float | None = None,
        give_way: bool = True,
        secure: TlsAccept | None = None,
    ) -> None:
        """listening: a listening socket, closed with the server. connections_max: None for CONNECTIONS_MAX.

        life_s: a connection is cut off after that; None: as long as it is used.
        give_way: at the limit the stranger's that was idle longest ends for a new one (see HttpConnections). secure:
        None: in the clear.
        """
        self._secure = secure
        self.connections = HttpConnections(lambda: self._connections_max, give_way=give_way)
        # Its level is DEBUG, on which some releases tell of what is no HTTP; the filter lets through what is asked for.
        # It is in no list of loggers, for that level is nobody's choice.
        logger = logging.Logger(f"{__name__}.requests", logging.DEBUG)
        logger.parent = log
        logger.addFilter(_OneLine())
        self._socket = listening
        self._own_connections_max = connections_max
        self._life_s = life_s
        self._rate = Rate(burst=ADDRESS_BURST, per_second=ADDRESS_PER_S, clock=asyncio.get_running_loop().time)
        self._ends: dict[asyncio.Transport, asyncio.TimerHandle] = {}  # of connections that have a life_s
        self._complaints = Complaints(log)
        application.middlewares.insert(0, self._watch)
        self._runner = web.AppRunner(
            application,
            access_log=None,  # a request line per heartbeat tells nobody anything
            auto_decompress=False,  # nothing here is large enough to be sent compressed
            keepalive_timeout=AIOHTTP_IDLE_S,
            logger=logger,
        )
        self._accepting: asyncio.Task[None] | None = None

    @property
    def _connections_max(self) -> int:
        return CONNECTIONS_MAX if self._own_connections_max is None else self._own_connections_max

    async def start(self) -> None:
        """Begin to accept."""
        await self._runner.setup()
        self._socket.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(), name="HTTP connections")

    async def close(self) -> None:
        """Stop accepting, let requests in progress end within SHUTDOWN_TIMEOUT_S, close all connections."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._secure is not None:
            await self._secure.close()
        server = self._runner.server
        if server is not None:
            # The runner's own way to say for how long differs between 3.8 and later releases.
            await self._runner.shutdown()
            await server.shutdown(SHUTDOWN_TIMEOUT_S)
        await self._runner.cleanup()
        for end in self._ends.values():
            end.cancel()
        self._ends.clear()
        self.connections.close()
        self._socket.close()

    def cut(self, wrong: Callable[[asyncio.BaseTransport], bool]) -> int:
        """Cut off the connections for which wrong holds, streams as well; how many there were."""
        server = self._runner.server
        handlers = [] if server is None else server.connections
        found = [it.transport for it in handlers if it.transport is not None and wrong(it.transport)]
        for transport in found:
            transport.abort()
        return len(found)

    async def _accept(self) -> None:
        """Not by asyncio's own server, which logs an error for every try while descriptors are short."""
        closed = 0
        while True:
            try:
                client, peer = self._socket.accept()
            except BlockingIOError:
                await readable(self._socket)
                continue
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._complaints.say("accept", f"cannot accept connections: {error.strerror or error}", logging.WARNING)
                self.connections.make_room(self._alive())
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            network = network_of(str(peer[0])) if isinstance(peer, tuple) else ""
            if network and not self._rate.take(network):
                client.close()
                self._say_flooded(network)
                closed += 1
                if closed % CLOSED_AT_ONCE_MAX == 0:
                    await asyncio.sleep(0)
                continue
            if too_many(client.fileno(), for_control=True):
                message = "few descriptors are left ('ulimit -n'): connections that are idle are closed"
                self._complaints.say("few", message, logging.WARNING)
                if self.connections.make_room(self._alive()):
                    await asyncio.sleep(0)  # then it is closed, and its number is free
                    client = _renumbered(client)
                if too_many(client.fileno(), for_control=True):
                    client.close()
                    continue
            client.setblocking(False)
            if self._secure is not None:
                self._secure.begin(client, network, self._handler, partial(self._shown, network))
            else:
                await self._take(client, network)
            await asyncio.sleep(0)  # a flood of connections must not keep the loop from its other work

    def _say_flooded(self, network: str) -> None:
        self.connections.counts.refused += 1
        message = f"connections were closed unseen: {network} opens more than {ADDRESS_PER_S:g} a second"
        self._complaints.say("flooded", message, logging.WARNING)

    async def _take(self, client: socket.socket, network: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.connect_accepted_socket(partial(self._protocol, network), client)
        except OSError:  # gone already
            client.close()
            return
        if isinstance(protocol, web.RequestHandler):
            self.connections.came(protocol, network)
            if self._life_s is not None:
                self._limit(transport, self._life_s)

    def _alive(self) -> set[web.RequestHandler]:
        server = self._runner.server
        return set() if server is None else {one for one in server.connections if one.transport is not None}

    def _protocol(self, network: str) -> asyncio.Protocol:
        return self._handler() if self._admit(network, self._alive()) else _Busy(self._connections_max)

    def _handler(self) -> web.RequestHandler:
        server = self._runner.server
        assert server is not None
        return server()

    def _shown(self, network: str, protocol: asyncio.BaseProtocol) -> None:
        """A client has shown who it is: only then others make room for it."""
        if not isinstance(protocol, web.RequestHandler) or protocol.transport is None:
            return
        if self._admit(network, self._alive() - {protocol}):
            self.connections.came(protocol, network)
        else:
            protocol.transport.abort()

    def _admit(self, network: str, alive: set[web.RequestHandler]) -> bool:
        before = self.connections.counts.gave_way
        admitted = self.connections.admit(network, alive)
        if not admitted or self.connections.counts.gave_way > before:
            message = f"a client was dropped: {self._connections_max} are connected"
            self._complaints.say("busy", message, logging.WARNING)
        return admitted

    def _limit(self, transport: asyncio.BaseTransport, life_s: float) -> None:
        """Cut it off after life_s, whatever it is about: waiting for a header, or for its answer to be taken."""
        assert isinstance(transport, asyncio.Transport)
        if len(self._ends) > 2 * self._connections_max:
            for known in [known for known in self._ends if known.is_closing()]:
                self._ends.pop(known).cancel()
        self._ends[transport] = asyncio.get_running_loop().call_later(life_s, transport.abort)

    def vouch(self, request: web.Request, holder: Hashable) -> None:
        """A request in progress has proved whose it is."""
        self.connections.prove(request.protocol, holder)

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.connections.begins(request)
        try:
            response = await handler(request)
            if response.status >= HTTPStatus.BAD_REQUEST:
                self._say_refused(request, response)
            return response
        finally:
            self.connections.ends(request.protocol)

    def _say_refused(self, request: web.Request, response: web.StreamResponse) -> None:
        """Once in a while for each status: with the sentence that the client got, which holds no secret."""
        told: dict[str, Any] = {}
        if isinstance(response, web.Response) and response.content_type == "application/json":
            told = json.loads(response.text or "{}")
        sentence = told.get("error", response.reason)
        level = logging.INFO if response.status in ORDINARY_REFUSALS else logging.WARNING
        message = f"refused a {request.method} of {request.remote or 'a local client'}: {response.status} {sentence}"
        self._complaints.say(response.status, one_line(message), level)
