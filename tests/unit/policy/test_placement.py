"""Placement by the power of two choices: one peer that holds slabs and one that holds none are asked, more memory wins.

Every usable peer gets its turn exactly once, and a peer that failed is left alone for a while but not for ever.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.policy.placement import (
    COOL_DOWN_S,
    COOL_DOWN_S_MAX,
    Candidate,
    CoolDown,
    Offer,
    OnTheWay,
    pairs,
    ranked,
)
from tests.support.clock import FakeClock

CANDIDATES = st.lists(st.integers(0, 5), max_size=20).map(
    lambda held: [Candidate(slot, slabs) for slot, slabs in enumerate(held)]
)


@settings(deadline=None)  # a busy machine is no failure
@given(CANDIDATES, st.integers())
def test_every_candidate_is_asked_exactly_once(candidates: list[Candidate], seed: int) -> None:
    """No peer is left out and none asked twice."""
    asked = [candidate for pair in pairs(candidates, Random(seed)) for candidate in pair]
    assert sorted(asked, key=lambda c: c.slot) == candidates


@settings(deadline=None)  # a busy machine is no failure
@given(CANDIDATES, st.integers())
def test_pairs_mix_holders_and_others_while_both_last(candidates: list[Candidate], seed: int) -> None:
    """One of each kind, then two of the kind that is left."""
    left = list(candidates)
    for pair in pairs(candidates, Random(seed)):
        holders = [c for c in left if c.slabs]
        others = [c for c in left if not c.slabs]
        assert len(pair) == min(2, len(left))
        if holders and others:
            assert {bool(c.slabs) for c in pair} == {True, False}
        left = [c for c in left if c not in pair]


def test_which_peer_is_asked_is_random() -> None:
    """Every peer is in the first pair now and then."""
    candidates = [Candidate(slot, int(slot < 4)) for slot in range(8)]
    first = {candidate.slot for seed in range(200) for candidate in next(pairs(candidates, Random(seed)))}
    assert first == set(range(8))


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 34)), max_size=8), st.integers(1, 1 << 30))
def test_best_offer_first_and_none_too_small(peers: list[tuple[int, int]], slab_bytes: int) -> None:
    """Sorted by free bytes, without those that cannot hold a slab."""
    offers = [Offer(slot, slabs, free) for slot, (slabs, free) in enumerate(peers)]
    order = ranked(offers, slab_bytes)
    assert {offer.slot for offer in order} == {offer.slot for offer in offers if offer.free_bytes >= slab_bytes}
    assert [offer.free_bytes for offer in order] == sorted((offer.free_bytes for offer in order), reverse=True)


def test_equal_offers_spread_slabs() -> None:
    """Between equals, the peer with fewer slabs of ours."""
    assert [offer.slot for offer in ranked([Offer(0, 3, 100), Offer(1, 0, 100)], 50)] == [1, 0]


def test_two_choices_balance_better_than_one() -> None:
    """The point of asking two."""

    def spread(choices: int) -> int:
        rng = Random(7)
        free = [1000] * 30
        held = [0] * 30
        for _ in range(3000):
            candidates = [Candidate(slot, held[slot]) for slot in range(30)]
            pair = next(pairs(candidates, rng))[:choices]
            best = ranked([Offer(c.slot, c.slabs, free[c.slot]) for c in pair], 1)[0]
            free[best.slot] -= 1
            held[best.slot] += 1
        return max(held) - min(held)

    assert spread(2) < spread(1) / 2


def test_choices_at_once_are_told_of_each_other() -> None:
    """Eight choices on the same figures of two equal peers: four each, as if they had been made in turn."""
    on_the_way = OnTheWay()
    offers = [Offer(slot, 0, 1000, on_the_way.asked(slot)) for slot in range(2)]
    chosen = []
    for _ in range(8):
        best = ranked(offers, 10, on_the_way)[0]
        on_the_way.begin(best.slot)
        chosen.append(best.slot)
    assert sorted(chosen) == [0] * 4 + [1] * 4


def test_what_is_on_its_way_weighs_as_much_as_what_is_there() -> None:
    """A peer with three slabs more of room stays the better one until three are on their way to it."""
    on_the_way = OnTheWay()
    offers = [Offer(0, 5, 100), Offer(1, 5, 130)]
    for _ in range(3):
        assert ranked(offers, 10, on_the_way)[0].slot == 1
        on_the_way.begin(1)
    assert ranked(offers, 10, on_the_way)[0].slot == 0
    assert {offer.slot for offer in ranked([Offer(1, 0, 10)], 10, on_the_way)} == {1}, "whether it fits the peer says"


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from(["ask", "begin", "take", "refuse"]), max_size=40))
def test_an_offer_knows_what_was_taken_before_it(steps: list[str]) -> None:
    """Against a count by hand: under way, or taken since the peer was asked; refused ones count for nobody."""
    on_the_way = OnTheWay()
    under_way, taken_since = 0, 0
    offer = Offer(0, 0, 100, on_the_way.asked(0))
    for step in steps:
        if step == "ask":
            offer = Offer(0, 0, 100, on_the_way.asked(0))
            taken_since = 0
        elif step == "begin":
            on_the_way.begin(0)
            under_way += 1
        elif under_way:
            on_the_way.end(0, taken=step == "take")
            under_way -= 1
            taken_since += step == "take"
        assert on_the_way.unknown_to(offer) == under_way + taken_since
        assert on_the_way.unknown_to(Offer(1, 0, 100)) == 0


def test_cool_down_ends_and_grows() -> None:
    """Longer after each failure, and over in the end."""
    clock = FakeClock()
    cool_down = CoolDown(clock)
    peers = [Candidate(0, 0), Candidate(1, 2)]
    assert cool_down.usable(peers) == peers
    cool_down.start(1)
    assert cool_down.usable(peers) == [peers[0]]
    clock.now_s += COOL_DOWN_S
    assert cool_down.usable(peers) == peers, "a failed peer must be used again"
    cool_down.start(1)
    clock.now_s += COOL_DOWN_S
    assert cool_down.active(1), "the second failure in a row costs more"
    clock.now_s += COOL_DOWN_S
    assert not cool_down.active(1)


def test_failures_at_once_are_one_failure() -> None:
    """Several requests to a peer that dies fail together; it must not be punished for each."""
    clock = FakeClock()
    cool_down = CoolDown(clock)
    for _ in range(10):
        cool_down.start(0)
    clock.now_s += COOL_DOWN_S
    assert not cool_down.active(0)


def test_cool_down_is_bounded_and_forgets() -> None:
    """However often a peer fails it is tried again within two minutes; old failures are forgiven."""
    clock = FakeClock()
    cool_down = CoolDown(clock)
    for _ in range(50):
        cool_down.start(0)
        while cool_down.active(0):
            clock.now_s += 1.0
    cool_down.start(0)
    clock.now_s += COOL_DOWN_S_MAX
    assert not cool_down.active(0)
    clock.now_s += COOL_DOWN_S_MAX + 1
    cool_down.start(0)
    clock.now_s += COOL_DOWN_S
    assert not cool_down.active(0), "old failures are forgiven"
