"""/metrics on TCP: there is nothing else, nothing can be changed, and who stalls holds a place for a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from infiniswap.shared import metrics_server
from infiniswap.shared.metrics_server import CONNECTIONS_MAX, serve_metrics

TEXT = b"# HELP a a\n# TYPE a gauge\na 1\n"
TIMEOUT_S = 20.0


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """Of a server whose connections live for a fifth of a second."""
    monkeypatch.setattr(metrics_server, "LIFE_S", 0.2)
    listening = socket.create_server(("127.0.0.1", 0))
    async with AsyncExitStack() as stack, asyncio.timeout(TIMEOUT_S):
        await serve_metrics(lambda: TEXT, listening, stack)
        yield listening.getsockname()[1]


async def test_only_metrics_and_only_read(port: int) -> None:
    """GET and HEAD of /metrics; any other path or method is refused in a word."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/metrics") as response:
            assert (response.status, await response.read()) == (200, TEXT)
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        async with session.head("/metrics") as response:
            assert response.status == 200
        for method, path, status in (
            ("POST", "/metrics", 405),
            ("DELETE", "/metrics", 405),
            ("GET", "/", 404),
            ("GET", "/v1/stats", 404),
            ("POST", "/v1/stop", 404),
            ("GET", "/metrics/", 404),
        ):
            async with session.request(method, path) as response:
                assert (response.status, response.content_type) == (status, "text/plain"), (method, path)


async def ask(port: int) -> bytes:
    """The whole answer to a scrape; it ends because the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


async def test_one_request_a_connection(port: int) -> None:
    """The answer ends the connection: no place is held between scrapes."""
    answer = await ask(port)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(TEXT)


async def test_who_sends_no_header_is_cut_off(port: int) -> None:
    """All places are taken by clients that stall; one more is told so, and soon there is room again."""
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
    for _, writer in held:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost:")  # and no more
    assert (await ask(port)).startswith(b"HTTP/1.1 503")
    for stalled, writer in held:
        with contextlib.suppress(ConnectionResetError):
            assert await stalled.read() == b""
        writer.close()
    assert (await ask(port)).startswith(b"HTTP/1.1 200")
