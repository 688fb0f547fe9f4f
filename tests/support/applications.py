"""The control APIs of both programs, as the programs build them, over a device that only answers and a small lender."""

from __future__ import annotations

from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from infiniswap.daemon.api import ControlApi
from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.metrics import DaemonMetrics
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.daemon.rdma_paths import RdmaPaths
from infiniswap.daemon.streams import Streams
from infiniswap.daemon.tickets import Tickets
from infiniswap.device.control_api import ControlServer
from infiniswap.device.events import EventHub
from infiniswap.device.scrub import Scrub
from infiniswap.device.traces import Traces
from infiniswap.engine.layout import TRACE_DTYPE
from infiniswap.policy.headroom import HostMemory
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine


class _Metrics:
    def slabs(self, _choice: object) -> list[dict[str, Any]]:
        return [{"index": 0}]

    def peers(self) -> list[dict[str, Any]]:
        return [{"slot": 0}]

    def snapshot(self, _cells: int) -> dict[str, Any]:
        return {"heat": ""}

    def stats(self) -> dict[str, Any]:
        return {"reads": {}}


class _Engine:
    def scrub(self, _pages_per_s: int) -> None:
        return

    def verify(self, _pages_per_s: int) -> None:
        return

    def counter(self, _name: str) -> int:
        return 0

    def traces(self, after: int = 0) -> NDArray[Any]:
        return np.zeros(1, TRACE_DTYPE)[:after]

    def trace_least(self, least_us: int) -> None:
        return


class _Device:
    def __init__(self) -> None:
        self.traces = Traces(_Engine(), 1000, dict)
        self.scrub = Scrub(_Engine(), 1 << 20, lambda: 5.0)
        self.metrics: Any = _Metrics()
        self.events = EventHub()

    def status(self) -> dict[str, Any]:
        return {"name": "vol"}

    def exposition(self) -> bytes:
        return b"# metrics\n"

    def request_stop(self, _reason: str, **_options: Any) -> None:
        return


def device_application() -> web.Application:
    """The device's API over a device that only answers."""
    device: Any = _Device()
    return ControlServer(device).application()


def daemon_application() -> web.Application:
    """The daemon's API over a real lender with 16 MiB and an engine that only remembers."""
    engine, arena = FakeEngine(), Arena(16 * MIB)
    monitor = MemoryMonitor(lambda: HostMemory(1 << 40, 1 << 39), arena.occupied_bytes, headroom_bytes=0)
    lender = Lender(
        arena=arena, leases=LeaseTable(FakeClock(), ttl_s=10.0, leases_max=4), engine=engine, monitor=monitor, keys=None
    )
    clock = FakeClock()
    metrics = DaemonMetrics(lender, None, dict, clock)
    tickets, address = Tickets(clock, lender.leases.is_live), ("127.0.0.1", 7402)
    return ControlApi(
        lender, RdmaPaths(lender), Streams(lender, clock), metrics, lambda _request: address, clock, tickets
    ).application()
