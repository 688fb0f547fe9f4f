"""Fuses are there, are the kernel's first choice, tell when they are blown, and end with the daemon however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from infiniswap.daemon import fuses as fuses_module
from infiniswap.daemon.fuses import BLOWN_MAX, BLOWN_WINDOW_S, SCORE, Fuses, wanted_fuses
from tests.support.clock import FakeClock
from tests.support.waiting import eventually, wait_for


class World:
    """Three fuses, put back without a pause, and how often one was blown."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.told = 0
        self.fuses = Fuses(3, self.blown, clock=self.clock, respawn_pause_s=0.01)

    def blown(self) -> None:
        self.told += 1


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A world whose fuses stand."""
    made = World()
    made.fuses.start()
    yield made
    await made.fuses.close()


def looks(pid: int) -> tuple[int, bool, set[str]]:
    """A fuse's score, whether it is small, and its descriptors."""
    proc = Path(f"/proc/{pid}")
    small = psutil.Process(pid).memory_full_info().uss < 1 << 20
    return int((proc / "oom_score_adj").read_text()), small, {entry.name for entry in (proc / "fd").iterdir()}


async def test_the_kernel_takes_them_first_and_they_are_small() -> None:
    """Each has the highest score that there is and hardly any memory, and nothing of the daemon's but a pipe."""
    passed = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(passed, True)  # as a socket from systemd is
    world = World()
    world.fuses.start()
    assert len(world.fuses) == 3
    right = (SCORE, True, {"0", "1", "2"})
    # They have begun, no more: for a moment the loader has the libraries of theirs open.
    await eventually(
        lambda: all(looks(pid) == right for pid in world.fuses.pids), "small fuses without our descriptors"
    )
    assert SCORE == 1000
    await world.fuses.close()
    os.close(passed)


async def test_a_blown_fuse_is_told_and_put_back(world: World) -> None:
    """SIGKILL from outside is what the OOM killer does; every one is told, and afterwards all stand again."""
    before = set(world.fuses.pids)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: world.told == 3, "all were told")
    await eventually(lambda: len(world.fuses) == 3, "all stand again")
    assert world.fuses.blown == 3
    assert before.isdisjoint(world.fuses.pids)
    assert not [pid for pid in before if psutil.pid_exists(pid)], "none is left as a zombie"


async def test_stopping_everybody_blows_none(world: World) -> None:
    """SIGTERM and SIGINT to all of the service are the daemon's affair."""
    before = world.fuses.pids
    for pid in before:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    os.kill(before[0], signal.SIGKILL)
    await eventually(lambda: world.told == 1, "the one is told")
    assert set(before[1:]) <= set(world.fuses.pids)


async def test_one_that_ends_otherwise_is_no_alarm(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A fuse that somebody ends by another signal is put back, and no memory is taken for it."""
    os.kill(world.fuses.pids[0], signal.SIGSEGV)
    await eventually(lambda: "ended by itself" in caplog.text, "it is logged")
    await eventually(lambda: len(world.fuses) == 3, "it is put back")
    assert world.told == 0


async def test_they_are_not_put_back_without_end(world: World) -> None:
    """After BLOWN_MAX within a minute the next ones wait until that minute is over."""
    loop = asyncio.get_running_loop()
    world.fuses._respawn_pause_s = 0.0
    for count in range(BLOWN_MAX):
        await eventually(lambda: len(world.fuses) == 3, "they stand")
        before_s = loop.time()
        os.kill(world.fuses.pids[0], signal.SIGKILL)
        await eventually(lambda told=count + 1: world.told == told, "it is told")  # type: ignore[misc]
    timer = world.fuses._respawn
    assert timer is not None
    assert before_s + BLOWN_WINDOW_S <= timer.when() <= loop.time() + BLOWN_WINDOW_S
    assert len(world.fuses) == 2


async def test_closing_ends_them_and_tells_nobody() -> None:
    """Fuses that end because the daemon closes are no alarm, and none is left."""
    world = World()
    world.fuses.start()
    pids = world.fuses.pids
    await world.fuses.close()
    assert len(world.fuses) == world.told == 0
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    await world.fuses.close()


async def test_one_that_does_not_end_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuse that is stopped cannot see its pipe end."""
    monkeypatch.setattr(fuses_module, "END_TIMEOUT_S", 0.1)
    pids = world.fuses.pids
    os.kill(pids[1], signal.SIGSTOP)
    await world.fuses.close()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_none_where_one_would_take_all_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With memory.oom.group the kernel kills the whole group for one of it: that is said, and there are none."""
    monkeypatch.setattr(fuses_module, "dies_as_a_whole", lambda: False)
    assert wanted_fuses(8) == 8
    monkeypatch.setattr(fuses_module, "dies_as_a_whole", lambda: True)
    assert wanted_fuses(0) == 0
    assert caplog.text == ""
    assert wanted_fuses(8) == 0
    assert "memory.oom.group" in caplog.text


async def test_none_are_wanted() -> None:
    """A count of 0 is nothing at all."""
    fuses = Fuses(0, lambda: None, clock=FakeClock())
    fuses.start()
    assert fuses.pids == []
    await fuses.close()


@pytest.mark.parametrize("broken", ["program", "proc"])
async def test_hosts_that_cannot_have_them(tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str) -> None:
    """Without the program or the score nothing fails; it is said, no half-made fuse is left, and it is tried again."""
    program = str(tmp_path / "none") if broken == "program" else None
    proc = tmp_path if broken == "proc" else Path("/proc")
    children = psutil.Process().children()
    fuses = Fuses(2, lambda: None, clock=FakeClock(), program=program, proc=proc, respawn_pause_s=0.01)
    fuses.start()
    await eventually(lambda: caplog.text.count("only 0 of 2 fuses") == 1, "it is said")
    assert psutil.Process().children() == children
    await fuses.close()


def test_they_end_with_a_daemon_that_is_killed() -> None:
    """Nothing is left behind by kill -9."""
    code = (
        "import asyncio, sys, time\n"
        "from infiniswap.daemon.fuses import Fuses\n"
        "async def main():\n"
        "    fuses = Fuses(2, lambda: None, clock=time.monotonic)\n"
        "    fuses.start()\n"
        "    print(*fuses.pids, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()

    def gone(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_for(lambda: all(map(gone, pids)), what="the fuses' end")
