"""Daemon client: whatever answers on a peer's port, the caller gets a checked answer or a PeerError, and in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from infiniswap.device import daemon_client
from infiniswap.device.daemon_client import (
    DaemonClient,
    LeaseGoneError,
    PeerError,
    RefusedError,
    make_session,
)
from infiniswap.shared.address import HostPort
from infiniswap.shared.messages import Mapped
from tests.support.http_peer import GRANT, TIMEOUT_S, Server, make_client
from tests.support.lease import make_lease


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Server, DaemonClient]]:
    """A server and a client of it."""
    monkeypatch.setattr(daemon_client, "ANSWER_BYTES_MAX", 100_000)
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with make_session() as session:
        yield server, make_client(session, HostPort("127.0.0.1", port))
    await runner.cleanup()


Both = tuple[Server, DaemonClient]


async def test_requests_are_as_the_api_wants_them(server: Both) -> None:
    """Paths, bodies, and the token on each call of a lease."""
    fake, client = server
    lease = make_lease(1)
    fake.handler = fake.fixed({"free_bytes": 5, "total_bytes": 7, "incarnation": "i", "slabs": [3, 1], **GRANT})
    offered = await client.offer()
    assert (offered.free_bytes, offered.total_bytes, offered.incarnation) == (5, 7, "i")
    granted = await client.open_lease()
    assert (granted.lease_id, granted.address, granted.ttl_s) == ("abc-1", ("127.0.0.1", 7402), 60.0)
    assert await client.map_slab(lease, 3) == Mapped(5)
    assert (await client.heartbeat(lease)).slabs == frozenset({1, 3})
    await client.unmap_slab(lease, 3)
    await client.release(lease)
    auth = "Bearer secret1"
    body = {"device": "vol", "device_id": "0" * 8, "size_bytes": 8 << 20, "slab_bytes": 1 << 20}
    assert fake.requests == [
        ("GET", "/v1/offer?slab_bytes=1048576", None, None),
        ("POST", "/v1/leases", None, body),
        ("PUT", "/v1/leases/lease1/slabs/3", auth, None),
        ("POST", "/v1/leases/lease1/heartbeat", auth, {}),
        ("DELETE", "/v1/leases/lease1/slabs/3", auth, None),
        ("DELETE", "/v1/leases/lease1", auth, None),
    ]


async def test_heartbeat_renews_from_the_time_it_was_sent(server: Both) -> None:
    """The daemon cannot have renewed it later than that plus its ttl."""
    fake, client = server
    lease = make_lease(1)
    assert lease.expired(time.monotonic())
    fake.handler = fake.fixed({"incarnation": "i", "slabs": [], "free_bytes": 0})
    await client.heartbeat(lease)
    assert not lease.expired(time.monotonic())
    assert lease.expired(time.monotonic() + 60)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_lease_that_is_gone(server: Both, status: int) -> None:
    """Is told apart from a refusal; giving it back is then done already."""
    fake, client = server
    fake.handler = fake.fixed({"error": "nothing"}, status)
    with pytest.raises(LeaseGoneError):
        await client.heartbeat(make_lease(1))
    await client.release(make_lease(1))


async def test_restarted_daemon(server: Both) -> None:
    """Another incarnation has other memory, even if it knew the lease."""
    fake, client = server
    fake.handler = fake.fixed({"incarnation": "another", "slabs": [], "free_bytes": 0})
    with pytest.raises(LeaseGoneError, match="restarted"):
        await client.heartbeat(make_lease(1))


async def test_refusal_carries_the_daemons_words(server: Both) -> None:
    """One line of them, without control characters."""
    fake, client = server
    fake.handler = fake.fixed({"error": "no memory\n\x1b[31m" + "x" * 999}, 507)
    with pytest.raises(RefusedError, match="no memory") as caught:
        await client.map_slab(make_lease(1), 0)
    assert caught.value.status == 507
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[" * 50_000,
        b"[]",
        b"null",
        b"{}",
        b"x" * 200_000,
        {"free_bytes": 1, "total_bytes": 1, "incarnation": "i", "padding": "x" * 200_000},
        {"free_bytes": -1, "total_bytes": 1, "incarnation": "i"},
        {"free_bytes": True, "total_bytes": 1, "incarnation": "i"},
        {"free_bytes": 1.5, "total_bytes": 1, "incarnation": "i"},
        {"free_bytes": 1 << 70, "total_bytes": 1, "incarnation": "i"},
        {"free_bytes": 1, "total_bytes": 1, "incarnation": ""},
        {"free_bytes": 1, "total_bytes": 1, "incarnation": "a\nb"},
    ],
)
async def test_garbage_is_a_peer_error(server: Both, answer: Any) -> None:
    """Nothing that a stranger answers gets further than this."""
    fake, client = server
    fake.handler = fake.fixed(answer)
    with pytest.raises(PeerError):
        await client.offer()


@pytest.mark.parametrize(
    "change",
    [
        {"lease": "../../x"},
        {"lease": "a b"},
        {"lease": 5},
        {"token": ""},
        {"token": None},
        {"export": "x" * 2000},
        {"address": "127.0.0.1:1"},
        {"address": ["127.0.0.1"]},
        {"address": ["127.0.0.1", 0]},
        {"address": ["", 5]},
        {"address": [5, "x"]},
        {"ttl_s": 0},
        {"ttl_s": "60"},
        {"ttl_s": True},
        {"ttl_s": 1e9},
    ],
)
async def test_bad_grants(server: Both, change: dict[str, Any]) -> None:
    """A lease that could not be used safely is not taken."""
    fake, client = server
    fake.handler = fake.fixed({**GRANT, **change}, 201)
    with pytest.raises(PeerError):
        await client.open_lease()


@pytest.mark.parametrize("slabs", [None, "x", [1, "2"], [True], {"1": 2}])
async def test_bad_slab_lists(server: Both, slabs: Any) -> None:
    """A heartbeat's answer is checked too."""
    fake, client = server
    fake.handler = fake.fixed({"incarnation": "i", "slabs": slabs, "free_bytes": 0})
    with pytest.raises(PeerError):
        await client.heartbeat(make_lease(1))


