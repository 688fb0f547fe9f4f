"""Slabs: one holder each, since when, and what is on its way."""

from __future__ import annotations

from infiniswap.device.slabs import Slabs
from infiniswap.policy.mapping import Reason
from tests.support.clock import FakeClock


def test_one_holder() -> None:
    """Who takes a slab takes it from whoever held it, and its time there begins anew."""
    clock = FakeClock()
    slabs = Slabs(clock)
    slabs.take(3, 0)
    slabs.take(4, 0)
    clock.now_s += 5
    slabs.take(3, 1)
    assert (slabs.holder(3), slabs.held(0), slabs.held(1)) == (1, {4}, {3})
    assert (slabs.held_for_s(3), slabs.held_for_s(4)) == (0, 5)
    slabs.let_go(3)
    slabs.let_go(3)
    assert (slabs.holder(3), slabs.held(1), slabs.held_for_s(3)) == (None, set(), 0)


def test_a_lost_peer_holds_nothing() -> None:
    """What it held is told once; others keep theirs."""
    slabs = Slabs(FakeClock())
    for slab in (1, 2):
        slabs.take(slab, 0)
    slabs.take(5, 1)
    assert slabs.lose(0) == {1, 2}
    assert not slabs.lose(0)
    assert [slabs.holder(slab) for slab in (1, 2, 5)] == [None, None, 1]


def test_on_the_way() -> None:
    """A slab is asked for, or given back, no longer than that takes, and at that peer alone."""
    slabs = Slabs(FakeClock())
    with slabs.asking(0, 7), slabs.giving_back(1, 7):
        assert (slabs.asked(0), slabs.asked(1)) == ({7}, set())
        assert (slabs.is_given_back(0, 7), slabs.is_given_back(1, 7)) == (False, True)
    assert not slabs.asked(0)
    assert not slabs.is_given_back(1, 7)


def test_where_a_slab_is_meant_to_go() -> None:
    """It is told once: the next mapping may go anywhere. Why it goes is known until it has gone."""
    slabs = Slabs(FakeClock())
    slabs.take(2, 0)
    slabs.leave(2, Reason.MOVE, 1)
    assert slabs.leaving(2) is Reason.MOVE
    slabs.let_go(2)
    assert slabs.leaving(2) is None
    assert (slabs.meant_for(2), slabs.meant_for(2)) == (1, None)
