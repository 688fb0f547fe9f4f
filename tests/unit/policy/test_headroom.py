"""What a host may lend shrinks at once and grows slowly, and a host at its limit does not lend and take in turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.policy.headroom import GroupMemory, Headroom, HostMemory

MIB = 1 << 20
GIB = 1 << 30


def host(available: int, *, pressure: float | None = None, swap: int = 0) -> HostMemory:
    """A host of 16 GiB."""
    return HostMemory(16 * GIB, available, pressure, swap)


def headroom(available: int = 8 * GIB) -> Headroom:
    """Of 1 GiB, after a first look at a host with nothing lent."""
    return Headroom(host(available), 0, headroom_bytes=GIB)


def test_new_slabs_leave_more_than_old_ones() -> None:
    """Between lending another slab and taking one back lies an eighth of the headroom."""
    made = headroom()
    assert made.lendable_bytes == 7 * GIB
    assert made.growable_bytes == 7 * GIB - GIB // 8


def test_a_host_that_swings_a_little_is_left_alone() -> None:
    """Lent as much as may be, a host whose memory goes up and down by less than that takes nothing back."""
    made = headroom()
    lent = made.growable_bytes
    for step in range(200):
        made.sample(host(8 * GIB - lent + (-1) ** step * GIB // 10), lent)
        assert lent <= made.lendable_bytes


def test_after_a_dip_it_grows_slowly() -> None:
    """A second's dip costs its depth at once, and a fifth of what is missing comes back each second."""
    made = headroom()
    made.look(host(4 * GIB), 0)
    missing = 4.0 * GIB
    for _ in range(20):
        made.sample(host(8 * GIB), 0)
        missing *= 0.8
        assert made.lendable_bytes == pytest.approx(7 * GIB - missing, abs=16)
    made.look(host(8 * GIB), 0)
    assert made.lendable_bytes == pytest.approx(7 * GIB - missing, abs=16), "looks between samples do not hasten it"


def test_pressure_goes_as_slowly() -> None:
    """The headroom doubles at once when tasks wait, and shrinks back by a fifth of the rest each second."""
    made = headroom()
    made.look(host(8 * GIB, pressure=10.0), 0)
    assert made.headroom_now_bytes == 2 * GIB
    made.sample(host(8 * GIB, pressure=9.9), 0)
    assert made.headroom_now_bytes == pytest.approx(1.8 * GIB, abs=16)
    made.sample(host(8 * GIB, pressure=50.0), 0)
    assert made.headroom_now_bytes == 2 * GIB


def test_what_was_put_out_to_swap_is_missed() -> None:
    """Memory that the host's programs had to give to swap counts as theirs, for some minutes."""
    made = Headroom(host(8 * GIB, swap=GIB), 0, headroom_bytes=GIB)
    assert made.lendable_bytes == 7 * GIB
    made.look(host(8 * GIB, swap=3 * GIB), 0)
    assert made.lendable_bytes == 5 * GIB
    for _ in range(600):
        made.sample(host(8 * GIB, swap=3 * GIB), 0)
    assert made.lendable_bytes == pytest.approx(7 * GIB, rel=0.01)
    made.sample(host(8 * GIB, swap=0), 0)
    made.sample(host(8 * GIB, swap=GIB), 0)
    assert made.lendable_bytes < 6.1 * GIB, "swap that was given back and filled again counts anew"


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 16 * GIB),
            st.integers(0, 16 * GIB),
            st.none() | st.floats(0, 100),
            st.integers(0, 8 * GIB),
        ),
        max_size=60,
    )
)
def test_any_history(history: list[tuple[bool, int, int, float | None, int]]) -> None:
    """Never more than the host has beyond its headroom as last seen; what is missing makes the headroom whole."""
    made = headroom()
    for second, available, occupied, pressure, swap in history:
        before = made.lendable_bytes
        seen = host(available, pressure=pressure, swap=swap)
        (made.sample if second else made.look)(seen, occupied)
        assert 0 <= made.growable_bytes <= made.lendable_bytes <= max(0, available + occupied - GIB)
        assert second or made.lendable_bytes <= before, "between samples it only falls"
        assert available + made.missing_bytes >= GIB
        assert made.hard_pressed == (available < GIB // 2)
        assert not made.hard_pressed or made.missing_bytes > GIB // 2


def test_what_lies_in_lists_is_available() -> None:
    """Up to what the control groups leave: their limits have nothing to do with it."""
    assert host(4 * GIB).with_percpu(GIB) == HostMemory(16 * GIB, 5 * GIB, percpu_bytes=GIB)
    limited = HostMemory(16 * GIB, 4 * GIB, groups=(GroupMemory(8 * GIB, 4 * GIB + MIB, 0),))
    assert (limited.with_percpu(GIB).available_bytes, limited.with_percpu(GIB).percpu_bytes) == (4 * GIB + MIB, MIB)
    bound = HostMemory(16 * GIB, 4 * GIB, groups=(GroupMemory(8 * GIB, 4 * GIB, 0),))
    assert bound.with_percpu(GIB) == bound


def test_on_what_lies_in_lists_nothing_new_is_lent() -> None:
    """What is lent already may stay for it."""
    made = headroom()
    made.look(host(4 * GIB).with_percpu(GIB), 2 * GIB)
    assert made.lendable_bytes == 6 * GIB
    assert made.growable_bytes == 5 * GIB - GIB // 8


def test_lists_that_are_counted_are_no_rise() -> None:
    """What was free before it was counted counts at once; what becomes free at the same time comes in slowly."""
    made = headroom(4 * GIB)
    made.look(host(4 * GIB).with_percpu(GIB), 0)
    assert made.smoothed_bytes == 5 * GIB
    made.look(host(4 * GIB).with_percpu(2 * GIB), 0)
    assert made.smoothed_bytes == 5 * GIB
    made.look(host(4 * GIB), 0)
    made.look(host(6 * GIB).with_percpu(GIB), 0)
    assert made.smoothed_bytes == 5 * GIB


LOOKS = st.tuples(st.integers(0, 16 * GIB), st.integers(0, 8 * GIB), st.integers(0, 2 * GIB), st.booleans())


@given(st.lists(LOOKS, min_size=1, max_size=60))
def test_lists_never_make_more_of_a_host_than_it_has(looks: list[tuple[int, int, int, bool]]) -> None:
    """After any course of looks, counted or not: what stays lent is there, and what is lent anew without the lists."""
    made = headroom()
    for available, occupied, percpu, sample in looks:
        seen = host(available).with_percpu(percpu)
        (made.sample if sample else made.look)(seen, occupied)
        assert made.lendable_bytes <= max(0, available + percpu + occupied - GIB)
        assert made.growable_bytes <= max(0, available + occupied - GIB - GIB // 8)
