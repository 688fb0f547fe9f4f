"""An HTTP server in a daemon's place, which answers whatever a test sets, and a client of it."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from infiniswap.device.daemon_client import (
    DaemonClient,
)
from infiniswap.shared.address import HostPort

TIMEOUT_S = 20.0  # of a server that answers, on a machine that may stand still meanwhile
GRANT = {
    "lease": "abc-1",
    "token": "t",
    "export": "lease-t",
    "address": ["127.0.0.1", 7402],
    "incarnation": "i",
    "ttl_s": 60,
    "expires_in_s": 60,
}


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers every request by one handler, which the test sets."""

    def __init__(self) -> None:
        self.handler: Handler = self.fixed({})
        self.requests: list[tuple[str, str, str | None, Any]] = []

    @staticmethod
    def fixed(answer: Any, status: int = 200) -> Handler:
        """A handler with always the same answer; bytes are sent as they are."""

        async def handler(_request: web.Request) -> web.StreamResponse:
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            return web.Response(body=body, status=status)

        return handler

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Note the request and let the handler answer it."""
        body = await request.read()
        sent = json.loads(body) if body else None
        self.requests.append((request.method, request.path_qs, request.headers.get("Authorization"), sent))
        return await self.handler(request)


def make_client(session: aiohttp.ClientSession, address: HostPort, timeout_s: float = TIMEOUT_S) -> DaemonClient:
    """A client of what is at address."""
    return DaemonClient(
        session,
        address,
        device="vol",
        device_id="0" * 8,
        size_bytes=8 << 20,
        slab_bytes=1 << 20,
        timeout_s=timeout_s,
        clock=time.monotonic,
    )
