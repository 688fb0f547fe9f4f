"""Free pages in lists of the processors keep lent memory from coming back without need, and do nothing else."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from resource import getpagesize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.daemon import monitor as monitor_module
from infiniswap.daemon.arena import Arena
from infiniswap.daemon.host_files import HostFiles
from infiniswap.daemon.leases import LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.monitor import HostReader, MemoryMonitor
from infiniswap.policy.headroom import PERCPU_SHARE, HostMemory
from tests.support.clock import FakeClock
from tests.support.fake_memory_engine import FakeEngine

MIB = 1 << 20
GIB = 1 << 30
MOST = GIB // PERCPU_SHARE  # of lists that counts, with a headroom of 1 GiB


@dataclass
class Host:
    """A host of 16 GiB whose numbers the test sets, and what was read of it in which order."""

    available: int = 10 * GIB
    listed: int = 0
    occupied: int = 0
    promised: int = 0
    pressure: float | None = None
    read_log: list[str] = field(default_factory=list)

    def read(self) -> HostMemory:
        self.read_log.append("host")
        return HostMemory(16 * GIB, self.available, self.pressure)

    def percpu_bytes(self) -> int:
        self.read_log.append("lists")
        return self.listed

    def monitor(self, *, counted: bool = True) -> MemoryMonitor:
        made = MemoryMonitor(
            self.read,
            lambda: self.occupied,
            headroom_bytes=GIB,
            percpu_bytes=self.percpu_bytes if counted else None,
        )
        made.promised_bytes = lambda: self.promised
        self.read_log.clear()
        return made

    def shortage(self, monitor: MemoryMonitor) -> int:
        return max(0, self.promised - monitor.lendable_bytes())


def test_they_are_read_when_something_would_have_to_come_back() -> None:
    """And not while there is enough without them; after the rest, so that nothing on its way counts twice."""
    host = Host(available=5 * GIB, listed=MOST, occupied=4 * GIB, promised=8 * GIB)
    monitor = host.monitor()
    for look in (monitor.sample, monitor.refresh):
        host.available = 5 * GIB
        look()
        assert host.read_log == ["host"]
        assert (monitor.host.available_bytes, monitor.host.percpu_bytes) == (5 * GIB, 0)
        host.read_log.clear()
        host.available -= 1
        look()
        assert host.read_log == ["host", "host", "lists"]
        assert (monitor.host.available_bytes, monitor.host.percpu_bytes) == (5 * GIB - 1 + MOST, MOST)
        assert host.shortage(monitor) == 0
        host.read_log.clear()


def test_they_are_looked_at_once_at_the_start() -> None:
    """For then the kernel has memory for whoever opens the file, and later it may not."""
    host = Host()
    MemoryMonitor(host.read, lambda: 0, headroom_bytes=GIB, percpu_bytes=host.percpu_bytes)
    assert host.read_log.count("lists") == 1


def test_with_nothing_lent_they_do_not_matter() -> None:
    """However short the host is, nothing can come back."""
    host = Host(available=MIB, listed=GIB)
    host.monitor().refresh()
    assert "lists" not in host.read_log


def test_a_burst_is_not_answered_by_force_without_need() -> None:
    """Below half of the headroom by MemAvailable alone, and above it with the lists: nothing is taken at once."""
    host = Host(available=GIB // 2 - MIB, listed=2 * MIB, occupied=4 * GIB, promised=4 * GIB)
    for counted, hard_pressed in ((True, False), (False, True)):
        monitor = host.monitor(counted=counted)
        monitor.refresh()
        assert monitor.hard_pressed == hard_pressed
        assert monitor.missing_bytes == GIB // 2 + MIB - counted * 2 * MIB


def test_what_is_on_its_way_back_counts_as_well() -> None:
    """While slabs that nobody has any more are being cleared, what is missing is reckoned with the lists."""
    host = Host(available=GIB - 2 * MIB, listed=MIB, occupied=4 * GIB)
    monitor = host.monitor()
    monitor.refresh()
    assert monitor.missing_bytes == MIB


def test_a_closer_look_is_one_sample() -> None:
    """The averages move once a second, however often the host is looked at for it."""
    host = Host(listed=MIB, occupied=4 * GIB, promised=16 * GIB, pressure=50.0)
    monitor = host.monitor()
    monitor.sample()
    host.pressure = 0.0
    monitor.sample()
    assert host.read_log.count("lists") == 2
    assert monitor.headroom_now_bytes == pytest.approx(1.8 * GIB, abs=16)


def test_most_of_the_headroom_is_had_without_them() -> None:
    """Of any amount in lists a quarter of the headroom counts, so a host without anything else gets memory back."""
    host = Host(available=GIB // 4 - 1, listed=16 * GIB, occupied=4 * GIB, promised=4 * GIB)
    monitor = host.monitor()
    monitor.refresh()
    assert monitor.host.percpu_bytes == MOST
    assert monitor.hard_pressed


def test_slabs_that_were_just_cleared_are_seen_in_the_lists() -> None:
    """What comes back goes to lists first and from there to the zone: a donor that took enough takes no more."""
    host = Host(available=GIB - 200 * MIB, occupied=4 * GIB, promised=4 * GIB)
    monitor = host.monitor()
    monitor.sample()
    assert host.shortage(monitor) == 200 * MIB
    host.promised, host.occupied, host.listed = 4 * GIB - 200 * MIB, 4 * GIB - 200 * MIB, 200 * MIB
    monitor.refresh()
    assert host.shortage(monitor) == monitor.missing_bytes == 0
    while host.listed:
        host.listed, host.available = host.listed - 10 * MIB, host.available + 10 * MIB
        monitor.sample()
        assert host.shortage(monitor) == monitor.missing_bytes == 0
    blind = host.monitor(counted=False)
    host.available, host.listed = host.available - 200 * MIB, 200 * MIB
    blind.refresh()
    assert host.shortage(blind) == 200 * MIB, "what happened before"


def test_slabs_that_change_during_a_closer_look() -> None:
    """A slab that is cleared into the lists while host and slabs are looked at is counted once."""
    host = Host(available=GIB, occupied=4 * GIB, promised=8 * GIB)
    monitor = host.monitor()
    clearing = True

    def percpu_bytes() -> int:
        nonlocal clearing
        if clearing:
            clearing = False
            host.occupied -= 128 * MIB
            host.listed += 128 * MIB
        return host.listed

    monitor._read_percpu = percpu_bytes
    monitor.refresh()
    assert not clearing
    assert monitor.smoothed_bytes == 5 * GIB


STEPS = st.tuples(
    st.integers(0, 6 * GIB),
    st.integers(0, 2 * GIB),
    st.integers(0, 4 * GIB),
    st.integers(0, 4 * GIB),
    st.sampled_from([None, 0.0, 50.0]),
    st.booleans(),
)


@given(st.lists(STEPS, min_size=1, max_size=60))
def test_no_history_lends_what_is_not_there(steps: list[tuple[int, int, int, int, float | None, bool]]) -> None:
    """With lists no more is lent anew than without, and what stays lent is there, by a quarter of the headroom."""
    host = Host()
    monitor = host.monitor()
    for host.available, host.listed, host.occupied, unfilled, host.pressure, sample in steps:
        host.promised = host.occupied + unfilled
        (monitor.sample if sample else monitor.refresh)()
        supply = host.available + host.occupied
        assert monitor.growable_bytes() <= max(0, supply - GIB - GIB // 8)
        assert monitor.lendable_bytes() <= max(0, supply + min(host.listed, MOST) - GIB)
        if host.available < GIB // 4 and host.occupied:
            assert monitor.hard_pressed


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of the test's own: 1000 MiB of which 400 are available, and no control group."""
    monkeypatch.setattr(monitor_module, "MEMINFO_PATH", tmp_path / "meminfo")
    monkeypatch.setattr(monitor_module, "ZONEINFO_PATH", tmp_path / "zoneinfo")
    monkeypatch.setattr(monitor_module, "PRESSURE_PATH", tmp_path / "pressure")
    monkeypatch.setattr(monitor_module, "read_groups", lambda **_: ())
    (tmp_path / "meminfo").write_text(f"MemTotal: {1000 << 10} kB\nMemAvailable: {400 << 10} kB\n")
    return tmp_path


