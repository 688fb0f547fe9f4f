"""Proves that a slow peer is left alone, drained only when it lasts, and tried again after growing rests."""

from __future__ import annotations

import pytest

from infiniswap.policy.slow_peers import DRAIN_AFTER_S, GOOD_S, REST_MAX_S, REST_MIN_S, SlowPeers
from tests.support.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock of the test's own."""
    return FakeClock()


@pytest.fixture
def peers(clock: FakeClock) -> SlowPeers:
    """Nothing known yet."""
    return SlowPeers(clock)


def test_unknown_peers_are_used(peers: SlowPeers) -> None:
    """A peer that was never slow is neither avoided nor drained."""
    assert not peers.avoided(3)
    assert not peers.drained(3)


def test_drained_when_it_lasts(peers: SlowPeers, clock: FakeClock) -> None:
    """A peer that is slow for a moment keeps its slabs; one that stays slow gives them up; others are as before."""
    assert peers.note(1, True)
    assert not peers.note(1, True)
    assert peers.avoided(1)
    assert not peers.drained(1)
    clock.now_s += DRAIN_AFTER_S
    assert peers.drained(1)
    assert not peers.avoided(2)
    assert peers.note(1, False)
    assert not peers.drained(1)


def test_tried_again_after_a_rest(peers: SlowPeers, clock: FakeClock) -> None:
    """When it is quick again it rests, and then gets slabs again."""
    peers.note(1, True)
    clock.now_s += 3600
    assert peers.avoided(1)
    peers.note(1, False)
    clock.now_s += REST_MIN_S - 1
    assert peers.avoided(1)
    clock.now_s += 2
    assert not peers.avoided(1)


def test_rests_grow_and_are_forgotten(peers: SlowPeers, clock: FakeClock) -> None:
    """Each relapse doubles the rest, up to a limit; after a long good time the first one is short again."""

    def rest_s() -> float:
        peers.note(1, True)
        peers.note(1, False)
        begun_s = clock.now_s
        while peers.avoided(1):
            clock.now_s += 1
        return clock.now_s - begun_s

    rests = [rest_s() for _ in range(8)]
    assert rests[:4] == [REST_MIN_S, 2 * REST_MIN_S, 4 * REST_MIN_S, 8 * REST_MIN_S]
    assert rests[-1] == REST_MAX_S
    clock.now_s += GOOD_S
    assert rest_s() == REST_MIN_S
