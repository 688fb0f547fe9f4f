"""What is simulated: machines, containers, what happens to them and when, and the figures that policies are tried with.

The default is like the paper's cluster (NSDI'17, section 6): 32 machines of 64 GiB, 90 containers at random places,
half of which have all the memory they want, the others three quarters or a half of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from infiniswap.policy.eviction import SPARE
from infiniswap.policy.placement import COOL_DOWN_S
from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import format_size, parse_size

GIB = 1 << 30
PAGE_BYTES = 4096
MACHINES, CONTAINERS = 32, 90
POLICIES = ("hot", "eager")  # of a device: slabs are mapped once they are hot, or when they are first written to
HOT_PAGE_IOS = 20.0  # per second; the default of a device and of the paper
BACK_AFTER_S = 60  # a machine that failed is there again, unless something else is said
LOAD_FOR_S = 120
SEED_MAX = 2**32 - 1
MACHINES_MAX = 4096
CONTAINERS_PER_MACHINE_MAX = 64
SLABS_MAX = 2_000_000  # of all devices together: some 100 bytes each
DURATION_S_MAX = 86_400
MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = GIB, 64 << 40
SLAB_BYTES_MIN, SLAB_BYTES_MAX = 1 << 20, GIB
EVENTS_MAX = 1000
RUNS_MAX = 1000


class Strategy(StrEnum):
    """How a device chooses a donor for a slab."""

    ONE = "one"  # the first donor at random that has room; the original's code as it is shipped asks one
    TWO_FREE = "two-free"  # of one donor that holds slabs of ours and one that holds none, the one with more free bytes
    TWO_SHARE = "two-share"  # of the same two, the one that has lent the smaller share of what it can lend
    TWO_HOST = "two-host"  # of the same two, the one whose host has less of its memory in use
    MOST_FREE = (
        "most-free"  # all are asked, and come in the order of whole GiB free; the original's code, told to ask all
    )


@dataclass(frozen=True, slots=True)
class Failure:
    """So many machines, chosen at random, fail at at_s and are back after back_after_s, empty."""

    at_s: int
    machines: int
    back_after_s: int = BACK_AFTER_S


@dataclass(frozen=True, slots=True)
class Load:
    """The programs of so many machines, chosen at random, take more memory from at_s on, for for_s.

    size_bytes: how much; percent: or what share of their memory.
    """

    at_s: int
    machines: int
    size_bytes: int = 0
    percent: float = 0.0
    for_s: int = LOAD_FOR_S

    def of(self, memory_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What it takes of machines with so much memory, bytes."""
        return self.size_bytes + (memory_bytes * self.percent / 100.0).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One cluster, and what it lives through. Sizes in bytes; memory_bytes are the machines', in turn."""

    machines: int = MACHINES
    memory_bytes: tuple[int, ...] = (64 * GIB,)
    containers: int = CONTAINERS
    slab_bytes: int = GIB
    spread: float = 1.0
    duration_s: int = 600
    seed: int = 1
    failures: tuple[Failure, ...] = ()
    loads: tuple[Load, ...] = ()
    spare: float = SPARE
    cool_down_s: float = COOL_DOWN_S
    cold_page_ios: float | None = None
    headroom_percent: float = 10.0
    policy: str = "hot"
    rebalance: bool = True
    move: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated: UserError."""
        _between("--machines", self.machines, 2, MACHINES_MAX)
        _between("--containers", self.containers, 1, self.machines * CONTAINERS_PER_MACHINE_MAX)
        _between("--duration", self.duration_s, 1, DURATION_S_MAX)
        _between("--seed", self.seed, 0, SEED_MAX)
        _between("--spread", self.spread, 1.0, 16.0)
        _between("--spare", self.spare, 0.0, 100.0)
        _between("--cool-down", self.cool_down_s, 0.0, 3600.0)
        _between("--headroom", self.headroom_percent, 1.0, 90.0)
        if self.policy not in POLICIES:
            raise UserError(f"--policy '{self.policy}' must be one of {', '.join(POLICIES)}")
        if self.cold_page_ios is not None and not 0 < self.cold_page_ios < HOT_PAGE_IOS:
            raise UserError(f"--cold {self.cold_page_ios:g} must be above 0 and below {HOT_PAGE_IOS:g}")
        for size in self.memory_bytes:
            if not MEMORY_BYTES_MIN <= size <= MEMORY_BYTES_MAX:
                low, high = format_size(MEMORY_BYTES_MIN), format_size(MEMORY_BYTES_MAX)
                raise UserError(f"--memory {format_size(size)} must be between {low} and {high}")
        if not SLAB_BYTES_MIN <= self.slab_bytes <= SLAB_BYTES_MAX or self.slab_bytes & (self.slab_bytes - 1):
            low, high = format_size(SLAB_BYTES_MIN), format_size(SLAB_BYTES_MAX)
            raise UserError(f"--slab {format_size(self.slab_bytes)} must be a power of two between {low} and {high}")
        self._check_events()

    def _check_events(self) -> None:
        for option, events in (("--fail", self.failures), ("--load", self.loads)):
            if len(events) > EVENTS_MAX:
                raise UserError(f"{option} is given {len(events)} times, more than {EVENTS_MAX}")
            for event in events:
                _between(f"{option}: SECOND", event.at_s, 0, self.duration_s)
                _between(f"{option}: MACHINES", event.machines, 1, self.machines)
        if any(failure.machines > self.machines - 2 for failure in self.failures):
            raise UserError(f"--fail must leave two machines of {self.machines}")

    def memory_of(self, machine: int) -> int:
        """Bytes of machine."""
        return self.memory_bytes[machine % len(self.memory_bytes)]


def _between(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{option} {value:g} must be between {low:g} and {high:g}")


def _whole(option: str, text: str, what: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise UserError(f"{option}: {what} '{text}' is not a whole number")
    return int(text)


def parse_failure(text: str) -> Failure:
    """SECOND:MACHINES[:BACK_AFTER]; UserError."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise UserError(f"--fail '{text}' must be SECOND:MACHINES or SECOND:MACHINES:SECONDS, for example 200:2:60")
    numbers = [_whole("--fail", *pair) for pair in zip(parts, ("SECOND", "MACHINES", "SECONDS"), strict=False)]
    return Failure(*numbers)


