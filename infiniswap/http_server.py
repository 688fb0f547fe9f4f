"""Serves an aiohttp application on one listening socket within limits: connections, idle time, quiet log."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from http import HTTPStatus
from typing import Any

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

CONNECTIONS_MAX = 512
BODY_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 75.0  # without a complete request: longer than a device's heartbeats are apart
SHUTDOWN_TIMEOUT_S = 2.0  # for requests in progress


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
    except (OSError, ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        raise BodyError(HTTPStatus.BAD_REQUEST, "the body was cut off") from None
    except (ValueError, RecursionError):
        raise BodyError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(content, dict):
        raise BodyError(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class _OneLine(logging.Filter):
    """What clients send wrong is worth one line for the curious, not a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not (isinstance(error, web.HTTPException) or type(error).__module__.startswith("aiohttp.http"))


class _Busy(asyncio.Protocol):
    """Answers a connection beyond the limit and closes it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say why, and go."""
        assert isinstance(transport, asyncio.Transport)
        body = json.dumps({"error": f"{CONNECTIONS_MAX} connections are open; try again later"}).encode()
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\n"
        transport.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        transport.close()


class HttpServer:
    """One application on one socket."""

    def __init__(self, application: web.Application, listening: socket.socket) -> None:
        """listening: a listening socket, closed with the server."""
        logger = logging.getLogger(f"{__name__}.requests")
        if not any(isinstance(known, _OneLine) for known in logger.filters):
            logger.addFilter(_OneLine())
        self._socket = listening
        self._runner = web.AppRunner(
            application,
            access_log=None,  # a request line per heartbeat tells nobody anything
            auto_decompress=False,  # nothing here is large enough to be sent compressed
            keepalive_timeout=IDLE_TIMEOUT_S,
            logger=logger,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to accept."""
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(self._protocol, sock=self._socket)

    async def close(self) -> None:
        """Stop accepting, let requests in progress end within SHUTDOWN_TIMEOUT_S, close all connections."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        self._socket.close()

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        return server() if len(server.connections) < CONNECTIONS_MAX else _Busy()
