"""Leases as a device holds them: one that a test takes itself, one that nobody granted, those on a device's record."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infiniswap.device.daemon_client import (
    HeldLease,
)
from infiniswap.device.lease_book import LeaseBook
from infiniswap.nbd.client import NbdClient
from infiniswap.shared.paths import device_state_dir
from tests.support.services import ANSWER_TIMEOUT_S, Daemon, Services

HEARTBEAT_S = 0.1
DEVICE_ID = "0f6a2c1e-5d5b-4a39-9a3c-6f1b7c1d2e30"


@dataclass(frozen=True, slots=True)
class TakenLease:
    """A lease of a daemon, with the token that opens its export."""

    daemon: str  # HOST:PORT of the control API
    lease_id: str
    token: str
    export: str
    host: str
    port: int
    slabs: tuple[int, ...] = ()

    @property
    def uri(self) -> str:
        """Of the export, as libnbd, fio and QEMU take it."""
        return f"nbd://{self.host}:{self.port}/{self.export}"

    def connect(self, timeout_s: float = ANSWER_TIMEOUT_S) -> NbdClient:
        """A new NBD connection."""
        return NbdClient((self.host, self.port), self.export, timeout_s)

    def call(self, method: str, path: str = "", body: dict[str, Any] | None = None) -> Any:
        """Ask the daemon about this lease."""
        return _call(self.daemon, method, f"/v1/leases/{self.lease_id}{path}", self.token, body)

    def map(self, *slabs: int) -> None:
        """Get memory for slabs."""
        for slab in slabs:
            self.call("PUT", f"/slabs/{slab}")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Heartbeats from a thread, however long the test takes."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_S):
                self.call("POST", "/heartbeat", {})

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def release(self) -> None:
        """Give it back."""
        self.call("DELETE")


def _call(daemon: str, method: str, path: str, token: str | None, body: dict[str, Any] | None) -> Any:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{daemon}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
        return json.loads(response.read() or b"{}")


def take_lease(daemon: Daemon, size_bytes: int, slab_bytes: int) -> TakenLease:
    """A new lease of daemon with every slab mapped. size_bytes: a multiple of slab_bytes."""
    body = {"device": "test", "device_id": DEVICE_ID, "size_bytes": size_bytes, "slab_bytes": slab_bytes}
    answer = _call(daemon.address, "POST", "/v1/leases", None, body)
    host, port = answer["address"]
    lease = TakenLease(daemon.address, answer["lease"], answer["token"], answer["export"], host, port)
    lease.map(*range(size_bytes // slab_bytes))
    return lease


def leases_on_record(services: Services, device: str) -> dict[str, TakenLease]:
    """Leases that a device has put on record, by the address of the daemon's control API."""
    path = device_state_dir(services.folder / "state", device) / "leases.json"
    device_id = json.loads(path.read_text())["device_id"]
    found = {}
    for entry in LeaseBook(path).read(device_id):
        lease = entry.lease
        slabs = tuple(sorted(entry.slabs))
        found[str(entry.peer)] = TakenLease(
            str(entry.peer), lease.lease_id, lease.token, lease.export, *lease.address, slabs
        )
    return found


def make_lease(number: int) -> HeldLease:
    """A lease that no daemon granted."""
    return HeldLease(
        lease_id=f"lease{number}",
        token=f"secret{number}",
        export=f"lease-secret{number}",
        address=("127.0.0.1", number),
        incarnation="i",
        ttl_s=60.0,
        size_bytes=4 << 20,
        renewal=[0.0],
    )