async def test_redirects_are_not_followed(server: Both) -> None:
    """Else a daemon could send our token elsewhere."""
    fake, client = server

    async def redirect(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/")

    fake.handler = redirect
    with pytest.raises(PeerError, match="HTTP status 307"):
        await client.heartbeat(make_lease(1))


async def test_every_call_ends_in_time(server: Both) -> None:
    """A daemon that accepts and says nothing, or says it byte by byte, costs the time-out and no more."""
    fake, client = server
    hasty = make_client(client._session, client._address, timeout_s=0.3)

    async def silent(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        raise AssertionError

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100_000):
            await response.write(b" ")
            await asyncio.sleep(0.01)
        return response

    for handler in (silent, drip):
        fake.handler = handler
        with pytest.raises(PeerError, match=r"no answer within 0\.3 s"):
            async with asyncio.timeout(TIMEOUT_S):
                await hasty.offer()


async def test_nobody_there() -> None:
    """A refused connection and an unknown name are one sentence each, without the address, which the caller knows."""
    async with make_session() as session:
        for host, words in (("127.0.0.1", "Connection refused"), ("no-such-host.invalid", ".+")):
            with pytest.raises(PeerError, match=f"^cannot connect: {words}$"):
                await make_client(session, HostPort(host, 1)).offer()


async def test_no_http_at_all() -> None:
    """A port where something else answers."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n" * 10)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, make_session() as session:
        client = DaemonClient(
            session,
            HostPort("127.0.0.1", port),
            device="v",
            device_id="i",
            size_bytes=1,
            slab_bytes=1,
            timeout_s=TIMEOUT_S,
            clock=time.monotonic,
        )
        with pytest.raises(PeerError):
            await client.offer()
