"""Cordon, drain, uncordon: nothing new is lent, all goes back, and what comes in between leaves it in one state."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping

import pytest
import pytest_asyncio

from infiniswap.daemon.draining import ALL_AT_ONCE_SHARE, LATE_S, WINDOW_SLABS, Draining
from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.shared.operator_messages import DEADLINE_S_DEFAULT, DonorState, Drain, DrainState
from tests.support.clock import FakeClock
from tests.support.waiting import eventually

MIB = 1 << 20


class World:
    """Two devices with slabs; the lender, the evictor and the streams as far as draining knows them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.lending = True
        self.leases = LeaseTable(self.clock, ttl_s=60.0)
        self.vol, self.swap = self._lease("vol", 3), self._lease("swap0", 1)
        self.notices: list[tuple[dict[str, list[int]], float]] = []
        self.draining = False  # as streams tell it
        self.told: list[tuple[bool, bool]] = []
        self.woken = 0
        self.failures = 0
        self.subject = Draining(self, self, self, self.clock)

    def _lease(self, device: str, slabs: int) -> Lease:
        lease, _ = self.leases.create(
            device=device, device_id="i", size_bytes=64 * MIB, slab_bytes=MIB, host=f"host-of-{device}"
        )
        lease.slabs = {index: index * MIB for index in range(slabs)}
        return lease

    def give_notice(self, slabs: Mapping[Lease, Iterable[int]], *, deadline_s: float) -> None:
        """As the evictor: an earlier deadline stays."""
        if self.failures:
            self.failures -= 1
            raise OSError("no")
        self.notices.append(({lease.device: list(wanted) for lease, wanted in slabs.items()}, deadline_s))
        for lease, wanted in slabs.items():
            for slab in wanted:
                until_s = self.clock() + deadline_s
                lease.leaving[slab] = min(until_s, lease.leaving.get(slab, until_s))

    def wake(self) -> None:
        self.woken += 1

    def tell_policy(self) -> None:
        self.told.append((self.lending, self.draining))

    def give_up(self, lease: Lease, *slabs: int, force: bool = False) -> None:
        """The device does, or the evictor by force."""
        for slab in slabs or list(lease.slabs):
            del lease.slabs[slab]
            lease.leaving.pop(slab, None)
            lease.taken += force

    def state(self) -> DonorState:
        """What the daemon does with its memory."""
        return self.subject.state

    def shown(self) -> Drain:
        """The drain that there is."""
        shown = self.subject.shown()
        assert shown is not None
        return shown


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """Closed at the end."""
    world = World()
    yield world
    await world.subject.close()


async def test_a_drain(world: World) -> None:
    """Owners have notice with the deadline; when all has gone the daemon is drained. Devices hear of both."""
    assert (world.state(), world.subject.shown()) == (DonorState.LENDING, None)
    world.subject.begin(30.0)
    assert not world.lending
    await eventually(lambda: world.notices)
    assert world.notices == [({"vol": [0, 1, 2], "swap0": [0]}, 30.0)]
    assert world.told == [(False, True)]
    world.clock.now_s += 10
    world.give_up(world.vol, 1)
    shown = world.shown()
    assert (shown.state, shown.slabs, shown.left, shown.moved) == (DrainState.RUNNING, 4, 3, 1)
    assert (shown.elapsed_s, shown.deadline_in_s) == (10.0, 20.0)
    assert world.state() is DonorState.DRAINING
    world.give_up(world.vol)
    world.give_up(world.swap)
    await world.subject.is_over.wait()
    shown = world.shown()
    assert (shown.state, shown.left, shown.moved, shown.forced) == (DrainState.DONE, 0, 4, ())
    assert world.state() is DonorState.DRAINED
    assert not world.subject.stop_wanted.is_set()
    assert len(world.notices) == 1


async def test_nothing_is_lent(world: World) -> None:
    """Then a drain is done at once, and nobody is asked."""
    world.vol.slabs, world.swap.slabs = {}, {}
    world.subject.begin(stop=True)
    await world.subject.is_over.wait()
    assert world.state() is DonorState.DRAINED
    assert world.notices == []
    assert world.subject.stop_wanted.is_set()


async def test_the_least_active_first(world: World) -> None:
    """A few slabs of a lease at a time, the least active first; all that is left once half of the time is over."""
    count = 3 * WINDOW_SLABS
    world.vol.slabs = {index: index * MIB for index in range(count)}
    world.vol.activity = {index: float(count - index) for index in range(count)}
    world.subject.begin(100.0)
    await eventually(lambda: world.notices)
    assert set(world.notices[0][0]["vol"]) == set(range(count - WINDOW_SLABS, count))
    world.give_up(world.vol, count - 1, count - 2)
    await eventually(lambda: len(world.notices) == 2)
    assert set(world.notices[1][0]["vol"]) == {count - WINDOW_SLABS - 1, count - WINDOW_SLABS - 2}
    world.clock.now_s += 100 * ALL_AT_ONCE_SHARE
    await eventually(lambda: len(world.notices) == 3)
    wanted, deadline_s = world.notices[2]
    assert (set(wanted["vol"]), deadline_s) == (set(range(count - WINDOW_SLABS - 2)), 100 * (1 - ALL_AT_ONCE_SHARE))
    assert set(world.vol.leaving.values()) == {world.clock() + deadline_s}


