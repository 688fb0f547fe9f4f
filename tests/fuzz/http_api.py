"""The control APIs of both programs: bytes through aiohttp's parser into our handlers, without a socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web

from infiniswap.shared.http_server import _OneLine
from tests.fuzz.answers import PATH_END
from tests.support.daemon_api import DEVICE_ID

TURNS = 12  # of the loop, after which a handler that waits for nothing has answered
LOOP_TURNS_MAX = 400


class _Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 7401), "peername": ("127.0.0.1", 40000)})
        self.written = bytearray()
        self.closing = False

    def write(self, data: Any) -> None:
        """Keep it."""
        self.written += data

    def is_closing(self) -> bool:
        """Whether one side has ended it."""
        return self.closing

    def close(self) -> None:
        """End it."""
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        """All is here already."""

    resume_reading = pause_reading


class _Errors(logging.Handler):
    """What our own code logs as an error is a finding."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise it where the fuzzer sees it, unless it is the one line that a stranger's fault is worth."""
        if record.levelno >= logging.ERROR and _OneLine().filter(record):
            raise AssertionError(f"logged: {record.getMessage()}") from (record.exc_info or (None, None))[1]


class Api:
    """One application, spoken to again and again; a fresh one every FRESH connections, so that findings replay."""

    FRESH = 64

    def __init__(self, make: Callable[[], web.Application]) -> None:
        """make: the application as its program builds it."""
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: web.AppRunner | None = None
        self._served = 0

    def __call__(self, data: bytes) -> None:
        """One connection, its bytes in two pieces: an error is answered in JSON, and never with 500."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connection(data))

    def end(self) -> None:
        """Close what the first call opened."""
        if self._loop is not None:
            if self._runner is not None:
                self._loop.run_until_complete(self._runner.cleanup())
            self._loop.close()

    async def _connection(self, data: bytes) -> None:
        if self._runner is None or self._served % self.FRESH == 0:
            if self._runner is not None:
                await self._runner.cleanup()
            logger = logging.getLogger("tests.fuzz.http")
            logger.propagate = False
            logger.handlers = [_Errors()]
            self._runner = web.AppRunner(
                self._make(), access_log=None, auto_decompress=False, logger=logger, shutdown_timeout=0.1
            )
            await self._runner.setup()
        self._served += 1
        assert self._runner.server is not None
        protocol, wire = self._runner.server(), _Wire()
        protocol.connection_made(wire)
        cut = len(data) // 2
        for piece in (data[:cut], data[cut:]):
            protocol.data_received(piece)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        for _ in range(LOOP_TURNS_MAX):
            if len(asyncio.all_tasks()) == 1:
                break
            await asyncio.sleep(0)
        _check_answers(bytes(wire.written))


def _check_answers(written: bytes) -> None:
    while written.startswith(b"HTTP/1."):
        head, separator, rest = written.partition(b"\r\n\r\n")
        if not separator:
            return
        status = int(head.split(b" ", 2)[1])
        assert status != 500, "an internal error"
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if status == 101 or b"content-length" not in headers:
            return
        length = int(headers[b"content-length"])
        body, written = rest[:length], rest[length:]
        if b"json" in headers.get(b"content-type", b"") and len(body) == length:
            content = json.loads(body) if body else {}
            assert status < 400 or not body or isinstance(content["error"], str)


def _request(method: str, path: str, body: bytes = b"", *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: h", *more]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def device_seeds() -> list[bytes]:
    """Every path of the device, and what is no path."""
    paths = ["status", "slabs", "peers", "stats", "metrics", "scrub", "nothing"]
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    return [
        *(_request("GET", f"/v1/{path}") for path in paths),
        _request("POST", "/v1/stop", b"{}"),
        _request("POST", "/v1/scrub", b'{"rate_bytes_s": 1048576}'),
        _request("DELETE", "/v1/scrub"),
        _request("POST", "/v1/stop", b'{"under_use": true}'),
        _request("GET", "/v1/events", b"", *upgrade) + b"\x81\x80\0\0\0\0",
        _request("GET", "/v1/events"),
    ]


def daemon_seeds() -> list[bytes]:
    """Every path of the daemon with the bodies that a device sends, and near misses."""
    lease = {"device": "vol", "device_id": DEVICE_ID, "size_bytes": 8 << 20, "slab_bytes": 1 << 20}
    bearer = "Authorization: Bearer token"
    return [
        *(
            _request("GET", f"/v1/{name}")
            for name in ("health", "offer", "offer?slab_bytes=1048576", "stats", "metrics", "leases/x")
        ),
        _request("POST", "/v1/leases", json.dumps(lease).encode()),
        _request("POST", "/v1/leases", json.dumps({**lease, "size_bytes": 10**400}).encode()),
        _request("POST", "/v1/leases", b"[" * 200),
        _request("POST", "/v1/leases", json.dumps(lease).encode())[:-9],
        _request("POST", "/v1/leases/x/heartbeat", b"{}", bearer),
        _request("POST", "/v1/leases/x/rdma", json.dumps({"path": PATH_END}).encode(), bearer),
        *(_request(method, "/v1/leases/x/slabs/3", b"", bearer) for method in ("PUT", "DELETE")),
        _request("DELETE", "/v1/leases/x", b"", bearer),
    ]
