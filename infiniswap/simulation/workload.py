"""What the machines do: containers that grow and page, the hosts' other programs, loads that come and go.

It is the same for every strategy: nothing here depends on where a slab is. A container whose limit is below what it
wants pages the rest; the swap area that it has touched stays touched. Its page I/O is spread over that by Zipf's law
with a hot end that moves when a phase ends; phases are busy or idle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infiniswap.shared.errors import UserError
from infiniswap.simulation.scenario import GIB, PAGE_BYTES, Scenario

# Peak memory of the five kinds of container, of which there are equally many. Their mean is chosen so that the default
# cluster uses 40.8 % of its memory when nothing is lent, as the paper's does; how they differ is ours.
PEAKS_BYTES = tuple(int(size * GIB) for size in (5.5, 7.5, 9.5, 12.0, 15.5))
LIMITS = ((0.5, 1.0), (0.3, 0.75), (0.2, 0.5))  # share of the containers, what they have of their peak
BASE_BYTES = GIB  # the system's own
FULL_SHARE = 0.92  # of a machine's memory; nobody places a container on it beyond that
GROWTH_S = (30.0, 150.0)  # how long a container takes to grow to its peak
PAGE_IOS_MEDIAN, PAGE_IOS_SIGMA = 1500.0, 1.2  # of a container per second while it is busy, log-normal
PAGE_IOS_MAX = 50_000.0  # per second
IDLE_SHARE = 0.005  # of its page I/O while it is idle
BUSY_S, IDLE_S = 120.0, 60.0  # means
OTHERS_SHARE, OTHERS_S = 0.03, 60.0  # what other programs take: deviation as a share of memory, and its memory in s
LOAD_BYTES_PER_S = GIB  # how fast a load grows on a machine, and goes
MEMORY_SHARE_MAX = 0.99  # of a machine that its own programs can have


@dataclass(slots=True)
class Containers:
    """One entry each container."""

    machine: NDArray[np.int64]
    peak_bytes: NDArray[np.int64]
    limit_bytes: NDArray[np.int64]
    grows_s: NDArray[np.float64]
    page_ios: NDArray[np.float64]  # per second while it is busy


def make_containers(scenario: Scenario, rng: np.random.Generator) -> Containers:
    """Containers at random places where they fit. UserError: they do not fit at all."""
    count = scenario.containers
    peaks = np.resize(np.array(PEAKS_BYTES, dtype=np.int64), count)
    shares = np.repeat([limit for _, limit in LIMITS], _parts(count))
    limits = (peaks * rng.permutation(shares)).astype(np.int64)
    room = np.array([int(FULL_SHARE * scenario.memory_of(m)) - BASE_BYTES for m in range(scenario.machines)])
    machine = np.empty(count, dtype=np.int64)
    for number in rng.permutation(count):  # in no order that favours a kind
        fitting = np.flatnonzero(room >= limits[number])
        if not len(fitting):
            raise UserError(
                f"{count} containers do not fit into {scenario.machines} machines; name fewer or more memory"
            )
        machine[number] = rng.choice(fitting)
        room[machine[number]] -= limits[number]
    page_ios = np.minimum(rng.lognormal(np.log(PAGE_IOS_MEDIAN), PAGE_IOS_SIGMA, count), PAGE_IOS_MAX)
    return Containers(machine, peaks, limits, rng.uniform(*GROWTH_S, count), page_ios)


def _parts(count: int) -> list[int]:
    """How many containers have each limit: count in all."""
    ends = [round(count * sum(share for share, _ in LIMITS[: i + 1])) for i in range(len(LIMITS))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


class Workload:
    """Memory in use by the hosts' own programs, and page I/O of slabs, second by second."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        """rng: for all that happens by chance here."""
        self._scenario = scenario
        self._rng = rng
        self.containers = make_containers(scenario, rng)
        self._memory_bytes = np.array([scenario.memory_of(m) for m in range(scenario.machines)], dtype=np.int64)
        parts = self._slabs_touched(self.containers.peak_bytes)
        # A device's slabs are its containers' one after the other, in the order of their numbers.
        order = np.lexsort((np.arange(len(parts)), self.containers.machine))
        self._first = np.empty(len(parts), dtype=np.int64)
        self._first[order] = np.concatenate([[0], np.cumsum(parts[order])[:-1]])
        self.slabs_of_device = np.bincount(self.containers.machine, weights=parts, minlength=scenario.machines)
        self.slabs_of_device = self.slabs_of_device.astype(np.int64)
        self._parts = parts
        self._weights = [rng.permutation(_zipf(int(part))) for part in parts]
        self._started_s = np.zeros(len(parts))
        self._busy = np.ones(len(parts), dtype=np.bool_)
        self._phase_ends_s = rng.exponential(BUSY_S, len(parts))
        self._touched = np.zeros(len(parts), dtype=np.int64)
        self._running = np.ones(len(parts), dtype=np.bool_)
        self._others = np.zeros(scenario.machines)
        self._loads = [(load, rng.permutation(scenario.machines)[: load.machines]) for load in scenario.loads]
        self._loaded = np.zeros(scenario.machines, dtype=np.int64)
        self._stored_pages = np.zeros(len(parts), dtype=np.int64)  # beyond their limits, the most so far
        self.page_ios = np.zeros(int(parts.sum()))  # per second and slab, the mean
        self.filling = np.zeros(len(self.page_ios))  # pages paged out for the first time in this second

    def _slabs_touched(self, wanted_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """How much of the swap area containers have touched that want so much memory."""
        over = self._over_bytes(wanted_bytes) * self._scenario.spread
        return np.asarray(np.ceil(over / self._scenario.slab_bytes), dtype=np.int64)

    def _over_bytes(self, wanted_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(np.maximum(0, wanted_bytes - self.containers.limit_bytes), dtype=np.int64)

    def stop(self, machine: int) -> None:
        """The machine has failed: its containers are gone."""
        mine = self.containers.machine == machine
        self._running[mine] = False
        self._touched[mine] = self._stored_pages[mine] = 0
        for container in np.flatnonzero(mine):
            self._spread_page_ios(int(container))

    def restart(self, machine: int, now_s: float) -> None:
        """The machine is back: its containers begin anew."""
        mine = self.containers.machine == machine
        self._running[mine] = True
        self._started_s[mine] = now_s

    def second(self, now_s: float) -> NDArray[np.int64]:
        """Go on to now_s: memory that each machine's own programs use then, in bytes. Sets page_ios, filling."""
        grown = np.clip((now_s - self._started_s) / self.containers.grows_s, 0.0, 1.0) * self._running
        wanted = (self.containers.peak_bytes * grown).astype(np.int64)
        self._touch(wanted)
        for container in np.flatnonzero(self._phase_ends_s <= now_s):
            self._next_phase(int(container), now_s)
        resident = np.minimum(wanted, self.containers.limit_bytes)
        own = np.bincount(self.containers.machine, weights=resident, minlength=self._scenario.machines)
        self._others += self._rng.normal(0.0, np.sqrt(2.0 / OTHERS_S), len(self._others)) - self._others / OTHERS_S
        others = OTHERS_SHARE * self._memory_bytes * np.abs(self._others)
        used = BASE_BYTES + own + others + self._load(now_s)
        return np.asarray(np.minimum(used, MEMORY_SHARE_MAX * self._memory_bytes), dtype=np.int64)

    def _touch(self, wanted: NDArray[np.int64]) -> None:
        touched = np.maximum(self._touched, self._slabs_touched(wanted) * self._running)
        for container in np.flatnonzero(touched != self._touched):
            self._touched[container] = touched[container]
            self._spread_page_ios(int(container))
        stored = np.maximum(self._stored_pages, self._over_bytes(wanted) // PAGE_BYTES)
        growing = np.flatnonzero(stored > self._stored_pages)
        self.filling[:] = 0.0
        # What is new goes to the end of what is touched: swap areas are filled in sequence.
        self.filling[self._first[growing] + touched[growing] - 1] = (stored - self._stored_pages)[growing]
        self._stored_pages = stored

    def _next_phase(self, container: int, now_s: float) -> None:
        self._busy[container] = not self._busy[container]
        self._phase_ends_s[container] = now_s + self._rng.exponential(BUSY_S if self._busy[container] else IDLE_S)
        self._weights[container] = self._rng.permutation(self._weights[container])
        self._spread_page_ios(container)

    def _spread_page_ios(self, container: int) -> None:
        first, part = int(self._first[container]), int(self._parts[container])
        touched = int(self._touched[container])
        self.page_ios[first : first + part] = 0.0
        if touched:
            weights = self._weights[container][:touched]
            share = 1.0 if self._busy[container] else IDLE_SHARE
            self.page_ios[first : first + touched] = (
                share * self.containers.page_ios[container] * weights / weights.sum()
            )

    def _load(self, now_s: float) -> NDArray[np.int64]:
        wanted = np.zeros(len(self._loaded), dtype=np.int64)
        for load, machines in self._loads:
            if load.at_s <= now_s < load.at_s + load.for_s:
                wanted[machines] += load.of(self._memory_bytes[machines])
        step = np.clip(wanted - self._loaded, -LOAD_BYTES_PER_S, LOAD_BYTES_PER_S)
        self._loaded += step
        return self._loaded


def _zipf(count: int) -> NDArray[np.float64]:
    """Weights 1, 1/2, 1/3 and so on."""
    return 1.0 / np.arange(1, count + 1)
