"""What the daemon's web page shows: memory lent, headroom, pressure, page I/O, and which device holds what."""

from __future__ import annotations

from typing import Any

import infiniswap
from infiniswap.daemon.draining import Draining
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.metrics import DaemonMetrics
from infiniswap.policy.health import DonorFacts, of_donor
from infiniswap.shared.clock import Clock
from infiniswap.shared.operator_messages import DonorState

PAGE_BYTES = 4096
LEASES_SHOWN_MAX = 256
_HOST_FIELDS = ("total_bytes", "available_bytes", "headroom_bytes", "missing_bytes", "pressure_percent")


class DonorView:
    """The daemon as its page shows it."""

    def __init__(self, lender: Lender, metrics: DaemonMetrics, draining: Draining, clock: Clock) -> None:
        """clock: monotonic seconds."""
        self._lender = lender
        self._metrics = metrics
        self._draining = draining
        self._clock = clock
        self._begun_s = self._seen_s = clock()
        self._engine: dict[str, int] = {}

    def sample(self) -> dict[str, Any]:
        """Memory and the host's state now, page I/O in pages a second since the last call."""
        now_s, content = self._clock(), self._metrics.snapshot()
        elapsed_s = max(now_s - self._seen_s, 1e-3)
        engine: dict[str, int] = content["engine"]

        def rate(name: str) -> float:
            before = self._engine.get(name, engine[name])
            return round((engine[name] - before) / elapsed_s, 1)

        host = content["host"]
        found = {
            "at_s": round(now_s - self._begun_s, 1),
            "ins": rate("read_pages"),
            "outs": rate("write_pages"),
            "used_bytes": content["memory"]["used_bytes"],
            "free_bytes": content["memory"]["free_bytes"],
            "available_bytes": host.get("available_bytes"),
            "pressure_percent": host.get("pressure_percent"),
        }
        self._seen_s, self._engine = now_s, engine
        return found

    def now(self) -> dict[str, Any]:
        """Memory, host, counts and leases, those that hold most first."""
        content = self._metrics.snapshot()
        host = content["host"]
        leases = [
            {
                "device": lease.device,
                "host": lease.host,
                "slabs": len(lease.slabs),
                "bytes": len(lease.slabs) * lease.slab_bytes,
                "leaving": len(lease.leaving),
                "activity": round(sum(lease.activity.values()), 1),
                "remaining_s": round(self._lender.leases.remaining_s(lease), 1),
            }
            for lease in self._lender.leases.leases()
        ]
        leases.sort(key=lambda lease: -int(str(lease["bytes"])))
        memory = content["memory"]
        facts = DonorFacts(
            address="",
            answers=True,
            lending=self._draining.state is DonorState.LENDING,
            total_bytes=memory["total_bytes"],
            free_bytes=memory["free_bytes"],
            used_bytes=memory["used_bytes"],
            available_bytes=host.get("available_bytes"),
            headroom_bytes=host.get("headroom_bytes"),
            missing_bytes=host.get("missing_bytes"),
            pressure_percent=host.get("pressure_percent"),
        )
        return {
            "findings": [finding.as_json() for finding in of_donor(facts)],
            "version": infiniswap.__version__,
            "state": str(self._draining.state),
            "uptime_s": content["uptime_s"],
            "memory": memory,
            "host": {name: host.get(name) for name in _HOST_FIELDS} if host else None,
            "slabs": content["slabs"],
            "rdma": content["rdma"]["state"],
            "evicted": content["counts"]["evicted"],
            "evicted_by_force": content["counts"]["evicted_by_force"],
            "leases": leases[:LEASES_SHOWN_MAX],
        }
