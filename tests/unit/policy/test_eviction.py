"""Which slabs a donor takes back: the least active of a sample, fair between owners, whatever they claim."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.policy.eviction import ACTIVITY_MAX, SAMPLE_SLABS_MIN, Holding, least_active, sample

MIB = 1 << 20


def held(owner: str, slabs: int, slab_mib: int = 1) -> Holding[str]:
    """Slabs 0 to slabs - 1 of owner."""
    return Holding(owner, range(slabs), slab_mib * MIB)


@st.composite
def clusters(draw: st.DrawFn) -> list[Holding[str]]:
    """Some owners with slabs of their own size."""
    owners = draw(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 4, 64])), min_size=1, max_size=8))
    return [held(f"o{number}", slabs, size) for number, (slabs, size) in enumerate(owners)]


@given(clusters(), st.integers(0, 3000), st.integers(0, 1 << 30))
def test_a_sample_is_enough_and_no_slab_twice(holdings: list[Holding[str]], wanted_mib: int, seed: int) -> None:
    """At least what is wanted, or all there is; only slabs that are held, each once."""
    picked = sample(holdings, wanted_mib * MIB, Random(seed))
    by_owner = {holding.owner: holding for holding in holdings}
    for owner, slabs in picked.items():
        assert slabs
        assert len(set(slabs)) == len(slabs)
        assert set(slabs) <= set(by_owner[owner].slabs)
    picked_bytes = sum(len(slabs) * by_owner[owner].slab_bytes for owner, slabs in picked.items())
    there_bytes = sum(len(holding.slabs) * holding.slab_bytes for holding in holdings)
    assert picked_bytes >= min(wanted_mib * MIB, there_bytes)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 60), st.integers(0, 1 << 30))
def test_nobody_loses_more_than_twice_its_share(slabs: list[int], wanted: int, seed: int) -> None:
    """Of slabs of one size, rounded up, though all the others claim that theirs are the hottest in the world."""
    holdings = [held(f"o{number}", count) for number, count in enumerate(slabs)]
    rng = Random(seed)
    picked = sample(holdings, wanted * MIB, rng)
    claims = {owner: dict.fromkeys(mine, math.inf) for owner, mine in picked.items() if owner != "o0"}
    lost = Counter(owner for owner, _ in least_active(holdings, picked, claims, wanted * MIB, rng))
    share = slabs[0] / max(1, sum(slabs))
    assert lost["o0"] <= math.ceil(max(2 * wanted, SAMPLE_SLABS_MIN) * share)
    assert lost.total() == min(wanted, sum(slabs))


@given(clusters(), st.integers(1, 3000), st.integers(0, 1 << 30), st.data())
def test_the_least_active_go_first(
    holdings: list[Holding[str]], wanted_mib: int, seed: int, data: st.DataObject
) -> None:
    """Nothing taken is more active than anything of the sample that stays; in order, and no more than needed."""
    rng = Random(seed)
    picked = sample(holdings, wanted_mib * MIB, rng)
    rates = st.one_of(st.none(), st.floats(0, 1e6))
    activity = {
        owner: {slab: rate for slab in slabs if (rate := data.draw(rates)) is not None}
        for owner, slabs in picked.items()
    }
    taken = least_active(holdings, picked, activity, wanted_mib * MIB, rng)
    rated = [activity[owner].get(slab, 0.0) for owner, slab in taken]
    kept = [
        activity[owner].get(slab, 0.0)
        for owner, slabs in picked.items()
        for slab in slabs
        if (owner, slab) not in taken
    ]
    assert len(set(taken)) == len(taken)
    assert all(now <= max(1.0, then) for now, then in itertools.pairwise(rated))
    assert not taken or not kept or max(rated) <= max(1.0, min(kept))
    sizes = {holding.owner: holding.slab_bytes for holding in holdings}
    assert not taken or sum(sizes[owner] for owner, _ in taken[:-1]) < wanted_mib * MIB


@pytest.mark.parametrize("hot", [1, 5, 10])
def test_hot_slabs_stay(hot: int) -> None:
    """Of 2000 batches of two slabs out of twenty, at least 95 % take no hot one, though half of all are hot."""
    clean = 0
    for seed in range(2000):
        rng = Random(seed)
        holdings = [held(f"o{number}", 5) for number in range(4)]
        hot_ones = set(rng.sample([(h.owner, slab) for h in holdings for slab in h.slabs], hot))
        picked = sample(holdings, 2 * MIB, rng)
        activity = {
            owner: {slab: 500.0 if (owner, slab) in hot_ones else rng.uniform(0, 5) for slab in slabs}
            for owner, slabs in picked.items()
        }
        clean += not hot_ones & set(least_active(holdings, picked, activity, 2 * MIB, rng))
    assert clean >= 0.95 * 2000


def test_no_answer_counts_as_cold() -> None:
    """The owner that says nothing pays before the one whose slabs are in use, and what is no number says nothing."""
    holdings = [held("silent", 4), held("busy", 4), held("odd", 4)]
    picked = {"silent": [0], "busy": [0], "odd": [0]}
    activity = {"busy": {0: 30.0}, "odd": {0: math.nan}}
    taken = least_active(holdings, picked, activity, 2 * MIB, Random(1))
    assert {owner for owner, _ in taken} == {"silent", "odd"}


def test_between_equals_who_has_lost_least_pays() -> None:
    """Idle owners lose in proportion to what they hold."""
    holdings = [held("large", 30), held("small", 10)]
    picked = {"large": list(range(30)), "small": list(range(10))}
    taken = Counter(owner for owner, _ in least_active(holdings, picked, {}, 8 * MIB, Random(7)))
    assert taken == {"large": 6, "small": 2}


def test_claims_have_a_bound() -> None:
    """Who claims more than any network carries is no hotter than others who do, and luck decides between them."""
    holdings = [held("liar", 10), held("busy", 10)]
    picked = {"liar": [0], "busy": [0]}
    activity = {"liar": {0: math.inf}, "busy": {0: ACTIVITY_MAX}}
    firsts = {least_active(holdings, picked, activity, MIB, Random(seed))[0][0] for seed in range(50)}
    assert firsts == {"liar", "busy"}


def test_an_owner_that_left_is_passed_over() -> None:
    """Its lease ended while it was asked."""
    assert least_active([held("here", 1)], {"gone": [0], "here": [0]}, {}, 9 * MIB, Random(1)) == [("here", 0)]


def test_nothing_wanted_or_nothing_there() -> None:
    """Then nobody is asked."""
    assert sample([held("o", 4)], 0, Random(1)) == {}
    assert sample([held("o", 0)], MIB, Random(1)) == {}
    assert sample([], MIB, Random(1)) == {}
