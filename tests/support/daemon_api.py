"""What the daemon's tests share: an engine that only remembers, a host made of numbers, and a running daemon."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from infiniswap.daemon.config import DaemonConfig
from infiniswap.daemon.monitor import HostMemory
from infiniswap.daemon.options import OPTIONS

MIB = 1 << 20
DEVICE_ID = "8a6e0804-2bd0-4672-b79d-d97027f9071a"
READY_TIMEOUT_S = 40.0
WAIT_TIMEOUT_S = 20.0
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


def daemon_config(**changes: Any) -> DaemonConfig:
    """A daemon of 16 MiB on free loopback ports."""
    from infiniswap.shared.address import HostPort

    values: dict[str, Any] = {
        **OPTIONS.defaults(),
        "memory_bytes": 16 * MIB,
        "listen": HostPort("127.0.0.1", 0),
        "headroom_bytes": 0,
        "threads": 2,
        **changes,
    }
    return DaemonConfig(**values)


class DaemonProcess:
    """infiniswapd as its own process."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from infiniswap.daemon.main import main; main()", *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self.url = self._wait_ready()

    def _wait_ready(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], READY_TIMEOUT_S)
        line = self.process.stdout.readline().decode() if ready else ""
        if not line.startswith("ready http://"):
            self.kill()
            raise AssertionError(f"no ready line but {line!r}: {self.log.read_text()}")
        return line.split()[1]

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Signal and wait; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """End it the hard way, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def daemon_process(tmp_path: Path, *arguments: str, memory: str = "16MiB") -> Iterator[DaemonProcess]:
    """A running infiniswapd; whatever it says above INFO fails the test."""
    log = tmp_path / "infiniswapd.log"
    daemon = DaemonProcess(["--memory", memory, "--listen", "127.0.0.1:0", "--headroom", "0", *arguments], log)
    try:
        yield daemon
    finally:
        daemon.kill()
    said = log.read_text()
    assert "Traceback" not in said, said
    assert "ERROR" not in said, said
