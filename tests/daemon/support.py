"""What the daemon's tests share: an engine that only remembers, a host made of numbers, and a running daemon."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass
class FakeExport:
    """One export of the fake engine."""

    slab_bytes: int
    slabs: int
    mapped: dict[int, int] = field(default_factory=dict)  # slab -> address
    descriptors: dict[int, int] = field(default_factory=dict)  # slab -> what it may be punched through, or -1
    connections: list[socket.socket] = field(default_factory=list)


class FakeEngine:
    """The methods of MemoryEngine over plain dictionaries; misuse raises, as the real one does."""

    counter_names: tuple[str, ...] = ("connections", "read_requests")

    def __init__(self, exports_max: int = 256) -> None:
        self.exports: dict[int, FakeExport] = {}
        self.exports_max = exports_max
        self.closed = False
        self.refuse_maps = False
        self.descriptors: list[int] = []  # given with each mapping
        self.journal: list[str] = []  # what ends something, in order
        self._next = 0

    def open_export(self, slab_bytes: int, slabs: int) -> int:
        if len(self.exports) >= self.exports_max:
            raise OSError(28, "no export is free")
        self._next += 1
        self.exports[self._next] = FakeExport(slab_bytes, slabs)
        return self._next

    def close_export(self, export: int) -> None:
        self.journal.append("close export")
        for sock in self.exports.pop(export).connections:
            sock.close()

    def map_slab(self, export: int, slab: int, address: int, fd: int = -1, fd_offset: int = 0) -> None:
        if self.refuse_maps:
            raise OSError(12, "no memory")
        assert address > 0
        assert fd_offset % self.exports[export].slab_bytes == 0
        assert 0 <= slab < self.exports[export].slabs
        assert slab not in self.exports[export].mapped
        self.exports[export].mapped[slab] = address
        self.exports[export].descriptors[slab] = fd
        self.descriptors.append(fd)

    def unmap_slab(self, export: int, slab: int) -> None:
        self.journal.append(f"unmap {slab}")
        del self.exports[export].mapped[slab]

    def add_connection(self, export: int, sock: socket.socket, flags: object, early: bytes = b"") -> None:
        del flags, early
        self.exports[export].connections.append(sock)

    def export_connections(self, export: int) -> int:
        return len(self.exports[export].connections)

    def counter(self, name: str) -> int:
        del name
        return sum(len(export.connections) for export in self.exports.values())

    def close(self) -> None:
        for export in list(self.exports):
            self.close_export(export)
        self.closed = True


class FakeClock:
    """Monotonic seconds that move when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


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


async def eventually(check: Callable[[], bool], what: str) -> None:
    """Wait until check() holds; fails after WAIT_TIMEOUT_S."""
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while not check():
        assert time.monotonic() < deadline, f"not within {WAIT_TIMEOUT_S:g} s: {what}"
        await asyncio.sleep(0.01)


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
