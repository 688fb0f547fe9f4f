"""The last slow requests of a device as its control API tells them: when each was where."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from infiniswap.engine.binding import SOURCES
from infiniswap.shared.http_server import BodyError, read_object

PATH = "/v1/trace"
LEAST_US_MAX = 3_600_000_000
COMMANDS = {0: "read", 1: "write", 3: "flush", 4: "trim", 6: "write-zeroes", 7: "block-status"}  # NBD_CMD_*
STEPS = ("locked", "begun", "answered", "done")  # and when, since the request's arrival


class TracedEngine(Protocol):
    """What is asked of the data path (binding.DeviceEngine)."""

    def traces(self, after: int = 0) -> NDArray[Any]:
        """See DeviceEngine.traces."""

    def trace_least(self, least_us: int) -> None:
        """See DeviceEngine.trace_least."""


def row(entry: Mapping[str, Any], peers: Mapping[int, str], since_s: float) -> dict[str, Any]:
    """One request; times of steps in microseconds since its arrival, None for a step that it did not need.

    since_s: what to add to the data path's clock for seconds since 1970. peers: address by slot.
    """
    arrived_ns = int(entry["arrived_ns"])
    steps = {f"{step}_us": (int(entry[f"{step}_ns"]) - arrived_ns) / 1000 for step in STEPS if entry[f"{step}_ns"]}
    source = int(entry["source"])
    return {
        "number": int(entry["number"]),
        "time_s": round(since_s + arrived_ns / 1e9, 6),
        "command": COMMANDS.get(int(entry["command"]), str(int(entry["command"]))),
        "offset": int(entry["offset"]),
        "page": int(entry["offset"]) // 4096,
        "length": int(entry["length"]),
        "source": SOURCES[source] if source < len(SOURCES) else None,
        "peer": peers.get(int(entry["peer"])),
        "error": int(entry["error"]) or None,
        **{f"{step}_us": steps.get(f"{step}_us") for step in STEPS},
    }


class Traces:
    """The ring of one device, and from which time on requests get into it."""

    def __init__(self, engine: TracedEngine, least_us: int, peers: Callable[[], Mapping[int, str]]) -> None:
        """least_us: quicker requests are not remembered. peers: address by slot."""
        self._engine = engine
        self._peers = peers
        self.least_us = least_us
        engine.trace_least(least_us)

    def remember(self, least_us: int) -> None:
        """Pass over those that take less, from now on."""
        self.least_us = least_us
        self._engine.trace_least(least_us)

    def snapshot(self, after: int, most: int | None) -> dict[str, Any]:
        """The requests with a number above after, the oldest first; most: only so many of the last.

        next: what to ask for as `after`, to have those that come later.
        """
        since_s = time.time() - time.clock_gettime_ns(time.CLOCK_MONOTONIC) / 1e9
        found = self._engine.traces(after)
        last = max((int(entry["number"]) for entry in found), default=after)
        if most is not None:
            found = found[max(len(found) - most, 0) :]
        peers = self._peers()
        requests = [row(entry, peers, since_s) for entry in found]
        return {"slower_than_us": self.least_us, "requests": requests, "next": last}


def whole_number(request: web.Request, name: str) -> int | None:
    """A parameter of the request, None where it is not given; BodyError."""
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise BodyError(HTTPStatus.BAD_REQUEST, f"'{name}' must be a whole number, not negative")
    return min(int(text), np.iinfo(np.int64).max)


async def show(request: web.Request, traces: Traces) -> web.Response:
    """GET /v1/trace?after=N&most=N."""
    return web.json_response(traces.snapshot(whole_number(request, "after") or 0, whole_number(request, "most")))


async def change(request: web.Request, traces: Traces) -> web.Response:
    """POST /v1/trace {"slower_than_us": N}."""
    least_us = (await read_object(request)).get("slower_than_us")
    if type(least_us) is not int or not 0 <= least_us <= LEAST_US_MAX:
        raise BodyError(HTTPStatus.BAD_REQUEST, f"slower_than_us must be a whole number up to {LEAST_US_MAX}")
    traces.remember(least_us)
    return web.json_response({"slower_than_us": least_us})
