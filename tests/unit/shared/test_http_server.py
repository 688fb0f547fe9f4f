"""The HTTP server short of descriptors: the connection that was idle longest makes room, one that is busy does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import web

from infiniswap.shared import http_server
from infiniswap.shared.http_server import HttpServer

TIMEOUT_S = 20.0
GET_REFUSED = b"GET /refused?status=%d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
REQUEST = b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n"


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Served:
    """A server that has descriptors for a few connections, and whose /slow answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.in_progress = asyncio.Semaphore(0)
        self.connections_max = 3
        self.address = ("", 0)
        self.clients: list[Client] = []

    async def slow(self, _request: web.Request) -> web.Response:
        self.in_progress.release()
        await self.go_on.wait()
        return web.Response(text="slow")

    async def quick(self, _request: web.Request) -> web.Response:
        return web.Response(text="quick")

    async def client(self) -> Client:
        async with asyncio.timeout(TIMEOUT_S):
            self.clients.append(await asyncio.open_connection(*self.address))
        return self.clients[-1]

    async def keep_busy(self, client: Client) -> None:
        """Return when a request of client is in progress."""
        client[1].write(REQUEST % b"slow")
        async with asyncio.timeout(TIMEOUT_S):
            await self.in_progress.acquire()


async def use(client: Client) -> None:
    """One request and its answer."""
    client[1].write(REQUEST % b"quick")
    assert await answer(client[0]) == b"quick"


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """The server."""
    served = Served()
    app = web.Application()
    app.add_routes([web.get("/slow", served.slow), web.get("/quick", served.quick)])
    listening = socket.create_server(("127.0.0.1", 0))
    served.address = listening.getsockname()
    server = HttpServer(app, listening)

    def too_many(_fd: int, *, for_control: bool) -> bool:
        assert for_control
        web_server = server._runner.server
        assert web_server is not None
        # Those that are gone stay in the list for a moment; their descriptors do not.
        open_now = [handler for handler in web_server.connections if handler.transport is not None]
        return len(open_now) >= served.connections_max

    monkeypatch.setattr(http_server, "too_many", too_many)
    await server.start()
    yield served
    served.go_on.set()
    for _, writer in served.clients:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    await server.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The last line of an answer; b"" when the connection has ended."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return await reader.readexactly(length)


async def test_idle_longest_goes_first(served: Served) -> None:
    """Used longest ago, not opened longest ago; and never one with a request in progress."""
    busy, used, unused = [await served.client() for _ in range(3)]
    await served.keep_busy(busy)
    for client in (used, unused, used):
        await use(client)
    for gone in (unused, used):
        new = await served.client()
        assert await answer(gone[0]) == b"", "it made room"
        await served.keep_busy(new)
    served.go_on.set()
    assert await answer(busy[0]) == b"slow"


async def test_nothing_idle(served: Served) -> None:
    """Where all are busy the new one is closed, and they are not."""
    busy = [await served.client() for _ in range(3)]
    for client in busy:
        await served.keep_busy(client)
    refused = await served.client()
    assert await answer(refused[0]) == b""
    served.go_on.set()
    assert [await answer(client[0]) for client in busy] == [b"slow"] * 3
    await use(busy[0])


@dataclass
class Refusing:
    """A server whose /refused answers with a status of its query."""

    address: tuple[str, int]

    async def say(self, request: bytes) -> bytes:
        """Send it on a connection of its own; all that comes."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(request)
        async with asyncio.timeout(TIMEOUT_S):
            said = await reader.read()
        writer.close()
        return said


@pytest.fixture
async def refusing() -> AsyncIterator[Refusing]:
    """The server."""

    async def refuse(request: web.Request) -> web.Response:
        status = int(request.query["status"])
        return web.json_response({"error": f"this is {status}\nand \x1b[31mmore"}, status=status)

    app = web.Application()
    app.add_routes([web.get("/refused", refuse)])
    listening = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(app, listening)
    await server.start()
    yield Refusing(listening.getsockname())
    await server.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as one, or as worse."""
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


async def test_refusals_are_told_of(refusing: Refusing, caplog: pytest.LogCaptureFixture) -> None:
    """With the sentence that the client got, on one line, once for each status however many there are."""
    for _ in range(20):
        for status in (400, 404, 200):
            answer = await refusing.say(
                b"GET /refused?status=%d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % status
            )
            assert b" %d " % status in answer
    assert warnings(caplog) == [
        f"refused a GET of 127.0.0.1: {status} this is {status}\\nand \\x1b[31mmore" for status in (400, 404)
    ]


async def test_ordinary_refusals_are_no_warning(refusing: Refusing, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon without room says so all day."""
    with caplog.at_level(logging.INFO):
        await refusing.say(GET_REFUSED % 507)
    assert warnings(caplog) == []
    assert "refused a GET of 127.0.0.1: 507 this is 507" in caplog.text


async def test_what_is_no_http_is_told_of(refusing: Refusing, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and without what was said, which may hold a token."""
    for _ in range(20):
        await refusing.say(b"GET / HTTP/1.1\r\nAuthorization: Bearer s\x00cret\r\n\r\n")
    (told,) = warnings(caplog)
    assert told.startswith("a client was dropped, for it speaks no HTTP (")
    assert "cret" not in caplog.text


async def test_clients_beyond_the_limit_are_told_of(
    refusing: Refusing, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, whoever comes."""
    monkeypatch.setattr(http_server, "CONNECTIONS_MAX", 0)
    for _ in range(5):
        assert b" 503 " in await refusing.say(b"")
    assert warnings(caplog) == ["a client was dropped: 0 are connected"]
