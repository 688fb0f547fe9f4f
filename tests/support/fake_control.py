"""A control API without a device behind it: answers what the test says, on a UNIX socket, from a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from infiniswap.shared.paths import control_socket

START_TIMEOUT_S = 10.0
Answer = Any
"""JSON for status 200, or a prepared function that returns a response."""

SLABS: list[dict[str, Any]] = [
    {"index": 0, "state": "mapped", "peer": "127.0.0.1:7401", "activity": 123.456, "remote_pages": 256,
     "backup_pages": 0, "pending_pages": 3, "page_ins": 1000, "page_outs": 259},
    {"index": 1, "state": "unmapped", "peer": None, "activity": 0.0, "remote_pages": 0, "backup_pages": 17,
     "pending_pages": 0, "page_ins": 0, "page_outs": 17},
]  # fmt: skip
SUMS = {
    "mapped": 1, "mapping": 0, "draining": 0, "unmapped": 1, "unmapped_used": 1, "remote_pages": 256,
    "backup_pages": 17, "pending_pages": 3,
}  # fmt: skip
PEERS: list[dict[str, Any]] = [
    {"peer": "127.0.0.1:7401", "state": "up", "slabs": 1, "free_bytes": 64 << 20, "total_bytes": 128 << 20, "reads": 10,
     "writes": 20, "failures": 0, "mismatches": 0, "in_flight": 2, "latency_mean_us": 55.25, "last_error": None},
    {"peer": "127.0.0.1:7402", "state": "down", "slabs": 0, "free_bytes": None, "total_bytes": None, "reads": 0,
     "writes": 0, "failures": 4, "mismatches": 0, "in_flight": 0, "latency_mean_us": None,
     "last_error": "connection refused"},
]  # fmt: skip
_TIMES = {"count": 0, "p50": None, "p90": None, "p99": None, "p999": None, "max": None}
STATS: dict[str, Any] = {
    "reads": {"remote": 900, "pending": 0, "backup": 100, "zero": 0},
    "writes": {"remote": 300, "backup": 0},
    "latency_us": {
        "remote": {"count": 900, "p50": 50.0, "p90": 80.0, "p99": 120.0, "p999": 300.0, "max": 512.5},
        "pending": _TIMES,
        "backup": {"count": 100, "p50": 90.0, "p90": 100.0, "p99": 200.0, "p999": 210.0, "max": 210.0},
        "zero": _TIMES,
    },
    "pending_bytes": 12288,
    "pending_limit_bytes": 64 << 20,
    "mappings": 2,
    "releases": 1,
    "failures": {"peers_lost": 1, "checksum_mismatches": 0},
    "counters": {"loops": 42},
}


def status(name: str, pid: int) -> dict[str, Any]:
    """What GET /v1/status answers."""
    return {
        "name": name, "pid": pid, "size_bytes": 1 << 30, "slab_bytes": 16 << 20,
        "uri": f"nbd+unix:///{name}?socket=/run/{name}.sock", "socket": f"/run/{name}.sock", "tcp": [],
        "backup": f"/data/{name}.img", "backup_engine": "io_uring", "uptime_s": 12.25, "state": "serving",
        "connections": 1, "peers": 2, "mapped_slabs": 1, "slabs": 64,
    }  # fmt: skip


class FakeServer:
    """Serves a control API, in a thread of its own. Use it as a context manager."""

    def __init__(self, answers: dict[tuple[str, str], Answer]) -> None:
        """answers: (method, path) -> JSON, or a callable that makes the response; requests: what was asked so far."""
        self.answers = answers
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="fake-control")

    async def listen(self, runner: web.AppRunner) -> None:
        """Open the socket."""
        raise NotImplementedError

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        self.bodies.append(await request.read())
        answer = self.answers.get((request.method, request.path))
        if answer is None:
            return web.json_response({"error": "no such path"}, status=404)
        if callable(answer):
            response = answer()
            assert isinstance(response, web.StreamResponse)
            return response
        return web.json_response(answer)

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await self.listen(runner)
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(START_TIMEOUT_S)
        assert not self._thread.is_alive()


class FakeControl(FakeServer):
    """Of device name in runtime_dir."""

    def __init__(self, runtime_dir: Path, name: str, pid: int = 4242) -> None:
        """pid: that it says it has."""
        runtime_dir.mkdir(parents=True, exist_ok=True)
        self.path = control_socket(runtime_dir, name)
        super().__init__(
            {
                ("GET", "/v1/status"): status(name, pid),
                ("GET", "/v1/slabs"): SLABS,
                ("GET", "/v1/snapshot"): {"slabs": SUMS},
                ("GET", "/v1/peers"): PEERS,
                ("GET", "/v1/stats"): STATS,
                ("POST", "/v1/stop"): {},
            }
        )

    async def listen(self, runner: web.AppRunner) -> None:
        """On its UNIX socket."""
        await web.UnixSite(runner, str(self.path)).start()


class FakeDonor(FakeServer):
    """Of a memory daemon on a free port of the loopback interface."""

    def __init__(self, answers: dict[tuple[str, str], Answer]) -> None:
        """See FakeServer."""
        super().__init__(answers)
        self.address = ""

    async def listen(self, runner: web.AppRunner) -> None:
        """On a port that is chosen."""
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{runner.addresses[0][1]}"
