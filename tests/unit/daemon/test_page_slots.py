"""Connections for page I/O: whoever opens how many, every lease has its share, and there are never too many."""

from __future__ import annotations

from random import Random

from infiniswap.daemon.page_slots import (
    CONNECTIONS_MAX,
    LEASE_CONNECTIONS_MAX,
    LEASE_SHARE,
    LEASES_MAX,
    SPARE_MAX,
    refusal,
)


def fill(own: list[int], lease: int) -> int:
    """How many more it gets."""
    before = own[lease]
    while not refusal(own[lease], own[:lease] + own[lease + 1 :]):
        own[lease] += 1
    return own[lease] - before


def test_greedy_leases_leave_every_other_its_share() -> None:
    """Thirty-two leases that take all they can, and the other 224 get their share still."""
    own = [0] * LEASES_MAX
    taken = [fill(own, lease) for lease in range(32)]
    assert taken[0] == LEASE_CONNECTIONS_MAX
    assert sum(max(0, each - LEASE_SHARE) for each in taken) == SPARE_MAX
    assert all(fill(own, lease) == LEASE_SHARE for lease in range(32, LEASES_MAX))
    assert sum(own) == CONNECTIONS_MAX


def test_never_too_many() -> None:
    """In whatever order they come and go."""
    rng = Random(4)
    own = [0] * LEASES_MAX
    for _ in range(20000):
        lease = min(rng.randrange(LEASES_MAX), rng.randrange(LEASES_MAX))
        if rng.random() < 0.2:
            own[lease] = max(0, own[lease] - 1)
        elif not refusal(own[lease], own[:lease] + own[lease + 1 :]):
            own[lease] += 1
        assert sum(own) <= CONNECTIONS_MAX
        assert max(own) <= LEASE_CONNECTIONS_MAX
