"""Looks at the host's memory, and keeps what follows from it for whoever lends.

The reckoning itself is in policy/headroom.py. Memory of slabs is shared memory: MemAvailable does not count it, so that
what is available and what slabs occupy add up to what the host would have with nothing lent.

Nor does MemAvailable count what was freed lately and lies in lists of the processors (daemon/zoneinfo.py), which slabs
that were just cleared do, too. It is looked at when without it lent memory would have to come back, and only then.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path

import psutil

from infiniswap.daemon.cgroup import read_groups
from infiniswap.daemon.host_files import HostFiles
from infiniswap.daemon.zoneinfo import PIECES_MAX, ZONEINFO_PATH, parse_zoneinfo
from infiniswap.policy.headroom import BETA, Headroom, HostMemory

MIB = 1 << 20
MEMINFO_PATH = Path("/proc/meminfo")
MEMINFO_NAMES = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
PRESSURE_PATH = Path("/proc/pressure/memory")
AGREEING_BYTES = 2 * MIB  # slabs may fill and be cleared while the host is looked at: by no more than this
FOREIGN_SHARE = 16  # zones that manage so much more than there is are another host's
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
        self._total_bytes = 0  # by the last look, whatever the groups' limits

    def __call__(self) -> HostMemory:
        """As it is now. OSError when no descriptor is free."""
        figures = _figures(self._files.text(MEMINFO_PATH) or "")
        if "MemAvailable" not in figures:  # before Linux 3.14, or no /proc
            memory = psutil.virtual_memory()
            figures |= {"MemTotal": int(memory.total), "MemAvailable": int(memory.available)}
        self._total_bytes = figures["MemTotal"]
        groups = read_groups(files=self._files)
        pressure = self._files.text(PRESSURE_PATH)  # None where PSI is switched off: MemAvailable alone decides
        return HostMemory(
            total_bytes=min([figures["MemTotal"], *(group.limit_bytes for group in groups)]),
            available_bytes=min([figures["MemAvailable"], *(group.available_bytes for group in groups)]),
            pressure_percent=None if pressure is None else parse_pressure(pressure),
            swap_used_bytes=max(0, figures.get("SwapTotal", 0) - figures.get("SwapFree", 0)),
            groups=groups,
        )

    def percpu_bytes(self) -> int:
        """Free memory in lists of the processors; 0 where the kernel does not tell, or tells of another host.

        To be asked for after a look at the rest: what leaves the lists meanwhile is then in neither, not in both.
        """
        try:
            pages = parse_zoneinfo(self._files.text(ZONEINFO_PATH, pieces=PIECES_MAX) or "")
        except OSError:  # no descriptor is free
            return 0
        # A container may have a meminfo of its own, and still the zones of its host.
        foreign = pages.managed_bytes > self._total_bytes + self._total_bytes // FOREIGN_SHARE
        return 0 if foreign else pages.percpu_bytes

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
        percpu_bytes: Callable[[], int] | None = None,
    ) -> None:
        """read: looks at the host; occupied_bytes: memory that lent slabs really occupy; takes a first sample.

        percpu_bytes: of the host, in lists of the processors; None: not to be counted.
        """
        self._read = read
        self._read_occupied = occupied_bytes
        self._read_percpu = percpu_bytes
        if percpu_bytes is not None:
            percpu_bytes()  # opens the file, and the kernel takes what memory it wants for it, while there is some
        self.promised_bytes: Callable[[], int] = int  # to slabs, filled or not; set by who lends
        self.occupied_bytes = 0  # as of the last look
        self._headroom = Headroom(self._look(), self.occupied_bytes, headroom_bytes=headroom_bytes, beta=beta)

    def sample(self) -> None:
        """Look at the host and move the averages; to be called every second."""
        self._move(Headroom.sample)

    def refresh(self) -> None:
        """Look at the host between samples: before memory is really promised, and when it may be running out."""
        self._move(Headroom.look)

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

    def _move(self, move: Callable[[Headroom, HostMemory, int], None]) -> None:
        """Look, and look more closely when by that something would have to come back.

        Not each time: the kernel locks each zone against all who want memory while it writes a line or more for each
        processor, and a host that is lent to its limit is looked at ten times a second.
        """
        seen = copy(self._headroom)
        move(seen, self._look(), self.occupied_bytes)
        if self._read_percpu is not None and self._falls_short(seen):
            seen = copy(self._headroom)
            move(seen, self._look(self._read_percpu), self.occupied_bytes)
        self._headroom = seen

    def _falls_short(self, seen: Headroom) -> bool:
        """Whether lent memory would have to come back."""
        missing = self.occupied_bytes > 0 and seen.missing_bytes > 0
        return missing or seen.lendable_bytes < self.promised_bytes()

    def _look(self, percpu_bytes: Callable[[], int] | None = None) -> HostMemory:
        """One look at host and slabs together: memory on its way between them is neither lost nor counted twice."""
        before = self._read_occupied()
        for _ in range(TRIES_MAX):
            host = self._read()
            if percpu_bytes is not None:
                host = host.with_percpu(min(percpu_bytes(), self._headroom.percpu_bytes_max))
            self.occupied_bytes = self._read_occupied()
            if abs(self.occupied_bytes - before) <= AGREEING_BYTES:
                break
            before = self.occupied_bytes
        return host
