"""How much memory a host may lend without running short itself: arithmetic on what was measured, and nothing else.

Kept free is HeadRoom (the paper, section 4.4). What counts is what the host would have available if nothing were lent
(available plus what lent slabs occupy), so that slabs that fill up change nothing: they were promised before.

Shrinking is fast and growing slow. A fall of that figure counts at once; a rise comes in with an EMA of beta a second.
New slabs keep an eighth of the headroom more than slabs that are lent already, so that a host that stands at the limit
does not lend a slab and want it back in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 1 << 20
BETA = 0.2  # of the EMA, a second; the paper's
PRESSURE_PERCENT_HIGH = 10.0  # of the last 10 s in which some task waited for memory
GROWTH_SHARE = 8  # new slabs leave 1 / GROWTH_SHARE of the headroom more than those that are lent
SWAP_BETA = 0.01  # a second: what went to swap is forgotten within minutes, for it may be of no use to anybody
PERCPU_SHARE = 4  # at most one part in so many of the headroom may lie in lists of the processors
AUTO_UNIT_BYTES = 64 * MIB  # --memory auto is a multiple of the default slab where the host is large enough


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """A limit above the daemon: what is left below it, and how much shared memory is charged to it.

    Lent memory is charged to the control group of who touched it first, which after a restart may be another one.
    """

    limit_bytes: int
    available_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class HostMemory:
    """One look at the host. total and available are the control group's where that is tighter.

    pressure_percent is PSI's "some avg10", None where the kernel does not tell. percpu_bytes: of available_bytes, what
    lies in the processors' lists of free pages; 0 as well when that was not looked at.
    """

    total_bytes: int
    available_bytes: int
    pressure_percent: float | None = None
    swap_used_bytes: int = 0
    groups: tuple[GroupMemory, ...] = ()
    percpu_bytes: int = 0

    def with_percpu(self, percpu_bytes: int) -> HostMemory:
        """The same, with what lies in the processors' lists counted as available, as far as the groups allow."""
        limits = [group.available_bytes for group in self.groups]
        gained_bytes = max(0, min([self.available_bytes + percpu_bytes, *limits]) - self.available_bytes)
        return replace(self, available_bytes=self.available_bytes + gained_bytes, percpu_bytes=gained_bytes)

    def supply_bytes(self, occupied_bytes: int) -> int:
        """Memory that would be available with nothing lent; occupied_bytes: what lent slabs occupy."""
        shares = [group.available_bytes + min(occupied_bytes, group.shared_bytes) for group in self.groups]
        return min([self.available_bytes + occupied_bytes, *shares])


def default_headroom_bytes(total_bytes: int) -> int:
    """Memory that stays the host's own: the larger of 10 % and 512 MiB."""
    return max(total_bytes // 10, 512 * MIB)


def auto_memory_bytes(total_bytes: int, headroom_bytes: int) -> int:
    """What --memory auto lends at most: all that the host has less its headroom; 0: it is too small to lend any."""
    spare_bytes = max(0, total_bytes - headroom_bytes)
    unit_bytes = AUTO_UNIT_BYTES if spare_bytes >= AUTO_UNIT_BYTES else MIB
    return spare_bytes // unit_bytes * unit_bytes


class Headroom:
    """What may be lent, after each look at the host."""

    def __init__(
        self, host: HostMemory, occupied_bytes: int, *, headroom_bytes: int | None = None, beta: float = BETA
    ) -> None:
        """host, occupied_bytes: the first look. headroom_bytes: None for the default."""
        if headroom_bytes is None:
            headroom_bytes = default_headroom_bytes(host.total_bytes)
        self.headroom_bytes = headroom_bytes
        self.host = host
        self._beta = beta
        self._swap_usual_bytes = float(host.swap_used_bytes)
        self._pressed_bytes = 0.0
        self._smoothed_bytes = float(host.supply_bytes(occupied_bytes))
        self._latest_bytes = 0.0
        self.look(host, occupied_bytes)

    def look(self, host: HostMemory, occupied_bytes: int) -> None:
        """Between two samples: what has become worse counts at once."""
        if self.host.percpu_bytes == 0:
            self._smoothed_bytes += host.percpu_bytes  # it was there before it was counted: that is no rise
        self.host = host
        self._swap_usual_bytes = min(self._swap_usual_bytes, float(host.swap_used_bytes))
        # What the host's programs had to put out since then they will want back.
        put_out_bytes = host.swap_used_bytes - self._swap_usual_bytes
        self._latest_bytes = max(0.0, host.supply_bytes(occupied_bytes) - put_out_bytes)
        self._smoothed_bytes = min(self._smoothed_bytes, self._latest_bytes)
        if (host.pressure_percent or 0.0) >= PRESSURE_PERCENT_HIGH:
            self._pressed_bytes = float(self.headroom_bytes)

    def sample(self, host: HostMemory, occupied_bytes: int) -> None:
        """Each second: what has become better counts a little more."""
        self._swap_usual_bytes += SWAP_BETA * (host.swap_used_bytes - self._swap_usual_bytes)
        self._pressed_bytes *= 1.0 - self._beta
        self.look(host, occupied_bytes)
        self._smoothed_bytes += self._beta * (self._latest_bytes - self._smoothed_bytes)

    @property
    def smoothed_bytes(self) -> int:
        """Memory the host would have available with nothing lent, as far as it is believed."""
        return int(self._smoothed_bytes)

    @property
    def headroom_now_bytes(self) -> int:
        """Headroom in force: doubled while tasks of this host wait for memory, and shrinking back afterwards."""
        return self.headroom_bytes + int(self._pressed_bytes)

    @property
    def lendable_bytes(self) -> int:
        """Memory that slabs may take in all: what is lent beyond it is to come back."""
        return max(0, self.smoothed_bytes - self.headroom_now_bytes)

    @property
    def growable_bytes(self) -> int:
        """Memory that slabs may take in all when another one is lent; on what lies in lists nothing new is lent."""
        return max(0, self.lendable_bytes - self.headroom_bytes // GROWTH_SHARE - self.host.percpu_bytes)

    @property
    def percpu_bytes_max(self) -> int:
        """So much in lists of the processors counts at most.

        The kernel gives such pages to a program on another processor only while it reclaims, and not before it has
        found something else to reclaim: most of the headroom has to be had without.
        """
        return self.headroom_bytes // PERCPU_SHARE

    @property
    def hard_pressed(self) -> bool:
        """Below half of its headroom the host cannot wait for owners."""
        return self.host.available_bytes < self.headroom_bytes // 2

    @property
    def missing_bytes(self) -> int:
        """Memory that would have to be freed now for the headroom to be whole."""
        return max(0, self.headroom_bytes - self.host.available_bytes)
