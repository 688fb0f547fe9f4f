"""Looks at the host's memory, and keeps what follows from it for whoever lends.

The reckoning itself is in policy/headroom.py. Memory of slabs is shared memory: MemAvailable does not count it, so that
what is available and what slabs occupy add up to what the host would have with nothing lent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from infiniswap.daemon.cgroup import read_groups
from infiniswap.daemon.host_files import HostFiles
from infiniswap.policy.headroom import BETA, Headroom, HostMemory

MIB = 1 << 20
MEMINFO_PATH = Path("/proc/meminfo")
MEMINFO_NAMES = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
PRESSURE_PATH = Path("/proc/pressure/memory")
AGREEING_BYTES = 2 * MIB  # slabs may fill and be cleared while the host is looked at: by no more than this
TRIES_MAX = 3  # at a look at both that agree


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


class HostReader:
    """Looks at MemAvailable, swap in use and PSI of this host, within the limits of our control group."""

    def __init__(self, *, keep_open: bool = True) -> None:
        """keep_open: its files stay open until close(), so that a look takes no memory of the kernel's."""
        self._files = HostFiles(keep_open=keep_open)

    def __call__(self) -> HostMemory:
        """As it is now. OSError when no descriptor is free."""
        figures = _figures(self._files.text(MEMINFO_PATH) or "")
        if "MemAvailable" not in figures:  # before Linux 3.14, or no /proc
            memory = psutil.virtual_memory()
            figures |= {"MemTotal": int(memory.total), "MemAvailable": int(memory.available)}
        groups = read_groups(files=self._files)
        pressure = self._files.text(PRESSURE_PATH)  # None where PSI is switched off: MemAvailable alone decides
        return HostMemory(
            total_bytes=min([figures["MemTotal"], *(group.limit_bytes for group in groups)]),
            available_bytes=min([figures["MemAvailable"], *(group.available_bytes for group in groups)]),
            pressure_percent=None if pressure is None else parse_pressure(pressure),
            swap_used_bytes=max(0, figures.get("SwapTotal", 0) - figures.get("SwapFree", 0)),
            groups=groups,
        )

    def close(self) -> None:
        """Close its files."""
        self._files.close()


def _figures(text: str) -> dict[str, int]:
    """What /proc/meminfo says that counts here, bytes."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.removesuffix("kB").strip()
        if name in MEMINFO_NAMES and number.isdecimal():
            found[name] = int(number) * 1024
    return found


class MemoryMonitor:
    """The host's memory as of the last look, and from it the bytes that may be lent."""

    def __init__(
        self,
        read: Callable[[], HostMemory],
        occupied_bytes: Callable[[], int],
        *,
        headroom_bytes: int | None = None,
        beta: float = BETA,
    ) -> None:
        """read: looks at the host; occupied_bytes: memory that lent slabs really occupy; takes a first sample."""
        self._read = read
        self._read_occupied = occupied_bytes
        self.occupied_bytes = 0  # as of the last look
        self._headroom = Headroom(self._look(), self.occupied_bytes, headroom_bytes=headroom_bytes, beta=beta)

    def sample(self) -> None:
        """Look at the host and move the averages; to be called every second."""
        self._headroom.sample(self._look(), self.occupied_bytes)

    def refresh(self) -> None:
        """Look at the host between samples: before memory is really promised, and when it may be running out."""
        self._headroom.look(self._look(), self.occupied_bytes)

    @property
    def host(self) -> HostMemory:
        """As of the last look."""
        return self._headroom.host

    def keep_free(self, headroom_bytes: int) -> None:
        """Keep so much free from now on."""
        self._headroom.headroom_bytes = headroom_bytes

    @property
    def headroom_bytes(self) -> int:
        """Memory to keep free when nothing is wrong."""
        return self._headroom.headroom_bytes

    @property
    def headroom_now_bytes(self) -> int:
        """Headroom in force."""
        return self._headroom.headroom_now_bytes

    @property
    def smoothed_bytes(self) -> int:
        """Memory the host would have available with nothing lent, as far as it is believed."""
        return self._headroom.smoothed_bytes

    def lendable_bytes(self) -> int:
        """Memory that slabs may take in all, lent ones included: what is lent beyond it is to come back."""
        return self._headroom.lendable_bytes

    def growable_bytes(self) -> int:
        """Memory that slabs may take in all when another one is lent: a little less than lendable_bytes()."""
        return self._headroom.growable_bytes

    @property
    def hard_pressed(self) -> bool:
        """Less than half of the headroom is left, while slabs occupy memory: some must go at once."""
        return self.occupied_bytes > 0 and self._headroom.hard_pressed

    @property
    def missing_bytes(self) -> int:
        """Memory to be freed for the headroom to be whole again; never more than slabs occupy."""
        return min(self.occupied_bytes, self._headroom.missing_bytes)

    def _look(self) -> HostMemory:
        """One look at host and slabs together: memory on its way between them is neither lost nor counted twice."""
        before = self._read_occupied()
        for _ in range(TRIES_MAX):
            host = self._read()
            self.occupied_bytes = self._read_occupied()
            if abs(self.occupied_bytes - before) <= AGREEING_BYTES:
                break
            before = self.occupied_bytes
        return host
