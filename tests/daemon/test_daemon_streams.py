"""A lease's stream: beats and echoes renew, one stream a lease, nonsense is passed over, and it ends with its lease."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from infiniswap.daemon.service import MemoryService
from infiniswap.daemon.streams import STREAM_QUEUE_MAX
from infiniswap.shared.stream_messages import MESSAGE_BYTES_MAX, Policy
from tests.support.daemon_api import MIB, Control, Held, daemon_config
from tests.support.evictor_world import make_world
from tests.support.waiting import eventually

TIMEOUT_S = 20.0


@pytest_asyncio.fixture
async def service() -> AsyncIterator[MemoryService]:
    """A daemon of 16 MiB whose leases live a second."""
    service = MemoryService(daemon_config(lease_ttl_s=1.0))
    await service.start()
    yield service
    await service.close()


@pytest_asyncio.fixture
async def brief(service: MemoryService, session: aiohttp.ClientSession) -> Control:
    """A client of it."""
    return Control(session, f"http://{service.http_address}")


async def opened(control: Control, held: Held) -> aiohttp.ClientWebSocketResponse:
    """The lease's stream."""
    headers = {"Authorization": f"Bearer {held.token}"}
    return await control.session.ws_connect(f"{control.url}/v1/leases/{held.lease}/stream", headers=headers)


async def heard(stream: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    """The next message of that type."""
    while True:
        message = await stream.receive(timeout=TIMEOUT_S)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        content: dict[str, Any] = json.loads(message.data)
        if content["type"] == kind:
            return content


async def ended(stream: aiohttp.ClientWebSocketResponse) -> str:
    """Why the daemon closed it."""
    while True:
        message = await stream.receive(timeout=TIMEOUT_S)
        if message.type is aiohttp.WSMsgType.CLOSE:
            return str(message.extra)
        assert message.type is aiohttp.WSMsgType.TEXT, message


async def counts(control: Control) -> dict[str, int]:
    """What the daemon has counted."""
    counted: dict[str, int] = (await control.stats())["counts"]
    return counted


async def test_echoes_keep_a_lease_alive(brief: Control) -> None:
    """Three lives long without a poll; the beats tell of memory, incarnation and the echo before."""
    held = await brief.lease()
    async with await opened(brief, held) as stream:
        number = 0
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 3.0
        while loop.time() < until_s:
            beat = await heard(stream, "beat")
            assert beat["number"] == number + 1
            assert beat["heard"] in (number, number - 1, 0)
            number = beat["number"]
            assert beat["free_bytes"] == 16 * MIB
            assert beat["incarnation"] == (await brief.offer())["incarnation"]
            await stream.send_json({"type": "beat", "number": number})
        assert number >= 3
        assert (await brief.heartbeat(held)).status == 200


async def test_a_device_that_echoes_nothing_lets_its_lease_expire(brief: Control) -> None:
    """The stream alone renews nothing, nor do echoes of beats that were never sent; it ends with the lease."""
    held = await brief.lease()
    async with await opened(brief, held) as stream:
        await stream.send_json({"type": "beat", "number": 10**6})
        assert await ended(stream) == "the lease has ended"
    assert (await brief.heartbeat(held)).status == 404


async def test_the_second_stream_replaces_the_first(control: Control) -> None:
    """Which is closed with a reason; the second is told everything from then on."""
    held = await control.lease()
    async with await opened(control, held) as first, await opened(control, held) as second:
        assert await ended(first) == "another stream of this lease was opened"
        await first.close()
        await heard(second, "beat")
        await heard(second, "beat")
    assert (await counts(control))["streams_replaced"] == 1
    assert (await counts(control))["streams_opened"] == 2


async def test_only_the_holder_of_the_token_has_a_stream(control: Control) -> None:
    """As with all calls about a lease."""
    held = await control.lease()
    for token, status in (("", 401), ("wrong", 404)):
        stranger = Held(held.lease, token, held.export, held.host, held.port)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await opened(control, stranger)
        assert refused.value.status == status
    answer = await control.call("GET", f"/v1/leases/{held.lease}/stream", token=held.token)
    assert answer.status == 426, "a request that is no WebSocket"


@pytest.mark.parametrize(
    "nonsense",
    [
        "no JSON",
        "[]",
        '{"type": "beat", "number": -1}',
        '{"type": "activity", "ask": 1, "activity": {"x": 1}}',
        '{"type": "noticed", "notice": 1, "leaving": [1.5], "unknown": []}',
        b"\x00\x01",
    ],
)
async def test_nonsense_is_passed_over(control: Control, nonsense: str | bytes) -> None:
    """It is counted, and the stream goes on."""
    held = await control.lease()
    async with await opened(control, held) as stream:
        await (stream.send_str(nonsense) if isinstance(nonsense, str) else stream.send_bytes(nonsense))
        await stream.send_str('{"type": "weather"}')  # of a newer program: not even counted
        await stream.send_str('{"type": "activity", "ask": 99, "activity": {}}')  # nobody asked
        await stream.send_str('{"type": "noticed", "notice": 99, "leaving": [7], "unknown": [900]}')
        for _ in range(2):
            beat = await heard(stream, "beat")
            await stream.send_json({"type": "beat", "number": beat["number"]})

        async def counted() -> bool:
            return (await counts(control))["stream_nonsense"] == 1

        await eventually(counted, "count")
        while (await heard(stream, "beat"))["heard"] == 0:
            pass


async def test_a_message_that_is_too_long_ends_the_stream(control: Control) -> None:
    """The daemon does not gather what nobody needs; the lease lives on."""
    held = await control.lease()
    async with await opened(control, held) as stream:
        await stream.send_str(" " * (MESSAGE_BYTES_MAX + 1))
        await ended(stream)
    assert (await control.heartbeat(held)).status == 200


async def test_the_stream_ends_with_the_lease(control: Control) -> None:
    """Given back by another request."""
    held = await control.lease()
    async with await opened(control, held) as stream:
        await heard(stream, "beat")
        assert (await control.release(held)).status == 200
        assert await ended(stream) == "the lease has ended"


async def test_the_daemons_end_ends_streams(service: MemoryService, brief: Control) -> None:
    """With a word, and without waiting for the device."""
    held = await brief.lease()
    async with await opened(brief, held) as stream:
        await heard(stream, "beat")
        closing = asyncio.create_task(service.close())
        assert await ended(stream) == "the daemon ends"
        await closing


async def test_a_device_that_takes_nothing_finds_its_stream_closed() -> None:
    """The queue has a bound, and what was in it is told by polls."""
    world = make_world()
    try:
        lease = world.lease(1)
        socket = world.connect(lease)
        world.tasks.pop().cancel()  # its connection takes nothing
        stream = socket.stream
        assert stream is not None
        for _ in range(STREAM_QUEUE_MAX):
            assert stream.send(Policy(True))
        assert not stream.send(Policy(True))
        assert stream.ended.is_set()
        assert stream.silent
        assert world.lender.counts.streams_overrun == 1
        assert await stream.ask([0], 5.0) is None
    finally:
        await world.close()


async def test_a_poll_tells_what_a_stream_would(control: Control) -> None:
    """What is leaving, and whether slabs are lent."""
    held = await control.lease()
    content = (await control.heartbeat(held)).content
    assert (content["leaving"], content["lending"]) == ({}, True)
