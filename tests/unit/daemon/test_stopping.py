"""A stop drains first, within its time, keeps the service manager patient meanwhile, and never waits for ever."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from infiniswap.daemon import stopping
from infiniswap.daemon.stopping import StopSignals, drain_before_stop, until_stop
from tests.support.waiting import eventually


class FakeDraining:
    """As draining.Draining, but that slabs go when the test says so."""

    def __init__(self, slabs: int) -> None:
        self.slabs = slabs
        self.is_over = asyncio.Event()
        self.stop_wanted = asyncio.Event()
        self.deadlines: list[float] = []

    def left(self) -> int:
        return self.slabs

    def hasten(self, deadline_s: float) -> None:
        self.deadlines.append(deadline_s)


@pytest.fixture
def manager(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Hears what a service manager would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(short_path / "n"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "n"))
        yield manager


@pytest_asyncio.fixture
async def signals() -> AsyncIterator[StopSignals]:
    """Those of this loop, which come by come()."""
    signals = StopSignals()
    yield signals


def heard(manager: socket.socket) -> list[str]:
    """What it was told since the last look."""
    found: list[str] = []
    while True:
        try:
            found += manager.recv(1000).decode().splitlines()
        except BlockingIOError:
            return found


async def stop(slabs: int, signals: StopSignals, timeout_s: float) -> tuple[Any, asyncio.Task[None]]:
    """A stop that has begun."""
    draining: Any = FakeDraining(slabs)
    return draining, asyncio.create_task(drain_before_stop(draining, signals, timeout_s))


@pytest.mark.parametrize(("slabs", "timeout_s"), [(0, 60.0), (3, 0.0)])
async def test_nothing_to_wait_for(signals: StopSignals, manager: socket.socket, slabs: int, timeout_s: float) -> None:
    """Nothing is lent, or nobody is to be waited for."""
    draining, task = await stop(slabs, signals, timeout_s)
    await task
    assert draining.deadlines == []
    assert heard(manager) == ["STOPPING=1"]


async def test_until_all_has_gone(
    signals: StopSignals, manager: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The drain has the stop's time; the manager hears again and again that it takes longer, and how long."""
    monkeypatch.setattr(stopping, "TELL_INTERVAL_S", 0.01)
    draining, task = await stop(3, signals, 300.0)
    told: list[str] = []

    def often() -> bool:
        told.extend(heard(manager))
        return told.count("EXTEND_TIMEOUT_USEC=20000000") >= 3

    await eventually(often, "the manager being told")
    assert "STATUS=stopping: 3 slabs are still lent" in told
    assert draining.deadlines == [300.0]
    assert not task.done()
    draining.slabs = 0
    draining.is_over.set()
    await task
    assert capsys.readouterr().err == (
        "infiniswapd: 3 slabs are moved away before the stop, within 300 s; a second signal stops at once\n"
    )


async def test_a_second_signal(signals: StopSignals, caplog: pytest.LogCaptureFixture) -> None:
    """The first asks for the stop, the second ends the waiting."""
    signals.come()
    assert (signals.wanted.is_set(), signals.at_once.is_set()) == (True, False)
    _, task = await stop(3, signals, 300.0)
    await asyncio.sleep(0)
    signals.come()
    await task
    assert "stopping with 3 slabs still lent" in caplog.text


async def test_never_for_ever(
    signals: StopSignals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Slabs that cannot even be taken do not hold the stop up."""
    monkeypatch.setattr(stopping, "LATE_S", 0.02)
    _, task = await stop(3, signals, 0.02)
    await task
    assert "stopping with 3 slabs still lent" in caplog.text


async def test_what_asks_for_a_stop(signals: StopSignals, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal at once; a drain that was to end so a little later, so that who watches it sees its end."""
    draining: Any = FakeDraining(0)
    waiting = asyncio.create_task(until_stop(signals, draining))
    await asyncio.sleep(0)
    draining.stop_wanted.set()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    signals.come()
    await waiting
    monkeypatch.setattr(stopping, "LINGER_S", 0.01)
    await until_stop(StopSignals(), draining)
