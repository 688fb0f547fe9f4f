"""A ticket opens one connection to one lease, within ten seconds, and nothing afterwards."""

from __future__ import annotations

import pytest

from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.refused import RefusedError
from infiniswap.daemon.tickets import LEASE_MAX, LIFE_S, Tickets


class World:
    """Leases and their tickets, on a clock of its own."""

    def __init__(self) -> None:
        """No lease yet."""
        self.now = 0.0
        self.leases = LeaseTable(lambda: self.now, ttl_s=60)
        self.tickets = Tickets(lambda: self.now, self.leases.is_live)

    def lease(self) -> Lease:
        """A new one."""
        lease, _ = self.leases.create(device="vol", device_id="x", size_bytes=1 << 20, slab_bytes=1 << 20)
        return lease


def test_once() -> None:
    """Each opens its own lease, and the second time nothing."""
    world = World()
    one, two = world.lease(), world.lease()
    names = {world.tickets.issue(one): one, world.tickets.issue(two): two, world.tickets.issue(one): one}
    assert len(names) == 3
    for name, lease in names.items():
        assert world.tickets.take(name) is lease
        assert world.tickets.take(name) is None
    assert len(world.tickets) == 0


def test_ten_seconds() -> None:
    """It is good until then, and not at that moment any more."""
    world = World()
    lease = world.lease()
    early, late = world.tickets.issue(lease), world.tickets.issue(lease)
    world.now = LIFE_S - 0.01
    assert world.tickets.take(early) is lease
    world.now = LIFE_S
    assert world.tickets.take(late) is None


def test_an_ended_lease() -> None:
    """Its tickets open nothing."""
    world = World()
    lease = world.lease()
    name = world.tickets.issue(lease)
    world.leases.remove(lease)
    assert world.tickets.take(name) is None


@pytest.mark.parametrize("name", ["", "ticket-", "ticket-guess", "lease-x", "ticket-\udc80"])
def test_what_is_none(name: str) -> None:
    """Guesses open nothing and raise nothing."""
    world = World()
    world.tickets.issue(world.lease())
    assert world.tickets.take(name) is None


def test_a_limit() -> None:
    """One lease has so many unused ones at most, whatever others have; old ones make room."""
    world = World()
    greedy, other = world.lease(), world.lease()
    for _ in range(LEASE_MAX):
        world.tickets.issue(greedy)
    with pytest.raises(RefusedError, match="wait to be used"):
        world.tickets.issue(greedy)
    world.tickets.issue(other)
    world.now = LIFE_S
    world.tickets.issue(greedy)
    assert len(world.tickets) == 1


def test_nothing_gives_them_away() -> None:
    """What is kept holds no ticket."""
    world = World()
    name = world.tickets.issue(world.lease())
    assert name.removeprefix("ticket-") not in repr(vars(world.tickets))
