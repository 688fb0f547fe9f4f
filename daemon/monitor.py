"""How much memory this host can lend without running short itself.

The paper's daemon keeps HeadRoom free and smooths what it measures (section 4.4, EMA with beta 0.2 each second).
Smoothed here is what the host would have available if the daemon held nothing (available plus what lent slabs occupy),
so that the daemon's own filling up of slabs does not lag behind in the average and get promised twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from infiniswap.daemon.cgroup import read_cgroup_memory
from infiniswap.shared.descriptors import EXHAUSTED

MIB = 1 << 20
PRESSURE_PATH = Path("/proc/pressure/memory")
PRESSURE_PERCENT_HIGH = 10.0  # of the last 10 s in which some task waited for memory


@dataclass(frozen=True, slots=True)
class HostMemory:
    """One look at the host, or at the daemon's cgroup where that is tighter.

    pressure_percent is PSI's "some avg10", None where the kernel does not tell.
    """

    total_bytes: int
    available_bytes: int
    pressure_percent: float | None = None


def parse_pressure(text: str) -> float | None:
    """The "some avg10" of a PSI file (kernel docs, accounting/psi), percent; None when it is not there."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["some"]:
            for word in words[1:]:
                name, _, value = word.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return None
    return None


def read_host_memory() -> HostMemory:
    """MemAvailable and PSI of this host now, within the limits of our cgroup."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    cgroup = read_cgroup_memory()
    if cgroup is not None:
        total, available = min(total, cgroup.limit_bytes), min(available, cgroup.available_bytes)
    try:
        pressure = parse_pressure(PRESSURE_PATH.read_text())
    except OSError as error:  # PSI is switched off or unreadable: MemAvailable alone decides
        if error.errno in EXHAUSTED:
            raise
        pressure = None
    return HostMemory(total, available, pressure)


def default_headroom_bytes(total_bytes: int) -> int:
    """Memory that stays the host's own: the larger of 10 % and 512 MiB."""
    return max(total_bytes // 10, 512 * MIB)


class MemoryMonitor:
    """Smoothed view of the host's memory, and from it the bytes that may be lent."""

    def __init__(
        self,
        read: Callable[[], HostMemory],
        occupied_bytes: Callable[[], int],
        *,
        headroom_bytes: int | None = None,
        beta: float = 0.2,
    ) -> None:
        """read: looks at the host; occupied_bytes: memory that lent slabs really occupy; takes a first sample."""
        self._read = read
        self._occupied_bytes = occupied_bytes
        self._beta = beta
        self.host = read()
        self.headroom_bytes = (
            default_headroom_bytes(self.host.total_bytes) if headroom_bytes is None else headroom_bytes
        )
        self._latest_bytes = float(self.host.available_bytes + occupied_bytes())
        self._smoothed_bytes = self._latest_bytes

    def sample(self) -> None:
        """Look at the host and move the average; to be called every second."""
        self.refresh()
        self._smoothed_bytes += self._beta * (self._latest_bytes - self._smoothed_bytes)

    def refresh(self) -> None:
        """Look at the host without moving the average: before memory is really promised."""
        self.host = self._read()
        self._latest_bytes = float(self.host.available_bytes + self._occupied_bytes())

    @property
    def smoothed_bytes(self) -> int:
        """Memory the host would have available with nothing lent, EMA."""
        return int(self._smoothed_bytes)

    @property
    def headroom_now_bytes(self) -> int:
        """Headroom in force: doubled while tasks of this host wait for memory."""
        pressed = (self.host.pressure_percent or 0.0) >= PRESSURE_PERCENT_HIGH
        return self.headroom_bytes * (2 if pressed else 1)

    def lendable_bytes(self) -> int:
        """Memory that slabs may take in all, lent ones included.

        A fall counts at once and a rise is smoothed: a promise must hold, while an offer may come late.
        """
        supply = int(min(self._latest_bytes, self._smoothed_bytes))
        return max(0, supply - self.headroom_now_bytes)
