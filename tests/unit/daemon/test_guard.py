"""However a shortage is noticed, what is done about it is right: asked for, or taken at once, and never twice."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infiniswap.daemon.arena import Arena, punch_hole
from infiniswap.daemon.guard import Guard
from infiniswap.daemon.leases import LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import MemoryMonitor
from infiniswap.policy.headroom import HostMemory
from tests.support.clock import FakeClock
from tests.support.daemon_api import MIB
from tests.support.fake_memory_engine import FakeEngine
from tests.support.waiting import eventually

HEADROOM = 16 * MIB


class World:
    """A host of 256 MiB on which 32 filled slabs of 1 MiB are lent, and who is asked to take some back."""

    def __init__(self) -> None:
        self.available = 128 * MIB
        self.error: OSError | None = None
        self.allowed = threading.Event()
        self.woken = 0
        self.forced: list[int] = []
        self.looks = 0
        clock = FakeClock()
        self.arena = Arena(64 * MIB, punch=self.punch)
        self.monitor = MemoryMonitor(self.look, self.arena.occupied_bytes, headroom_bytes=HEADROOM)
        leases = LeaseTable(clock, ttl_s=60.0)
        self.lender = Lender(arena=self.arena, leases=leases, engine=FakeEngine(), monitor=self.monitor)
        self.lease = self.lender.grant(device="d", device_id="i", size_bytes=32 * MIB, slab_bytes=MIB)[0]
        for index in range(32):
            self.lender.map_slab(self.lease, index)
        for offset in self.lease.slabs.values():
            ctypes.memset(self.arena.address + offset, 1, MIB)
        self.guard = Guard(self.lender, self.monitor, self, clock=clock, fuses=0, pressure_files=[])

    def punch(self, fd: int, offset: int, length: int) -> None:
        assert self.allowed.wait(20)
        punch_hole(fd, offset, length)

    def look(self) -> HostMemory:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return HostMemory(256 * MIB, self.available)

    def wake(self) -> None:
        self.woken += 1

    def force_now(self, wanted_bytes: int) -> int:
        self.forced.append(wanted_bytes)
        return wanted_bytes


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A world whose guard does nothing by itself."""
    made = World()
    yield made
    made.allowed.set()
    await made.lender.release(made.lease)
    await made.lender.close()
    made.arena.close()


async def test_a_host_with_room_is_left_alone(world: World) -> None:
    """Nothing is asked for and nothing taken."""
    for step in (world.guard.sample, world.guard.look, world.guard.pressed):
        step()
    assert (world.woken, world.forced) == (0, [])
    assert not world.guard.near


async def test_too_much_lent_is_asked_back(world: World) -> None:
    """As soon as what is lent does not leave the headroom any more, by whichever look that is seen."""
    world.available = HEADROOM - 1
    for count, step in enumerate((world.guard.look, world.guard.sample, world.guard.pressed), start=1):
        step()
        assert world.woken == count
    assert world.forced == []
    assert world.guard.near


async def test_a_hard_pressed_host_takes_what_is_missing(world: World) -> None:
    """Below half of the headroom, and less by what is being cleared already."""
    world.available = HEADROOM // 2 - MIB
    world.guard.look()
    assert world.forced == [HEADROOM // 2 + MIB]
    tasks = world.lender.clearing.begin([world.arena.allocator.allocate(4 * MIB) or 0], 4 * MIB)
    world.guard.look()
    assert world.forced[1:] == [HEADROOM // 2 + MIB - 4 * MIB]
    tasks += world.lender.clearing.begin([world.arena.allocator.allocate(16 * MIB) or 0], 16 * MIB)
    world.guard.look()
    assert len(world.forced) == 2
    assert world.guard.counts.hard_pressed == 2
    world.allowed.set()
    await eventually(lambda: all(task.done() for task in tasks), "it is cleared")
    world.guard.look()
    assert world.forced[2:] == [HEADROOM // 2 + MIB]


async def test_a_blown_fuse_takes_a_share_whatever_is_seen(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel found no page: an eighth of what is lent goes even if the figures look well, or cannot be had."""
    world.guard.blown()
    assert world.forced == [4 * MIB]
    world.error = OSError(errno.EMFILE, "too many open files")
    world.guard.blown()
    assert world.forced == [4 * MIB, 4 * MIB]
    world.error = None
    world.available = 0
    world.guard.blown()
    assert world.forced[2:] == [4 * MIB, HEADROOM], "first by what was known, then by what is seen"
    assert "the OOM killer took a fuse" in caplog.text


async def test_a_host_that_cannot_be_looked_at(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, nothing is done on old figures, and the next look counts again."""
    world.available = 0
    world.error = OSError(errno.EMFILE, "too many open files")
    world.guard.look()
    world.guard.sample()
    assert (world.woken, world.forced) == (0, [])
    assert caplog.text.count("cannot be looked at") == 1
    world.error = None
    world.guard.look()
    assert world.forced == [HEADROOM]


async def test_the_loop_looks_faster_when_it_is_near() -> None:
    """Ten times a sample while a burst could use up what is left; samples stay as they are."""
    world = World()
    world.available = 3 * HEADROOM
    world.monitor.refresh()
    samples = 0
    looks: list[int] = []

    class Counting(Guard):
        def sample(self) -> None:
            nonlocal samples
            samples += 1
            super().sample()

        def look(self) -> None:
            looks.append(samples)
            super().look()

    guard = Counting(world.lender, world.monitor, world, clock=time.monotonic, fuses=0, pressure_files=[])
    await guard.start()
    await eventually(lambda: samples >= 2, "two samples")
    between = looks.count(1)
    world.available = 128 * MIB
    await eventually(lambda: samples >= 3, "a third sample")
    await eventually(lambda: samples >= 4, "a fourth sample")
    await guard.close()
    assert 1 <= between <= 10
    assert looks.count(3) == 0, "with room again there is nothing to hurry for"
    world.allowed.set()
    await world.lender.release(world.lease)
    await world.lender.close()
    world.arena.close()


async def test_a_fuse_of_a_running_guard(world: World) -> None:
    """From SIGKILL of a fuse to memory that is taken, through the real thing."""
    guard = Guard(world.lender, world.monitor, world, clock=FakeClock(), fuses=1, pressure_files=[])
    await guard.start()
    os.kill(guard.fuses.pids[0], signal.SIGKILL)
    await eventually(lambda: bool(world.forced), "memory is taken")
    assert world.forced == [4 * MIB]
    assert guard.counts.fuses_blown == 1
    await guard.close()
