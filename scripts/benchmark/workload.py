"""What is asked of every contender."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """One fio pattern: rw as fio names it, block_bytes a request, depth requests in flight.

    beside: what another connection does meanwhile, and before: that is not measured. one_core: fio and all servers
    share a core, so that nothing depends on where the kernel wakes whom, and all that counts is what there is to do.
    """

    name: str
    rw: str
    block_bytes: int
    depth: int
    beside: Workload | None = None
    one_core: bool = False

    @property
    def writes(self) -> bool:
        """Whether anything is written, so that there is a state to be reached before, and something left behind."""
        return self.beside is not None or self.direction != "read"

    @property
    def direction(self) -> str:
        """Which part of fio's report tells of it: read, write, or mixed."""
        return "mixed" if self.rw.endswith("rw") else "write" if "write" in self.rw else "read"


LOAD = Workload("randwrite-4k-qd32", "randwrite", 4096, 32)
LARGE_BYTES = 1280 << 10  # the largest request of nbd in Linux 6.12
# As large as a disk takes it in one piece (254 pages by virtio and most others): where pieces are counted, the fastest.
SEQUENTIAL = Workload("write-1000k-qd4", "write", 1000 << 10, 4)
WORKLOADS = (
    Workload("randread-4k-qd1", "randread", 4096, 1),
    Workload("randread-4k-qd8", "randread", 4096, 8),
    Workload("randread-4k-qd32", "randread", 4096, 32),
    Workload("randread-4k-qd1-core", "randread", 4096, 1, one_core=True),
    Workload("randread-4k-qd32-core", "randread", 4096, 32, one_core=True),
    Workload("randwrite-4k-qd1", "randwrite", 4096, 1),
    LOAD,
    Workload("mix-4k-qd32", "randrw", 4096, 32),
    Workload("randread-4k-qd1-beside", "randread", 4096, 1, beside=LOAD),
    Workload("read-128k-qd8", "read", 128 << 10, 8),
    Workload("write-128k-qd8", "write", 128 << 10, 8),
    Workload("read-1280k-qd4", "read", LARGE_BYTES, 4),
    Workload("write-1280k-qd4", "write", LARGE_BYTES, 4),
    SEQUENTIAL,
)
