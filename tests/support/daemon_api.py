"""A client of a daemon's control API, and the configuration of a small daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp

from infiniswap.daemon.config import DaemonConfig
from infiniswap.daemon.options import OPTIONS, MemoryAmount
from infiniswap.policy.headroom import HostMemory

MIB = 1 << 20
DEVICE_ID = "8a6e0804-2bd0-4672-b79d-d97027f9071a"
ROOMY_HOST = HostMemory(total_bytes=64 << 30, available_bytes=60 << 30)


@dataclass(frozen=True)
class Answer:
    """What the API said: status, JSON (None where the body is none), headers."""

    status: int
    content: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Held:
    """A lease as its device knows it."""

    lease: str
    token: str
    export: str
    host: str
    port: int

    @property
    def uri(self) -> str:
        return f"nbd://{self.host}:{self.port}/{self.export}"


class Control:
    """A client of one daemon's API."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def call(
        self, method: str, path: str, *, token: str | None = None, json: object = None, data: bytes | None = None
    ) -> Answer:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.session.request(method, self.url + path, headers=headers, json=json, data=data) as response:
            kind = response.content_type
            content = await response.json() if kind == "application/json" else await response.text()
            return Answer(response.status, content, dict(response.headers))

    async def lease(self, size_bytes: int = 8 * MIB, slab_bytes: int = MIB, device: str = "test") -> Held:
        body = {"device": device, "device_id": DEVICE_ID, "size_bytes": size_bytes, "slab_bytes": slab_bytes}
        answer = await self.call("POST", "/v1/leases", json=body)
        assert answer.status == 201, answer
        content = answer.content
        host, port = content["address"]
        return Held(content["lease"], content["token"], content["export"], host, port)

    async def map(self, held: Held, index: int) -> Answer:
        return await self.call("PUT", f"/v1/leases/{held.lease}/slabs/{index}", token=held.token)

    async def unmap(self, held: Held, index: int) -> Answer:
        return await self.call("DELETE", f"/v1/leases/{held.lease}/slabs/{index}", token=held.token)

    async def release(self, held: Held) -> Answer:
        return await self.call("DELETE", f"/v1/leases/{held.lease}", token=held.token)

    async def heartbeat(self, held: Held) -> Answer:
        return await self.call("POST", f"/v1/leases/{held.lease}/heartbeat", token=held.token, json={})

    async def offer(self, query: str = "") -> dict[str, Any]:
        answer = await self.call("GET", "/v1/offer" + query)
        assert answer.status == 200, answer
        content = answer.content
        assert isinstance(content, dict)
        return content

    async def stats(self) -> dict[str, Any]:
        content = (await self.call("GET", "/v1/stats")).content
        assert isinstance(content, dict)
        return content


def daemon_config(memory_bytes: int = 16 * MIB, **changes: Any) -> DaemonConfig:
    """A daemon of 16 MiB on free loopback ports."""
    from infiniswap.shared.address import HostPort

    values: dict[str, Any] = {
        **OPTIONS.defaults(),
        "memory": MemoryAmount(size_bytes=memory_bytes),
        "listen": HostPort("127.0.0.1", 0),
        "headroom": MemoryAmount(size_bytes=0),
        "threads": 2,
        "fuses": 0,
        "lock_memory": False,  # of the process that runs the tests
        **changes,
    }
    return DaemonConfig(**values)
