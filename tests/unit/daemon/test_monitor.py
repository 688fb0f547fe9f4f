"""The offer never eats into the host's headroom: falls count at once, rises slowly, and nothing is promised twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.daemon.arena import Arena
from infiniswap.daemon.monitor import HostReader, MemoryMonitor, parse_pressure
from infiniswap.policy.headroom import GroupMemory, HostMemory, default_headroom_bytes

MIB = 1 << 20
GIB = 1 << 30


@dataclass
class Host:
    """A host whose numbers the test sets."""

    available: int = 10 * GIB
    occupied: int = 0
    pressure: float | None = None

    def read(self) -> HostMemory:
        return HostMemory(16 * GIB, self.available, self.pressure)

    def monitor(self, headroom_bytes: int | None = GIB) -> MemoryMonitor:
        return MemoryMonitor(self.read, lambda: self.occupied, headroom_bytes=headroom_bytes)


FILLED_BYTES = 256 * MIB


def supply_bytes(occupied_bytes: int) -> int:
    """What this host would have with nothing lent, lists of the processors included."""
    reader = HostReader(keep_open=False)
    host = reader()
    return host.with_percpu(reader.percpu_bytes()).supply_bytes(occupied_bytes)


def test_the_headroom_stays_free() -> None:
    """What may be lent is what is available less the headroom."""
    assert Host().monitor().lendable_bytes() == 9 * GIB


@pytest.mark.parametrize(("total", "headroom"), [(GIB, 512 * MIB), (5120 * MIB, 512 * MIB), (64 * GIB, 64 * GIB // 10)])
def test_the_default_headroom(total: int, headroom: int) -> None:
    """The larger of a tenth and 512 MiB."""
    assert default_headroom_bytes(total) == headroom
    assert Host().monitor(None).headroom_bytes == default_headroom_bytes(16 * GIB)


def test_filling_slabs_changes_nothing() -> None:
    """Memory that goes from available to occupied by lent slabs was promised already: not lost, not promised again."""
    host = Host()
    monitor = host.monitor()
    for _ in range(5):
        host.available -= GIB
        host.occupied += GIB
        monitor.sample()
        assert monitor.lendable_bytes() == 9 * GIB
        assert monitor.growable_bytes() == 9 * GIB - GIB // 8


def test_a_fall_counts_at_once_and_a_rise_slowly() -> None:
    """When the host needs its memory the very next offer is smaller; a rise comes in with beta 0.2 a second."""
    host = Host()
    monitor = host.monitor()
    host.available = 5 * GIB
    monitor.refresh()
    assert monitor.lendable_bytes() == 4 * GIB
    for _ in range(60):
        monitor.sample()
    host.available = 10 * GIB
    expected = monitor.smoothed_bytes
    for _ in range(5):
        monitor.sample()
        expected += int(0.2 * (10 * GIB - expected))
        assert monitor.smoothed_bytes == pytest.approx(expected, abs=16)
        assert monitor.lendable_bytes() == monitor.smoothed_bytes - GIB


def test_nothing_is_lent_by_a_host_that_is_short() -> None:
    """Below the headroom the offer is zero, never negative."""
    host = Host(available=GIB - 1)
    assert host.monitor().lendable_bytes() == 0


def test_pressure_doubles_the_headroom() -> None:
    """Tasks that wait for memory make the daemon more careful, not blind to what is plainly free."""
    host = Host(pressure=9.9)
    monitor = host.monitor()
    assert monitor.lendable_bytes() == 9 * GIB
    host.pressure = 10.0
    monitor.refresh()
    assert monitor.lendable_bytes() == 8 * GIB


@given(
    st.lists(
        st.tuples(st.integers(0, 16 * GIB), st.integers(0, 16 * GIB), st.none() | st.floats(0, 100)),
        min_size=1,
        max_size=100,
    )
)
def test_no_history_lends_more_than_is_there(samples: list[tuple[int, int, float | None]]) -> None:
    """After any course of events the offer keeps the headroom by what was seen last, and the average stays in range."""
    host = Host()
    monitor = host.monitor()
    for host.available, host.occupied, host.pressure in samples:
        monitor.sample()
        assert 0 <= monitor.lendable_bytes() <= max(0, host.available + host.occupied - GIB)
        assert 0 <= monitor.growable_bytes() <= monitor.lendable_bytes()
        assert 0 <= monitor.smoothed_bytes <= host.available + host.occupied


def test_what_is_asked_to_be_freed_is_there() -> None:
    """Below half of the headroom the host is hard pressed, by what is missing to all of it, of what slabs occupy."""
    host = Host(available=GIB // 2, occupied=5 * GIB)
    monitor = host.monitor()
    assert (monitor.hard_pressed, monitor.missing_bytes) == (False, GIB // 2)
    host.available -= 1
    monitor.refresh()
    assert (monitor.hard_pressed, monitor.missing_bytes) == (True, GIB // 2 + 1)
    host.occupied = 7
    monitor.refresh()
    assert (monitor.hard_pressed, monitor.missing_bytes) == (True, 7)
    host.occupied = 0
    monitor.refresh()
    assert (monitor.hard_pressed, monitor.missing_bytes) == (False, 0)


def test_slabs_that_change_meanwhile_are_looked_at_again() -> None:
    """A slab that is cleared between the looks at host and slabs is not taken for memory that has gone."""
    host = Host(available=4 * GIB, occupied=4 * GIB)
    clearing = 2

    def read() -> HostMemory:
        nonlocal clearing
        seen = host.read()
        if clearing:
            clearing -= 1
            host.available += GIB
            host.occupied -= GIB
        return seen

    monitor = MemoryMonitor(read, lambda: host.occupied, headroom_bytes=GIB)
    assert clearing == 0
    assert monitor.lendable_bytes() == 7 * GIB


def test_slabs_charged_elsewhere_leave_the_group_no_more() -> None:
    """Of a group's limit only those slabs are got back by clearing that are charged to it."""
    group = GroupMemory(limit_bytes=4 * GIB, available_bytes=3 * GIB, shared_bytes=GIB // 2)
    host = HostMemory(16 * GIB, 3 * GIB, groups=(group,))
    monitor = MemoryMonitor(lambda: host, lambda: 2 * GIB, headroom_bytes=GIB)
    assert monitor.lendable_bytes() == 2 * GIB + GIB // 2


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("some avg10=12.34 avg60=1.00 avg300=0.00 total=5\nfull avg10=1.00 avg60=0 avg300=0 total=1\n", 12.34),
        ("full avg10=1.00\n", None),
        ("some avg10=much\n", None),
        ("some\n", None),
        ("", None),
    ],
)
def test_reading_pressure(text: str, percent: float | None) -> None:
    """PSI is used where it can be read and ignored where it cannot."""
    assert parse_pressure(text) == percent


