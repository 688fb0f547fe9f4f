"""Who holds which slab: the tables of a simulated cluster, and what must hold of them.

A slab is nowhere (its pages are on the backup), with one donor, or on its way from one donor to another or to the
backup; then it takes memory at both ends. Everything is numbered: machines 0 … M - 1, slabs 0 … S - 1, and the slabs of
machine m's device are first[m] … first[m + 1] - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infiniswap.policy.mapping import Mask

NOBODY = -1


class Cluster:
    """Machines with their memory, slabs with their places. At the start nothing is lent."""

    def __init__(self, memory_bytes: Sequence[int], slabs: Sequence[int], slab_bytes: int) -> None:
        """memory_bytes: of each machine; slabs: of each machine's device."""
        self.machines = len(memory_bytes)
        self.slab_bytes = slab_bytes
        self.memory_bytes = np.array(memory_bytes, dtype=np.int64)
        self.own_bytes = np.zeros(self.machines, dtype=np.int64)  # what the host itself uses
        self.up = np.ones(self.machines, dtype=np.bool_)
        self.lent = np.zeros(self.machines, dtype=np.int64)  # slabs, with those on their way to or from it
        self.leaving = np.zeros(self.machines, dtype=np.int64)  # slabs that will be gone from it
        self.first = np.concatenate([[0], np.cumsum(slabs, dtype=np.int64)])
        self.slabs = int(self.first[-1])
        self.owner = np.repeat(np.arange(self.machines), slabs)
        self.holder = np.full(self.slabs, NOBODY, dtype=np.int64)
        self.target = np.full(self.slabs, NOBODY, dtype=np.int64)
        self.is_leaving = np.zeros(self.slabs, dtype=np.bool_)
        self.since_s = np.zeros(self.slabs)
        self.generation = np.zeros(self.slabs, dtype=np.int64)  # of the place: what was begun before does not count
        self.by_donor: list[dict[int, set[int]]] = [{} for _ in memory_bytes]  # donor -> device -> slabs
        self.by_device: list[dict[int, set[int]]] = [{} for _ in memory_bytes]  # device -> donor -> numbers in it

    def of_device(self, device: int) -> slice:
        """Its slabs."""
        return slice(int(self.first[device]), int(self.first[device + 1]))

    @property
    def unmapped(self) -> Mask:
        """Slabs that are nowhere."""
        nowhere: Mask = self.holder == NOBODY
        return nowhere

    @property
    def mapped(self) -> Mask:
        """Slabs that are with a donor and stay there."""
        return ~self.unmapped & ~self.is_leaving

    @property
    def used_bytes(self) -> NDArray[np.int64]:
        """Memory in use of each machine, lent memory as if it were filled."""
        return self.own_bytes + self.lent * self.slab_bytes

    def available_bytes(self, machine: int) -> int:
        """What the machine has left."""
        used = int(self.own_bytes[machine]) + int(self.lent[machine]) * self.slab_bytes
        return int(self.memory_bytes[machine]) - used

    def take(self, slab: int, donor: int, now_s: float) -> None:
        """A slab that is nowhere goes to donor."""
        if self.holder[slab] != NOBODY:
            raise ValueError(f"slab {slab} is with machine {self.holder[slab]} already")
        self._put(slab, donor, now_s)
        self.lent[donor] += 1

    def leave(self, slab: int, target: int = NOBODY) -> int:
        """A slab that stays is to go, to target or to the backup. Its generation, which ends with this journey."""
        if self.holder[slab] == NOBODY or self.is_leaving[slab]:
            raise ValueError(f"slab {slab} is nowhere or leaves already")
        self.is_leaving[slab] = True
        self.leaving[self.holder[slab]] += 1
        if target != NOBODY:
            self.target[slab] = target
            self.lent[target] += 1
        return int(self.generation[slab])

    def arrive(self, slab: int, now_s: float) -> int:
        """The journey of a slab is over; where it is now."""
        target = int(self.target[slab])
        self.target[slab] = NOBODY
        self._remove(slab)
        if target != NOBODY:
            self._put(slab, target, now_s)
        return target

    def lose(self, slab: int) -> None:
        """The slab is nowhere from now on, wherever it was and wanted to go."""
        if self.target[slab] != NOBODY:
            self.lent[self.target[slab]] -= 1
            self.target[slab] = NOBODY
        self._remove(slab)

    def give_up_target(self, slab: int) -> None:
        """Where the slab was to go is no more: its journey ends at the backup."""
        self.lent[self.target[slab]] -= 1
        self.target[slab] = NOBODY

    def _put(self, slab: int, donor: int, now_s: float) -> None:
        device = int(self.owner[slab])
        self.holder[slab] = donor
        self.since_s[slab] = now_s
        self.generation[slab] += 1
        self.by_donor[donor].setdefault(device, set()).add(slab)
        self.by_device[device].setdefault(donor, set()).add(slab - int(self.first[device]))

    def _remove(self, slab: int) -> None:
        donor, device = int(self.holder[slab]), int(self.owner[slab])
        if donor == NOBODY:
            raise ValueError(f"slab {slab} is nowhere")
        if self.is_leaving[slab]:
            self.is_leaving[slab] = False
            self.leaving[donor] -= 1
        self.holder[slab] = NOBODY
        self.generation[slab] += 1
        self.lent[donor] -= 1
        for table, key, number in (
            (self.by_donor[donor], device, slab),
            (self.by_device[device], donor, slab - int(self.first[device])),
        ):
            table[key].discard(number)
            if not table[key]:
                del table[key]

    def contradictions(self) -> list[str]:
        """What does not hold of the tables, in words; empty as long as all is well."""
        held = np.bincount(self.holder[self.holder != NOBODY], minlength=self.machines)
        coming = np.bincount(self.target[self.target != NOBODY], minlength=self.machines)
        going = np.bincount(self.holder[self.is_leaving], minlength=self.machines)
        holds = {
            "a slab is lent twice, or counted and not there": (held + coming == self.lent).all(),
            "more memory is in use than there is": (self.used_bytes <= self.memory_bytes).all(),
            "a machine that is down holds a slab": (self.lent[~self.up] == 0).all(),
            "a machine holds a slab of its own": not (self.holder == self.owner).any(),
            "a slab leaves that is nowhere": not (self.is_leaving & self.unmapped).any(),
            "a slab is meant for a place and does not leave": not ((self.target != NOBODY) & ~self.is_leaving).any(),
            "the count of slabs that leave is wrong": (going == self.leaving).all(),
            "the donors' tables are wrong": self._table_adds_up(self.by_donor, donors=True),
            "the devices' tables are wrong": self._table_adds_up(self.by_device, donors=False),
        }
        return [what for what, well in holds.items() if not well]

    def _table_adds_up(self, table: list[dict[int, set[int]]], *, donors: bool) -> bool:
        there = 0
        for key, parts in enumerate(table):
            for other, numbers in parts.items():
                donor, device = (key, other) if donors else (other, key)
                base = 0 if donors else int(self.first[device])
                there += len(numbers)
                if not all(self.holder[base + n] == donor and self.owner[base + n] == device for n in numbers):
                    return False
        return there == int((self.holder != NOBODY).sum())
