"""The device's end of a stream, over a daemon that speaks as told: it answers, polls when in doubt, and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest
import pytest_asyncio
from aiohttp import web

from infiniswap.device import lease_stream
from infiniswap.device.daemon_client import DaemonClient, make_session
from infiniswap.device.lease_stream import LeaseStream
from infiniswap.device.peer import Peer
from infiniswap.device.slabs import Slabs
from infiniswap.shared.address import HostPort
from infiniswap.shared.stream_messages import Ask, Evict, FromDaemon, Policy, StreamBeat, Taken, encode
from tests.support.clock import FakeClock
from tests.support.lease import make_lease
from tests.support.peers_world import FakeListener
from tests.support.waiting import eventually

Script = Callable[[web.WebSocketResponse], Awaitable[None]]


@dataclass
class World:
    """A daemon whose streams follow a script, and the device's end."""

    peer: Peer
    stream: LeaseStream
    listener: FakeListener
    clock: FakeClock
    script: list[Script]
    heard: list[dict[str, object]] = field(default_factory=list)
    opened: int = 0

    async def say(self, socket: web.WebSocketResponse, *messages: FromDaemon | str) -> None:
        """Send, and keep what comes back while the stream is open."""
        for message in messages:
            await socket.send_str(message if isinstance(message, str) else encode(message))

    async def listen(self, socket: web.WebSocketResponse) -> None:
        """Keep what the device says until it goes."""
        async for message in socket:
            self.heard.append(json.loads(message.data))


def beat(number: int, heard: int = 0, **fields: object) -> StreamBeat:
    """Of the daemon that granted the lease."""
    return replace(StreamBeat(number, make_lease(1).incarnation, 30.0, 1 << 20, heard=heard), **fields)  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Pauses are short."""
    monkeypatch.setattr(lease_stream, "PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(lease_stream, "PAUSE_MAX_S", 0.02)
    script: list[Script] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        made.opened += 1
        if not script:
            return web.Response(status=404)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await (script.pop(0) if len(script) > 1 else script[0])(socket)
        return socket

    app = web.Application()
    app.add_routes([web.get("/v1/leases/{lease}/stream", serve)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    clock = FakeClock()
    async with make_session() as session:
        client = DaemonClient(
            session,
            HostPort("127.0.0.1", port),
            device="d",
            device_id="i",
            size_bytes=1 << 20,
            slab_bytes=1 << 20,
            timeout_s=20.0,
            clock=clock,
        )
        peer = Peer(0, HostPort("127.0.0.1", port), client, Slabs(clock))
        peer.lease = replace(make_lease(1), renewal=[0.0])
        listener = FakeListener()
        made = World(peer, LeaseStream(peer, peer.lease, listener, clock=clock, rng=Random(1)), listener, clock, script)
        task = asyncio.create_task(made.stream.run())
        yield made
        task.cancel()
        await asyncio.wait([task])
    await runner.cleanup()


async def test_it_answers(world: World) -> None:
    """Beats are echoed, notices and questions answered, the rest is obeyed."""

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(
            socket, beat(1), Evict(5, (3, 4), 800), Ask(6, (3,), 100), Taken((8,)), Policy(lending=False), beat(2)
        )
        await world.listen(socket)

    world.script.append(script)
    await eventually(lambda: len(world.heard) == 4, "answers")
    assert [said["type"] for said in world.heard] == ["beat", "noticed", "activity", "beat"]
    assert world.heard[1]["notice"] == 5
    assert world.heard[2] == {"type": "activity", "ask": 6, "activity": {"3": 1.0}}
    assert world.listener.wanted == [{3: 800, 4: 800}]
    assert world.listener.gone == [(8,)]
    assert world.peer.listening
    assert not world.peer.standing.lending
    assert world.peer.free_bytes == 1 << 20


async def test_a_lease_is_renewed_when_the_daemon_says_so(world: World) -> None:
    """From the moment at which the echo was sent that it heard; a beat alone renews nothing."""
    told = asyncio.Event()

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(socket, beat(1))
        await told.wait()
        await world.say(socket, beat(2, heard=1), beat(3, heard=77))
        await world.listen(socket)

    world.clock.now_s = 10.0
    world.script.append(script)
    await eventually(lambda: world.peer.listening, "the first beat")
    assert world.peer.lease is not None
    assert world.peer.lease.renewal == [0.0]
    world.clock.now_s = 15.0
    told.set()
    await eventually(lambda: len(world.heard) == 3, "echoes")
    assert world.peer.lease.renewal == [10.0]


async def test_nonsense_is_passed_over(world: World) -> None:
    """And counted; types of tomorrow are not."""

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(socket, "[]", '{"type": "evict", "notice": 1, "slabs": [-1]}', '{"type": "weather"}', beat(1))
        await world.listen(socket)

    world.script.append(script)
    await eventually(lambda: world.heard, "an answer")
    assert world.peer.stream_nonsense == 2
    assert world.listener.wanted == []


async def test_another_incarnation_makes_it_poll(world: World) -> None:
    """The daemon was restarted: nothing is echoed to it."""

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(socket, beat(1, incarnation="another"))
        await world.listen(socket)

    world.script.append(script)
    await eventually(world.peer.wake.is_set, "a poll")
    assert world.heard == []
    assert not world.peer.listening


async def test_silence_makes_it_poll(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and the stream goes on when the daemon speaks again."""
    monkeypatch.setattr(lease_stream, "SILENCE_S", 0.05)
    monkeypatch.setattr(lease_stream, "DEAD_S", 1e6)
    resume = asyncio.Event()

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(socket, beat(1))
        await resume.wait()
        await world.say(socket, beat(2))
        await world.listen(socket)

    world.script.append(script)
    await eventually(lambda: world.peer.listening, "the first beat")
    await eventually(lambda: world.peer.wake.is_set() and not world.peer.listening, "a poll")
    resume.set()
    await eventually(lambda: len(world.heard) == 2, "the second echo")
    assert world.opened == 1


async def test_a_stream_that_is_dead_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After DEAD_S of silence."""
    monkeypatch.setattr(lease_stream, "SILENCE_S", 0.02)
    monkeypatch.setattr(lease_stream, "DEAD_S", 0.06)

    async def silent(socket: web.WebSocketResponse) -> None:
        await world.listen(socket)

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(socket, beat(1))
        await world.listen(socket)

    world.script += [silent, script]
    await eventually(lambda: world.peer.listening, "the second stream")


async def test_it_comes_back(world: World) -> None:
    """After a stream that broke, and each end makes it poll."""

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(socket, beat(1))
        await socket.close()

    world.script.append(script)
    await eventually(lambda: world.opened >= 3, "three streams")
    assert world.peer.wake.is_set()


async def test_a_daemon_without_streams_is_polled(world: World) -> None:
    """It answers 404, as one that does not know the lease any more: a poll tells which."""
    await eventually(lambda: world.opened >= 2, "tries")
    assert world.peer.wake.is_set()
    assert not world.peer.listening


async def test_nothing_is_heard_for_a_lease_that_is_lost(world: World) -> None:
    """Whatever its stream still says."""

    async def script(socket: web.WebSocketResponse) -> None:
        await world.say(socket, Evict(1, (0,), 800), Policy(lending=False), beat(1))
        await socket.close()

    world.peer.lease = None
    world.script.append(script)
    await eventually(lambda: world.opened >= 3, "streams that were read to their end")
    assert world.listener.wanted == []
    assert world.peer.standing.lending