def zones(managed_bytes: int, *listed_bytes: int) -> str:
    """One zone, with a list for each processor."""
    page = getpagesize()
    lists = "".join(f"    cpu: {cpu}\n      count: {each // page}\n" for cpu, each in enumerate(listed_bytes))
    return f"Node 0, zone Normal\n        managed  {managed_bytes // page}\n  pagesets\n{lists}"


def percpu_bytes_of(keep_open: bool = True) -> int:
    """By a reader that has looked at the rest."""
    reader = HostReader(keep_open=keep_open)
    assert reader().available_bytes == 400 * MIB
    found = reader.percpu_bytes()
    reader.close()
    return found


@pytest.mark.parametrize("keep_open", [True, False])
def test_of_this_host(proc: Path, keep_open: bool) -> None:
    """All processors' lists together, also where they take more than one reading."""
    (proc / "zoneinfo").write_text(zones(990 * MIB, 20 * MIB, 30 * MIB))
    assert percpu_bytes_of(keep_open) == 50 * MIB
    many = [MIB // 16] * 1600
    (proc / "zoneinfo").write_text("\n" * (1 << 16) + zones(990 * MIB, *many))
    assert percpu_bytes_of(keep_open) == 100 * MIB


def test_of_another_host(proc: Path) -> None:
    """A container with a meminfo of its own and the zones of its host goes by meminfo alone."""
    (proc / "zoneinfo").write_text(zones(64 * GIB, 20 * MIB))
    assert percpu_bytes_of() == 0


@pytest.mark.parametrize("content", [None, b"", b"Node 0, zone\n\xff\xfe managed", b"<html>"])
def test_where_the_kernel_does_not_tell(proc: Path, content: bytes | None) -> None:
    """Missing or senseless, it is as if there were no lists."""
    if content is not None:
        (proc / "zoneinfo").write_bytes(content)
    assert percpu_bytes_of() == 0


def test_with_no_descriptor_free(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen of the rest stands."""

    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, "too many open files")

    reader = HostReader(keep_open=False)
    assert reader().available_bytes == 400 * MIB
    monkeypatch.setattr(HostFiles, "text", refuse)
    assert reader.percpu_bytes() == 0


def test_what_a_lender_has_promised_is_what_counts() -> None:
    """Slabs, filled or not, and not what is on its way back: the monitor asks the lender."""
    arena, clock = Arena(64 * MIB), FakeClock()
    host = Host()
    monitor = host.monitor()
    lender = Lender(
        arena=arena,
        leases=LeaseTable(clock, ttl_s=5.0, grace_s=0.5),
        engine=FakeEngine(),
        monitor=monitor,
    )
    lease, _ = lender.grant(device="vol", device_id="1", size_bytes=32 * MIB, slab_bytes=MIB)
    lender.map_slab(lease, 0)
    lender.map_slab(lease, 1)
    assert monitor.promised_bytes() == 2 * MIB
    lender.clearing.in_hand_bytes = MIB
    assert monitor.promised_bytes() == MIB
    lender.clearing.in_hand_bytes = 0
    arena.close()
