"""A daemon that answers as told."""

from __future__ import annotations

from infiniswap.device.daemon_client import (
    HeldLease,
    PeerError,
)
from infiniswap.shared.messages import Beat


class FakeClient:
    """Answers heartbeats as told."""

    def __init__(self, *answers: frozenset[int] | PeerError, connections: tuple[int, ...] = (0,)) -> None:
        self.answers = list(answers)
        self.connections = connections
        self.asked = 0
        self.calls: list[str] = []

    async def export_name(self, lease: HeldLease) -> str:
        return lease.export

    async def close_rdma(self, _lease: HeldLease) -> None:
        self.calls.append("close rdma")

    async def heartbeat(self, _lease: HeldLease) -> Beat:
        self.asked += 1
        self.calls.append("heartbeat")
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if isinstance(answer, PeerError):
            raise answer
        return Beat(answer, 0, self.connections[min(self.asked, len(self.connections)) - 1])
