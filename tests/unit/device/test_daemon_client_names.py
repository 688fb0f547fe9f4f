"""Daemon client, for a peer whose name has several addresses: all are tried, and a lease stays with one of them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from infiniswap.device import daemon_client
from infiniswap.device.daemon_client import LeaseGoneError, PeerError, make_session
from infiniswap.shared.address import HostPort
from infiniswap.shared.host_names import SocketAddress
from tests.support.http_peer import GRANT, Server, make_client

NAME = "donors.example"
TIMEOUT_S = 20.0


class Names:
    """The name service, and servers at addresses of the loopback network on one port."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked: list[str] = []
        self.servers: dict[str, Server] = {}

    async def look_up(self, host: str, port: int, family: int = 0) -> list[SocketAddress]:
        self.asked.append(host)
        if host != NAME:
            return [(socket.AF_INET, (host, port))]
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, (address, port)) for address in self.addresses]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Names, daemon_client.DaemonClient]]:
    """Servers at 127.0.0.2 and 127.0.0.3, and a client of the name, which has no address yet."""
    names = Names()
    monkeypatch.setattr(daemon_client, "look_up", names.look_up)
    async with AsyncExitStack() as stack:
        port = 0
        for address in ("127.0.0.2", "127.0.0.3"):
            server = names.servers[address] = Server()
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", server.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, address, port)
            await site.start()
            port = runner.addresses[0][1]
        session = await stack.enter_async_context(make_session(ttl_dns_cache_s=0))
        yield names, make_client(session, HostPort(NAME, port), TIMEOUT_S)


World = tuple[Names, daemon_client.DaemonClient]
OFFER = {"free_bytes": 5, "total_bytes": 7, "incarnation": "i"}


async def test_unknown_name_and_then_known(world: World) -> None:
    """A name that does not resolve is one sentence, and is asked for again at the next call."""
    names, client = world
    with pytest.raises(PeerError, match=r"cannot connect: .*not known"):
        await client.offer()
    names.addresses = ["127.0.0.2"]
    names.servers["127.0.0.2"].handler = Server.fixed(OFFER)
    assert (await client.offer()).free_bytes == 5


async def test_all_addresses_are_tried(world: World) -> None:
    """An address where nobody listens is passed over."""
    names, client = world
    names.addresses = ["127.0.0.9", "127.0.0.3"]
    names.servers["127.0.0.3"].handler = Server.fixed(OFFER)
    assert (await client.offer()).free_bytes == 5


@pytest.mark.parametrize(("told", "pages_at"), [(NAME, "127.0.0.3"), ("127.0.0.8", "127.0.0.8")])
async def test_lease_stays_with_its_host(world: World, told: str, pages_at: str) -> None:
    """Whatever the name means later, the lease's calls and its pages go to the host that granted it."""
    names, client = world
    names.addresses = ["127.0.0.3"]
    granting = names.servers["127.0.0.3"]
    granting.handler = Server.fixed({**GRANT, "address": [told, 7402]})
    lease = await client.open_lease()
    assert (lease.control, lease.address) == ("127.0.0.3", (pages_at, 7402))
    names.addresses = ["127.0.0.2"]
    names.servers["127.0.0.2"].handler = Server.fixed({"error": "no such lease"}, 404)
    granting.handler = Server.fixed({"incarnation": "i", "slabs": [1], "free_bytes": 0})
    assert (await client.heartbeat(lease)).slabs == {1}
    granting.handler = Server.fixed({"error": "no such lease"}, 404)
    with pytest.raises(LeaseGoneError):
        await client.heartbeat(lease)
    assert names.servers["127.0.0.2"].requests == []


async def test_page_address_among_several(world: World) -> None:
    """Of the addresses of a page address given by name the one that granted the lease is taken, not the first."""
    names, client = world
    names.addresses = ["127.0.0.9", "127.0.0.3"]
    names.servers["127.0.0.3"].handler = Server.fixed({**GRANT, "address": [NAME, 7402]})
    lease = await client.open_lease()
    assert lease.address == ("127.0.0.3", 7402)


async def test_names_that_lead_further_than_allowed(world: World) -> None:
    """A client for this host alone connects to no name of which one address is another's; nothing is sent to any."""
    names, _ = world
    async with make_session(ttl_dns_cache_s=0, local_only="is not on this host") as session:
        client = make_client(session, HostPort(NAME, 7401), TIMEOUT_S)
        names.addresses = ["127.0.0.2", "192.0.2.1"]
        with pytest.raises(PeerError, match=r"cannot connect: it is not on this host"):
            await client.offer()
    assert names.servers["127.0.0.2"].requests == []
