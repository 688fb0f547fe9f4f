"""Control API of the device: every path answers JSON, errors too, and slow or many listeners for events harm nobody."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infiniswap.device import events
from infiniswap.device.control_api import ControlServer
from infiniswap.device.events import EventHub
from infiniswap.device.scrub import Scrub
from infiniswap.nbd.listener import open_unix_socket
from infiniswap.shared.slab_choice import SlabChoice
from tests.support.waiting import eventually

DEADLINE_S = 20.0


class FakeMetrics:
    """Tables of no device."""

    broken = False

    def slabs(self, choice: SlabChoice) -> list[dict[str, Any]]:
        if self.broken:
            raise RuntimeError("a secret detail")
        return [{"index": choice.top or 0}]

    def snapshot(self, cells: int) -> dict[str, Any]:
        return {"heat": cells}

    def peers(self) -> list[dict[str, Any]]:
        return [{"peer": "h:1"}]

    def stats(self) -> dict[str, Any]:
        return {"reads": {}}


class FakeScrubEngine:
    """Scrubs nothing."""

    def scrub(self, _pages_per_s: int) -> None:
        return

    def counter(self, _name: str) -> int:
        return 0


class FakeDevice:
    """What the API asks."""

    def __init__(self) -> None:
        self.metrics: Any = FakeMetrics()
        self.changes: Any = None  # tests/device/test_peer_changes.py asks a real device
        self.events = EventHub()
        self.stops: list[str] = []
        engine: Any = FakeScrubEngine()
        self.scrub = Scrub(engine, 4096, lambda: 5.0)
        self.traces: Any = None

    def status(self) -> dict[str, Any]:
        return {"name": "vol"}

    def exposition(self) -> bytes:
        return b"# metrics\n"

    def request_stop(self, reason: str) -> None:
        self.stops.append(reason)


class Api:
    """A served device and a session to it."""

    def __init__(self, device: FakeDevice, path: Path, session: aiohttp.ClientSession) -> None:
        self.device, self.path, self.session = device, path, session

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        async with self.session.request(method, path, **options) as response:
            return response.status, await response.json()


@pytest.fixture
async def api(short_path: Path) -> AsyncIterator[Api]:
    """The API on a UNIX socket."""
    device = FakeDevice()
    server = ControlServer(device)
    path = short_path / "vol.control"
    await server.start(open_unix_socket(path))
    async with aiohttp.ClientSession("http://device", connector=aiohttp.UnixConnector(str(path))) as session:
        yield Api(device, path, session)
    async with asyncio.timeout(DEADLINE_S):
        await server.close()
    assert not path.exists(), "the socket is removed with the server"


async def test_paths(api: Api) -> None:
    """Each path of the API answers what the device says."""
    assert await api.ask("GET", "/v1/status") == (200, {"name": "vol"})
    assert await api.ask("GET", "/v1/slabs") == (200, [{"index": 0}])
    assert await api.ask("GET", "/v1/peers") == (200, [{"peer": "h:1"}])
    assert await api.ask("GET", "/v1/stats") == (200, {"reads": {}})
    assert await api.ask("GET", "/v1/slabs?top=3&state=mapped") == (200, [{"index": 3}])
    assert await api.ask("GET", "/v1/snapshot?cells=9") == (200, {"status": {"name": "vol"}, "heat": 9})
    for wrong in ("/v1/slabs?top=0", "/v1/slabs?sort=x", "/v1/snapshot?cells=0", "/v1/snapshot?cells=99999"):
        status, answer = await api.ask("GET", wrong)
        assert (status, list(answer)) == (400, ["error"])
    async with api.session.get("/v1/metrics") as response:
        assert (response.status, await response.text()) == (200, "# metrics\n")


async def test_stop(api: Api) -> None:
    """Only a POST stops the device."""
    status, answer = await api.ask("GET", "/v1/stop")
    assert (status, api.device.stops) == (405, [])
    assert "error" in answer
    assert await api.ask("POST", "/v1/stop", json={}) == (202, {"state": "stopping"})
    assert len(api.device.stops) == 1


async def test_errors_are_json_without_details(api: Api) -> None:
    """Unknown paths, wrong bodies, our own mistakes."""
    for method, path in (("GET", "/"), ("GET", "/v1/nothing"), ("PUT", "/v1/status"), ("GET", "/v1/../../etc/passwd")):
        status, answer = await api.ask(method, path)
        assert status in (404, 405)
        assert list(answer) == ["error"]
    api.device.metrics.broken = True
    status, answer = await api.ask("GET", "/v1/slabs")
    assert (status, answer) == (500, {"error": "internal error"})
    status, answer = await api.ask("GET", "/v1/events")
    assert status == 426, "not a WebSocket"
    assert answer["error"].startswith("/v1/events is a WebSocket, not a page")


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Sec-WebSocket-Version": "12"}, "Unsupported version: 12"),
        ({"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAA"}, "Handshake error: 'AAAA'"),
        ({"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "?"}, "Handshake error: '?'"),
    ],
)
async def test_a_handshake_that_is_none(api: Api, headers: dict[str, str], sentence: str) -> None:
    """What is wrong with a WebSocket's handshake is said, not just that the request is bad."""
    async with api.session.get(
        "http://d/v1/events", headers={"Upgrade": "websocket", "Connection": "Upgrade", **headers}
    ) as response:
        answer = await response.json()
    assert response.status == 400
    assert sentence in answer["error"], answer