async def test_at_once(world: World) -> None:
    """Without any time everything is due now."""
    world.vol.slabs = {index: index * MIB for index in range(2 * WINDOW_SLABS)}
    world.subject.begin(0.0)
    await eventually(lambda: world.notices)
    assert len(world.notices[0][0]["vol"]) == 2 * WINDOW_SLABS
    assert world.notices[0][1] == 0.0


async def test_joined(world: World) -> None:
    """A second drain without a deadline changes nothing; one with it counts from now; a stop once asked for stays."""
    world.subject.begin()
    await eventually(lambda: world.notices)
    assert world.notices[0][1] == DEADLINE_S_DEFAULT
    world.subject.begin(stop=True)
    world.clock.now_s += 100
    world.give_up(world.vol, 1)
    world.subject.begin(3000.0)
    await eventually(lambda: len(world.notices) == 2)
    assert world.notices[1] == ({"vol": [0, 2], "swap0": [0]}, 3000.0)
    assert world.vol.leaving[0] == world.clock() + 3000  # later than it was
    world.give_up(world.vol)
    world.give_up(world.swap)
    await world.subject.is_over.wait()
    shown = world.shown()
    assert (shown.slabs, shown.moved, shown.elapsed_s, shown.stop) == (4, 4, 100.0, True)
    assert world.subject.stop_wanted.is_set()


async def test_a_signal_hastens(world: World) -> None:
    """A stop shortens the deadline of the drain that goes on, never lengthens it."""
    world.subject.begin(20.0)
    await eventually(lambda: world.notices)
    world.subject.hasten(60.0)
    shown = world.shown()
    assert (shown.deadline_in_s, shown.stop) == (20.0, True)
    world.subject.hasten(5.0)
    await eventually(lambda: len(world.notices) == 2)
    assert world.notices[1][1] == 5.0


async def test_uncordon_ends_it(world: World) -> None:
    """What is left stays lent, and nothing of it is due any more. The next cordon is no drain, the next drain is."""
    world.subject.begin(30.0)
    await eventually(lambda: world.notices)
    world.give_up(world.vol, 0)
    world.subject.uncordon()
    assert world.subject.is_over.is_set()
    assert world.lending
    assert world.state() is DonorState.LENDING
    assert (world.vol.leaving, world.swap.leaving) == ({}, {})
    assert world.woken
    assert world.told[-1] == (True, False)
    world.vol.slabs[9] = 0  # lent since
    assert (world.shown().state, world.shown().left) == (DrainState.ENDED, 3)
    world.subject.cordon()
    assert world.state() is DonorState.CORDONED
    assert world.told[-1] == (False, False)
    world.subject.begin(7.0)
    await eventually(lambda: len(world.notices) == 2)
    assert world.notices[-1] == ({"vol": [1, 2, 9], "swap0": [0]}, 7.0)
    world.give_up(world.vol)
    world.give_up(world.swap)
    await world.subject.is_over.wait()
    assert world.state() is DonorState.DRAINED


async def test_cordon_after_a_drain_and_uncordon(world: World) -> None:
    """A daemon that lends again is not drained, whatever was before."""
    world.vol.slabs, world.swap.slabs = {}, {}
    world.subject.begin(30.0)
    await world.subject.is_over.wait()
    world.subject.cordon()
    assert world.state() is DonorState.DRAINED  # it was, and is still
    world.subject.uncordon()
    assert world.subject.shown() is None
    world.subject.cordon()
    assert world.state() is DonorState.CORDONED


async def test_who_did_not_answer_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Slabs taken by force are shown by device and host, in the drain and in the log; those of earlier are not."""
    world.vol.taken = 5
    world.subject.begin(1.0)
    await eventually(lambda: world.notices)
    world.give_up(world.vol, 0)
    world.give_up(world.vol, 1, 2, force=True)
    assert world.shown().forced_slabs == 2
    world.give_up(world.swap)
    await world.subject.is_over.wait()
    shown = world.shown()
    assert [(each.device, each.host, each.slabs, each.slab_bytes) for each in shown.forced] == [
        ("vol", "host-of-vol", 2, MIB)
    ]
    assert (shown.moved, shown.forced_slabs) == (2, 2)
    assert "device vol of host-of-vol did not give 2 slabs back in time: they were taken by force" in caplog.text


async def test_failures_and_latecomers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A notice that failed is given again, and a slab mapped by a request on its way gets one, too."""
    world.failures = 1
    world.subject.begin(30.0)
    await eventually(lambda: world.notices)
    assert "the drain went wrong; it goes on" in caplog.text
    world.swap.slabs[5] = 0
    await eventually(lambda: len(world.notices) == 2)
    assert world.notices[1] == ({"swap0": [5]}, 30.0)


async def test_what_cannot_be_taken_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Slabs that are there long after the deadline: the drain goes on, and the log says so once in a while."""
    world.subject.begin(1.0)
    await eventually(lambda: world.notices)
    with caplog.at_level(logging.WARNING):
        world.clock.now_s += 1 + LATE_S + 0.1
        await eventually(lambda: "4 slabs are still there after the drain's deadline" in caplog.text)
    assert world.state() is DonorState.DRAINING
    assert caplog.text.count("still there") == 1
