"""A client that goes while its WebSocket is opened leaves no traceback, whichever release of aiohttp serves it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import aiohttp
import pytest
from aiohttp import web

from infiniswap.shared.http_server import HttpServer, opened
from tests.support.waiting import eventually

HANDSHAKE = (
    b"GET /?when=%s HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize("when", [b"before", b"after"])
async def test_client_that_went(when: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is told of as gone, nothing is logged, and the next client is served."""
    asked = asyncio.Event()
    told: list[bool] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.set()
        if request.query:
            transport = request.transport
            assert transport is not None
            transport.abort()  # as when the kernel says that the client is gone: the loop closes it in its next turn
            if request.query["when"] == "after":
                await eventually(lambda: request.transport is None)
        websocket = web.WebSocketResponse()
        told.append(await opened(websocket, request))
        if not told[-1]:
            return web.Response()
        await websocket.close()
        return websocket

    app = web.Application()
    app.add_routes([web.get("/", handler)])
    listening = socket.create_server(("127.0.0.1", 0))
    host, port = listening.getsockname()
    server = HttpServer(app, listening)
    await server.start()
    with caplog.at_level(logging.INFO):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(HANDSHAKE % when)
        await asked.wait()
        await eventually(lambda: told == [False])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://{host}:{port}/") as websocket:
            assert (await websocket.receive()).type == aiohttp.WSMsgType.CLOSE
    assert told == [False, True]
    assert not caplog.records
    await server.close()
