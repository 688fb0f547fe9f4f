"""Connections that say nothing end in time, those of leases stay, and one address or lease cannot have them all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from infiniswap.shared import http_connections, http_server
from infiniswap.shared.http_server import HttpServer
from tests.support.waiting import eventually

TIMEOUT_S = 20.0
HEAD_S, IDLE_S = 0.4, 0.8
REQUEST = b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n"

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Served:
    """A server where /lease/NAME proves to be the lease NAME's."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server = server
        self.port = port
        self.clients: list[Client] = []

    async def client(self, source: str = "127.0.0.1") -> Client:
        """A new connection."""
        async with asyncio.timeout(TIMEOUT_S):
            self.clients.append(await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0)))
        return self.clients[-1]


async def ask(client: Client, path: str = "") -> bytes:
    """The status line of an answer; b"" when the connection has ended."""
    reader, writer = client
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(ConnectionError):
            writer.write(REQUEST % path.encode())
            await writer.drain()
            with contextlib.suppress(asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
                return head.splitlines()[0]
    return b""


async def ended(client: Client) -> bool:
    """Whether the server has closed it by now."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            async with asyncio.timeout(0.2):
                return await client[0].read(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """Room for eight, of which six may be one address'."""
    monkeypatch.setattr(http_server, "CONNECTIONS_MAX", 8)
    monkeypatch.setattr(http_connections, "ADDRESS_MAX", 6)
    monkeypatch.setattr(http_connections, "HOLDER_MAX", 3)
    app = web.Application()
    listening = socket.create_server(("127.0.0.1", 0))

    async def lease(request: web.Request) -> web.Response:
        server.vouch(request, request.match_info["name"])
        return web.Response(text="known")

    async def anyone(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="hello")

    app.add_routes([web.get("/lease/{name}", lease), web.get("/", anyone), web.post("/", anyone)])
    server = HttpServer(app, listening)
    served = Served(server, listening.getsockname()[1])
    await server.start()
    yield served
    for _, writer in served.clients:
        writer.close()
    await server.close()


async def test_deadlines(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the head of the first request, also where it comes byte by byte, and for the next one."""
    monkeypatch.setattr(http_connections, "IDLE_TIMEOUT_S", IDLE_S)
    began_s = time.monotonic()
    idle = await served.client()
    assert await ask(idle) == b"HTTP/1.1 200 OK"  # before its own time for that is short
    monkeypatch.setattr(http_connections, "HEAD_TIMEOUT_S", HEAD_S)
    silent, slow = [await served.client() for _ in range(2)]
    slow[1].write(b"GET / HTTP/1.1\r\n")
    for client, least_s in ((silent, HEAD_S), (slow, HEAD_S), (idle, IDLE_S)):
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                assert await client[0].read() == b""
        assert time.monotonic() - began_s >= least_s
    counts = served.server.connections.counts
    assert (counts.ended_silent, counts.ended_idle, counts.gave_way) == (2, 1, 0)


async def test_leases_stay_whoever_comes(served: Served) -> None:
    """Connections that have proved a lease outlive any number of strangers, who always get through themselves."""
    known = [await served.client() for _ in range(2)]
    for client in known:
        assert await ask(client, "lease/a") == b"HTTP/1.1 200 OK"
    for _ in range(30):
        assert await ask(await served.client()) == b"HTTP/1.1 200 OK"
    for client in known:
        assert await ask(client, "lease/a") == b"HTTP/1.1 200 OK"
    assert served.server.connections.counts.gave_way >= 30 - 6


async def test_a_lease_is_proved_by_each_request(served: Served) -> None:
    """A connection that asks without proof is a stranger's again: else one lease would do for all."""
    once = await served.client()
    assert await ask(once, "lease/a") == b"HTTP/1.1 200 OK"
    assert await ask(once) == b"HTTP/1.1 200 OK"
    for _ in range(12):
        await served.client()
    await eventually(lambda: served.server.connections.counts.gave_way > 0)
    assert await ended(once)


async def test_one_address_ends_its_own(served: Served) -> None:
    """Others keep theirs, however idle they are."""
    others = [await served.client("127.0.0.3") for _ in range(2)]
    for _ in range(20):
        await served.client()
    await eventually(lambda: served.server.connections.counts.gave_way >= 14)
    assert [await ended(client) for client in others] == [False, False]


async def test_a_body_that_does_not_come_is_nothing_under_way(served: Served) -> None:
    """Requests that were begun and are not sent on make room as silence does."""
    for _ in range(8):
        (await served.client())[1].write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{")
    for _ in range(8):
        assert await ask(await served.client()) == b"HTTP/1.1 200 OK"
    assert served.server.connections.counts.refused == 0


async def test_one_lease_has_few(served: Served) -> None:
    """The ones that it used longest ago end."""
    clients = [await served.client() for _ in range(4)]
    for client in clients:
        assert await ask(client, "lease/a") == b"HTTP/1.1 200 OK"
    assert [await ended(client) for client in clients] == [True, False, False, False]


async def test_leases_with_many_make_room_for_leases_with_few(served: Served) -> None:
    """Where all connections are known ones, who has the most loses some, and nobody the last."""
    alone = await served.client()
    assert await ask(alone, "lease/alone") == b"HTTP/1.1 200 OK"
    for name in "abcdef":
        for _ in range(3):
            assert await ask(await served.client(), f"lease/{name}") == b"HTTP/1.1 200 OK"
    assert await ask(alone, "lease/alone") == b"HTTP/1.1 200 OK"


async def test_a_full_house_stays_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address whose connections have all gone meanwhile gets no place beyond the limit: somebody ends for it."""
    monkeypatch.setattr(http_connections, "ADDRESS_MAX", 2)
    connections = http_connections.HttpConnections(lambda: 3, give_way=True)
    protocols = [web.RequestHandler(web.Server(_nobody), loop=asyncio.get_running_loop()) for _ in range(5)]
    for protocol, network in zip(protocols, ("a", "a", "b", "c", "d"), strict=True):
        protocol.transport = Aborted()
        connections.came(protocol, network)
    assert connections.admit("a", set(protocols[2:]))
    assert connections.counts.gave_way == 1
    connections.close()


class Aborted(asyncio.Transport):
    """A transport that is cut off, and that is all."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


async def _nobody(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response()