def test_this_host_is_read() -> None:
    """MemAvailable, not MemFree in whole gigabytes: page cache counts as free."""
    memory = HostReader(keep_open=False)()
    assert memory.total_bytes == psutil.virtual_memory().total
    assert memory.available_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert memory.swap_used_bytes == pytest.approx(psutil.swap_memory().used, rel=0.2, abs=MIB)


def descriptors() -> set[str]:
    """Those open now."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_looking_again_opens_nothing() -> None:
    """Whoever is short of memory waits for each file that is opened: after the first look none is."""
    reader = HostReader()
    first = reader()
    opened = descriptors()
    for _ in range(3):
        again = reader()
        assert again.total_bytes == first.total_bytes
        assert again.available_bytes == pytest.approx(HostReader(keep_open=False)().available_bytes, rel=0.2)
    assert descriptors() == opened
    assert reader._files._fds
    reader.close()
    assert len(descriptors()) < len(opened)


def test_slab_memory_is_not_available_on_this_host() -> None:
    """Filling slab memory takes as much from MemAvailable and lists: they add up, as is assumed (measured here)."""
    changes = []
    for _ in range(5):
        arena = Arena(FILLED_BYTES)
        before = supply_bytes(arena.occupied_bytes())
        arena.populate(0, FILLED_BYTES)
        assert arena.occupied_bytes() == FILLED_BYTES
        after = supply_bytes(FILLED_BYTES)
        arena.close()
        changes.append(after - before)
    # Others on this host take and free memory meanwhile; a reckoning that is wrong is so each time.
    assert min(map(abs, changes)) < FILLED_BYTES / 2, changes
