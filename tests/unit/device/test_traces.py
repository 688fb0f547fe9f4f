"""The slow requests that a device remembers: times since arrival, names for numbers, mistakes of who asks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from numpy.typing import NDArray

from infiniswap.device import traces as traces_module
from infiniswap.device.control_api import errors_as_json
from infiniswap.device.traces import LEAST_US_MAX, Traces
from infiniswap.engine.layout import TRACE_DTYPE

PEERS = {0: "a:1", 3: "d:4"}
READ, WRITE = 0, 1
REMOTE, NO_SOURCE = 0, 7

Client = TestClient[web.Request, web.Application]


class Ring:
    """An engine that remembers five requests."""

    def __init__(self) -> None:
        self.least_us = -1
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.entries = np.zeros(5, TRACE_DTYPE)
        for at, entry in enumerate(self.entries):
            arrived_ns = now_ns - 1_000_000_000 + at
            entry["number"], entry["arrived_ns"], entry["done_ns"] = at + 1, arrived_ns, arrived_ns + 7_000_000
            entry["source"], entry["peer"] = NO_SOURCE, -1
        last = self.entries[-1]
        last["begun_ns"], last["answered_ns"] = last["arrived_ns"] + 1_500, last["arrived_ns"] + 6_000_000
        last["source"], last["peer"], last["offset"], last["length"] = REMOTE, 3, 5 * 4096, 8192
        self.entries[0]["error"], self.entries[0]["command"] = 5, WRITE

    def traces(self, after: int = 0) -> NDArray[Any]:
        return self.entries[self.entries["number"] > after]

    def trace_least(self, least_us: int) -> None:
        self.least_us = least_us


@pytest.fixture
def ring() -> Ring:
    """The engine."""
    return Ring()


@pytest.fixture
async def client(ring: Ring) -> AsyncIterator[Client]:
    """Of a server with the two calls."""
    traces = Traces(ring, 1000, lambda: PEERS)
    app = web.Application(middlewares=[errors_as_json])

    async def show(request: web.Request) -> web.Response:
        return await traces_module.show(request, traces)

    async def change(request: web.Request) -> web.Response:
        return await traces_module.change(request, traces)

    app.add_routes([web.get(traces_module.PATH, show), web.post(traces_module.PATH, change)])
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_request(client: Client) -> None:
    """Steps in microseconds since arrival, None for what it did not need; when it came by the wall clock."""
    async with client.get("/v1/trace?after=4") as response:
        content = await response.json()
    (request,) = content["requests"]
    assert abs(request.pop("time_s") - (time.time() - 1)) < 60
    assert request == {
        "number": 5, "command": "read", "offset": 20480, "page": 5, "length": 8192, "source": "remote", "peer": "d:4",
        "error": None, "locked_us": None, "begun_us": 1.5, "answered_us": 6000.0, "done_us": 7000.0,
    }  # fmt: skip
    assert content["slower_than_us"] == 1000


async def test_which_requests(client: Client) -> None:
    """All, those after one, the last few; a failed one says how."""
    async with client.get("/v1/trace") as response:
        first, *rest = (await response.json())["requests"]
    assert (first["command"], first["error"], first["source"], first["peer"]) == ("write", 5, None, None)
    assert [each["number"] for each in rest] == [2, 3, 4, 5]
    async with client.get("/v1/trace?most=2") as response:
        assert [each["number"] for each in (await response.json())["requests"]] == [4, 5]
    async with client.get(f"/v1/trace?after={2**63 - 1}") as response:
        assert (await response.json())["requests"] == []


async def test_what_is_remembered(client: Client, ring: Ring) -> None:
    """From the start as configured, then as asked."""
    assert ring.least_us == 1000
    async with client.post("/v1/trace", json={"slower_than_us": 0}) as response:
        assert (response.status, await response.json()) == (200, {"slower_than_us": 0})
    assert ring.least_us == 0


@pytest.mark.parametrize("query", ["after=-1", "after=x", "most=1.5", "after=" + "9" * 20, "most="])
async def test_wrong_numbers(client: Client, query: str) -> None:
    """One sentence and 400."""
    async with client.get(f"/v1/trace?{query}") as response:
        assert response.status == 400
        assert "must be a whole number" in (await response.json())["error"]


@pytest.mark.parametrize("least_us", [-1, 1.5, "5ms", True, None, LEAST_US_MAX + 1])
async def test_wrong_times(client: Client, ring: Ring, least_us: object) -> None:
    """One sentence and 400, and nothing has changed."""
    async with client.post("/v1/trace", json={"slower_than_us": least_us}) as response:
        assert response.status == 400
    assert ring.least_us == 1000