async def test_socket_is_private(api: Api) -> None:
    """Only the owner may control a device."""
    assert api.path.stat().st_mode & 0o777 == 0o600


async def test_garbage_does_not_end_it(api: Api) -> None:
    """Raw bytes in place of HTTP."""
    for garbage in (
        b"\0" * 1000,
        b"GET\r\n\r\n",
        b"\xff\xd8\xff" * 100,
        b"POST /v1/stop HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, str(api.path))
            await loop.sock_sendall(sock, garbage)
            async with asyncio.timeout(DEADLINE_S):
                await loop.sock_recv(sock, 4096)
    assert (await api.ask("GET", "/v1/status"))[0] == 200
    assert api.device.stops == []


async def test_events_reach_every_listener(api: Api) -> None:
    """In order, as JSON."""
    async with api.session.ws_connect("/v1/events") as one, api.session.ws_connect("/v1/events") as two:
        api.device.events.publish("peer_lost", peer=1, value=2)
        api.device.events.publish("flushed")
        for listener in (one, two):
            assert json.loads(await listener.receive_str(timeout=DEADLINE_S)) == {
                "kind": "peer_lost",
                "peer": 1,
                "value": 2,
            }
            assert json.loads(await listener.receive_str(timeout=DEADLINE_S)) == {"kind": "flushed"}


async def test_listener_that_leaves_is_forgotten(api: Api) -> None:
    """And makes room for another, again and again."""
    for _ in range(events.SUBSCRIBERS_MAX * 2):
        async with api.session.ws_connect("/v1/events"):
            pass
    await eventually(lambda: not api.device.events._queues, "all listeners being forgotten")


async def test_listeners_are_limited(api: Api) -> None:
    """One too many is told so."""
    listeners = [await api.session.ws_connect("/v1/events") for _ in range(events.SUBSCRIBERS_MAX)]
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await api.session.ws_connect("/v1/events")
    assert caught.value.status == 503
    for listener in listeners:
        await listener.close()


async def test_slow_listener_misses_some_and_is_told() -> None:
    """Nothing grows, nobody waits."""
    hub = EventHub()
    with hub.subscribe() as queue:
        for number in range(events.EVENTS_WAITING_MAX * 3):
            hub.publish("mismatch", value=number)
        assert queue.qsize() <= events.EVENTS_WAITING_MAX
        assert await queue.get() == {"kind": "missed"}
        last: Any = None
        while not queue.empty():
            last = await queue.get()
        assert last == {"kind": "mismatch", "value": events.EVENTS_WAITING_MAX * 3 - 1}
        for _ in range(events.EVENTS_WAITING_MAX):
            hub.publish("x")
        hub.close()
        while (news := await queue.get()) is not None:
            assert news["kind"] == "x"


async def test_close_ends_listeners(short_path: Path) -> None:
    """A listener that never leaves does not keep the device from ending."""
    device = FakeDevice()
    server = ControlServer(device)
    path = short_path / "c"
    await server.start(open_unix_socket(path))
    async with aiohttp.ClientSession("http://device", connector=aiohttp.UnixConnector(str(path))) as session:
        listener = await session.ws_connect("/v1/events")
        async with asyncio.timeout(DEADLINE_S):
            closing = asyncio.create_task(server.close())
            assert (await listener.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            await closing


async def test_scrub(api: Api) -> None:
    """A scrub is begun once, shown and ended; a rate that cannot be, or no JSON, is refused in one sentence."""
    assert (await api.ask("GET", "/v1/scrub"))[1]["state"] == "never"
    for body in (b'{"rate_bytes_s": 1}', b'{"rate_bytes_s": "x"}', b"[]", b"{", b"[" * 9999):
        status, answer = await api.ask("POST", "/v1/scrub", data=body)
        assert (status, list(answer)) == (400, ["error"]), body
    status, answer = await api.ask("POST", "/v1/scrub", json={"rate_bytes_s": 8192})
    assert (status, answer["state"], answer["rate_bytes_s"]) == (202, "running", 8192)
    assert (await api.ask("POST", "/v1/scrub", data=b""))[0] == 409
    assert (await api.ask("DELETE", "/v1/scrub"))[1]["state"] == "ended"
