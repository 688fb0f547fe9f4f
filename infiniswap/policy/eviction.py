"""Which slabs a donor takes back: of E + E' sampled ones the E least active (paper section 4.4, "batch eviction").

Pure decisions over who holds what: whom to ask, what the answers mean. Owners are whatever can be a key: the daemon's
leases by id, the simulator's devices by number.

Fair between owners: each is sampled in proportion to what it holds, one slab more or less. So with E' = E nobody loses
more than twice its share of a batch, rounded up, whatever the others claim of their slabs' activity; of a very small
batch, no more than its share of the sample's minimum. Between slabs that are as inactive as each other, the owner pays
that has lost least of what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import Generic, TypeVar

SPARE = 1.0  # E' / E: the paper's choice, and what the bound of fairness above rests on
SAMPLE_SLABS_MIN = 8  # so that a batch of one or two has a choice too: of two hot slabs the less hot one is still hot
# Page I/O per second below which slabs count as equally cold: the moving average never quite ends at zero.
IDLE_PAGE_IOS = 1.0
# More page I/O per second than any network carries for one slab: who claims more has said no more than that.
ACTIVITY_MAX = 1e8

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Holding(Generic[Owner]):
    """What one owner holds and may be asked to give back: not what is on its way already."""

    owner: Owner
    slabs: Sequence[int]
    slab_bytes: int


def sample(
    holdings: Sequence[Holding[Owner]], wanted_bytes: int, rng: Random, *, spare: float = SPARE
) -> dict[Owner, list[int]]:
    """The E + E' slabs whose owners are to be asked, of at least wanted_bytes where there are so many.

    Random, each owner's number within one of its share (systematic sampling, the owners in a random order).
    """
    total_bytes = sum(len(holding.slabs) * holding.slab_bytes for holding in holdings)
    if total_bytes <= 0 or wanted_bytes <= 0:
        return {}
    slabs = sum(len(holding.slabs) for holding in holdings)
    share = min(1.0, max(wanted_bytes * (1.0 + spare) / total_bytes, SAMPLE_SLABS_MIN / slabs))
    order = [holding for holding in holdings if holding.slabs]
    rng.shuffle(order)
    counts, due = [], rng.random()
    for holding in order:
        before = math.floor(due)
        due += share * len(holding.slabs)
        counts.append(min(len(holding.slabs), math.floor(due) - before))
    _top_up(order, counts, wanted_bytes)
    return {
        holding.owner: rng.sample(holding.slabs, count) for holding, count in zip(order, counts, strict=True) if count
    }


def _top_up(order: Sequence[Holding[Owner]], counts: list[int], wanted_bytes: int) -> None:
    """Raise counts in turn until they come to wanted_bytes: rounding may have left too little."""
    sampled_bytes = sum(count * holding.slab_bytes for count, holding in zip(counts, order, strict=True))
    raised = True
    while sampled_bytes < wanted_bytes and raised:
        raised = False
        for number, holding in enumerate(order):
            if sampled_bytes < wanted_bytes and counts[number] < len(holding.slabs):
                counts[number] += 1
                sampled_bytes += holding.slab_bytes
                raised = True


def least_active(
    holdings: Sequence[Holding[Owner]],
    sampled: Mapping[Owner, Sequence[int]],
    activity: Mapping[Owner, Mapping[int, float]],
    wanted_bytes: int,
    rng: Random,
) -> list[tuple[Owner, int]]:
    """The slabs to take, least active first, of at least wanted_bytes where the sample has so many.

    activity: page I/O per second, as the owners answered; no answer, or none about a slab, counts as cold.
    """
    by_owner = {holding.owner: holding for holding in holdings}
    chosen: list[tuple[Owner, int]] = []
    chosen_bytes = 0
    for owner, slab in _coldest_first(by_owner, sampled, activity, rng):
        if chosen_bytes >= wanted_bytes:
            break
        chosen.append((owner, slab))
        chosen_bytes += by_owner[owner].slab_bytes
    return chosen


def _coldest_first(
    by_owner: Mapping[Owner, Holding[Owner]],
    sampled: Mapping[Owner, Sequence[int]],
    activity: Mapping[Owner, Mapping[int, float]],
    rng: Random,
) -> Iterator[tuple[Owner, int]]:
    rated = [
        (_rated(activity.get(owner, {}).get(slab)), owner, slab)
        for owner, slabs in sampled.items()
        if owner in by_owner  # its lease may have ended while others were asked
        for slab in slabs
    ]
    rng.shuffle(rated)
    rated.sort(key=lambda rating: rating[0])
    lost: dict[Owner, int] = {}
    for _, equals in groupby(rated, key=lambda rating: rating[0]):
        turns: list[tuple[float, Owner, int]] = []
        for _, owner, slab in equals:
            lost[owner] = lost.get(owner, 0) + 1
            turns.append((lost[owner] / max(1, len(by_owner[owner].slabs)), owner, slab))
        for _, owner, slab in sorted(turns, key=lambda turn: turn[0]):
            yield owner, slab


def _rated(activity: float | None) -> float:
    """What an answer counts for."""
    if activity is None or not activity >= IDLE_PAGE_IOS:  # not a number is no answer
        return 0.0
    return min(activity, ACTIVITY_MAX)
