"""What a hostile daemon answers to a device's calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

from infiniswap.device.daemon_client import DaemonClient, HeldLease, PeerError, _interpret
from infiniswap.shared.address import HostPort
from infiniswap.shared.path_messages import parse_end
from tests.fuzz.files import DEVICE_ID

PATH_END = {
    "link_layer": "Ethernet", "gid": "::ffff:10.0.0.1", "lid": 0, "mtu_bytes": 1024, "reads_max": 16,
    "queue_pairs": [{"number": 17, "psn": 1}, {"number": 18, "psn": 2}],
}  # fmt: skip
STATUSES = (200, 201, 204, 302, 400, 404, 409, 500, 503, 507)


class _Answered(DaemonClient):
    """A client whose every call is answered with the same bytes."""

    def __init__(self, status: int, raw: bytes) -> None:
        session: Any = None
        super().__init__(
            session,
            HostPort("h", 1),
            device="d",
            device_id=DEVICE_ID,
            size_bytes=1 << 20,
            slab_bytes=1 << 20,
            timeout_s=1,
            clock=time.monotonic,
        )
        self._answer = status, raw

    async def _ask(
        self, method: str, path: str, *, lease: HeldLease | None = None, body: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], str]:
        del method, path, body
        return _interpret(*self._answer, has_lease=lease is not None), "127.0.0.1"

    async def _page_address(self, told: tuple[str, int], granted_at: str) -> tuple[str, int]:
        del granted_at
        return told  # no name that a fuzzer makes up is looked up


def daemon_answers(data: bytes) -> None:
    """The first byte chooses status and call, the rest is the body: a checked result or a PeerError of one line."""
    if not data:
        return
    client = _Answered(STATUSES[data[0] % len(STATUSES)], data[1:])
    lease = HeldLease("l", "t", "e", ("127.0.0.1", 1), "i", 60.0, 1 << 20, [0.0])
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        client.offer,
        client.open_lease,
        lambda: client.map_slab(lease, 0),
        lambda: client.heartbeat(lease),
        lambda: client.open_rdma(lease, parse_end(PATH_END)),
        lambda: client.unmap_slab(lease, 0),
        lambda: client.release(lease),
    ]
    try:
        asyncio.run(calls[data[0] // len(STATUSES) % len(calls)]())
    except PeerError as error:
        assert "\n" not in str(error)


def daemon_answers_seeds() -> list[bytes]:
    """A good answer to each call, and some refusals."""
    life = {"incarnation": "i", "ttl_s": 60.0, "expires_in_s": 60.0}
    region = {"address": 0x7F0000000000, "rkey": 17}
    good: list[dict[str, Any]] = [
        {"free_bytes": 1, "total_bytes": 2, "incarnation": "i", "rdma": {}},
        {"lease": "l", "token": "t", "export": "e", "address": ["127.0.0.1", 7402], "rdma": None, **life},
        {"slab": 0, "free_bytes": 5, "rdma": region},
        {**life, "slabs": [0, 1], "free_bytes": 3, "connections": 2, "rdma": True},
        {"path": PATH_END, "device": "rxe0/1", "probe": region, "slabs": [{"slab": 0, **region}]},
        {"slab": 0},
        {"lease": "l"},
    ]
    texts = [bytes([number * len(STATUSES)]) + json.dumps(answer).encode() for number, answer in enumerate(good)]
    return [
        *texts,
        b"\x08" + b'{"error": "no\\nroom"}',
        b"\0" + b"[" * 5000,
        b"\0" + b'{"free_bytes": ' + b"9" * 5000 + b"}",
    ]
