"""Activity: the moving average is right for hours and at any rate, late ticks are not counted twice, thresholds hold.

The original never divided its average (it overflowed after 13 s) and had a hot threshold of zero.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.policy.activity import Activity, Thresholds


def counters(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Counters of page I/O."""
    return np.array(values, dtype=np.uint64)


def test_formula() -> None:
    """A <- 0.2 * now + 0.8 * A."""
    activity = Activity(counters(0))
    activity.update(counters(100), 1.0)
    assert activity.values[0] == pytest.approx(20.0)
    activity.update(counters(100), 1.0)
    assert activity.values[0] == pytest.approx(16.0)
    activity.update(counters(150), 1.0)
    assert activity.values[0] == pytest.approx(0.2 * 50 + 0.8 * 16)


def test_an_hour_at_a_huge_rate_stays_at_that_rate() -> None:
    """The average never exceeds what it averages."""
    activity = Activity(counters(0))
    seen = 0
    for _ in range(3600):
        seen += 10**9
        activity.update(counters(seen), 1.0)
    assert activity.values[0] == pytest.approx(1e9)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=40))
def test_average_lies_between_the_rates_seen(rates: list[int]) -> None:
    """For any history, between nothing and the highest rate."""
    activity = Activity(counters(0))
    seen = 0
    for rate in rates:
        seen += rate
        activity.update(counters(seen), 1.0)
        assert 0 <= activity.values[0] <= max(rates) * (1 + 1e-9)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 10**6), st.integers(1, 30))
def test_a_late_tick_is_as_good_as_the_seconds_it_stands_for(rate: int, seconds: int) -> None:
    """A stalled service ends up with the same activity."""
    steady, late = Activity(counters(0)), Activity(counters(0))
    for second in range(1, seconds + 1):
        steady.update(counters(rate * second), 1.0)
    late.update(counters(rate * seconds), float(seconds))
    assert late.values[0] == pytest.approx(steady.values[0])


def test_counters_may_wrap_and_old_counts_do_not_count() -> None:
    """Only what was counted since the last time matters, modulo 2^64."""
    activity = Activity(counters(2**64 - 5, 10**12))
    activity.update(counters(95, 10**12), 1.0)
    assert activity.values.tolist() == pytest.approx([20.0, 0.0])


def test_no_time_no_change() -> None:
    """A tick without time takes nothing into account, and loses nothing."""
    activity = Activity(counters(0))
    activity.update(counters(100), 0.0)
    assert activity.values[0] == 0
    activity.update(counters(100), 1.0)
    assert activity.values[0] == pytest.approx(20.0)


def test_hot_and_cold_in_order() -> None:
    """Hottest first, coldest first; no cold threshold means no cold slabs."""
    activity = Activity(counters(0, 0, 0, 0))
    activity.update(counters(101, 500, 0, 99), 1.0)
    thresholds = Thresholds(hot=20.0, cold=19.9)
    assert activity.hot(thresholds).tolist() == [1, 0]
    assert activity.cold(thresholds).tolist() == [2, 3]
    assert activity.cold(Thresholds(hot=20.0)).tolist() == []


def test_idle_slabs_are_not_hot() -> None:
    """An idle device maps nothing."""
    activity = Activity(counters(0, 0))
    activity.update(counters(0, 0), 1.0)
    assert activity.hot(Thresholds(hot=20.0)).tolist() == []


@pytest.mark.parametrize(("hot", "cold"), [(0.0, None), (-1.0, None), (5.0, 5.0), (5.0, -1.0), (float("nan"), None)])
def test_thresholds_that_make_no_sense(hot: float, cold: float | None) -> None:
    """Are refused where they are made."""
    with pytest.raises(ValueError, match="threshold"):
        Thresholds(hot, cold)