def parse_load(text: str) -> Load:
    """SECOND:MACHINES:SIZE[:SECONDS], where SIZE may be a share of a machine's memory such as 25%; UserError."""
    parts = text.split(":")
    if len(parts) not in (3, 4):
        raise UserError(f"--load '{text}' must be SECOND:MACHINES:SIZE or SECOND:MACHINES:SIZE:SECONDS")
    at_s, machines = _whole("--load", parts[0], "SECOND"), _whole("--load", parts[1], "MACHINES")
    for_s = _whole("--load", parts[3], "SECONDS") if len(parts) == 4 else LOAD_FOR_S
    if not parts[2].endswith("%"):
        return Load(at_s, machines, size_bytes=parse_size(parts[2]), for_s=for_s)
    percent = _whole("--load", parts[2].removesuffix("%"), "SIZE in percent")
    _between("--load: SIZE in percent", percent, 1, 100)
    return Load(at_s, machines, percent=float(percent), for_s=for_s)


def parse_memory(text: str) -> tuple[int, ...]:
    """Sizes separated by commas; UserError."""
    return tuple(parse_size(part) for part in text.split(","))


def parse_strategies(text: str) -> tuple[Strategy, ...]:
    """Names separated by commas, each once; UserError that lists them."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in set(Strategy)]
    if unknown:
        raise UserError(f"no strategy '{unknown[0]}'; there are {', '.join(Strategy)}")
    return tuple(dict.fromkeys(Strategy(name) for name in names))


def scaled_containers(machines: int) -> int:
    """As many containers a machine as in the paper, rounded."""
    return max(1, round(machines * CONTAINERS / MACHINES))
