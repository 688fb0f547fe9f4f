"""What is asked of every contender."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """One fio pattern: rw as fio names it, block_bytes a request, depth requests in flight."""

    name: str
    rw: str
    block_bytes: int
    depth: int

    @property
    def writes(self) -> bool:
        """Whether it writes."""
        return "write" in self.rw


WORKLOADS = (
    Workload("randread-4k-qd1", "randread", 4096, 1),
    Workload("randread-4k-qd32", "randread", 4096, 32),
    Workload("randwrite-4k-qd1", "randwrite", 4096, 1),
    Workload("randwrite-4k-qd32", "randwrite", 4096, 32),
    Workload("read-128k-qd8", "read", 128 << 10, 8),
    Workload("write-128k-qd8", "write", 128 << 10, 8),
)
