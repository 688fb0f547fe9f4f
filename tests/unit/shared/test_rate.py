"""So many at once, so many a second after that, each client for itself, and few are remembered."""

from __future__ import annotations

from infiniswap.shared.rate import Rate
from tests.support.clock import FakeClock


def test_burst_and_rate() -> None:
    """A burst, then as time passes, never more than a burst again; others are not concerned."""
    clock = FakeClock()
    rate = Rate(burst=3, per_second=2.0, clock=clock)
    assert [rate.take("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert rate.take("b")
    clock.now_s += 1.0
    assert [rate.take("a") for _ in range(3)] == [True, True, False]
    clock.now_s += 1000.0
    assert [rate.take("a") for _ in range(4)] == [True] * 3 + [False]


def test_few_are_remembered() -> None:
    """Those who have been quiet longest are forgotten: they begin anew."""
    rate = Rate(burst=1, per_second=0.0, clock=FakeClock(), clients_max=2)
    assert [rate.take(client) for client in "abab"] == [True, True, False, False]
    assert rate.take("c"), "which is one too many"
    assert not rate.take("b")
    assert rate.take("a"), "it was forgotten"
