"""A running service gets back what the kernel gave up: told by the kernel or seen by itself, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infiniswap.kernel_shim import watch as module
from infiniswap.kernel_shim.caller import Caller
from infiniswap.kernel_shim.reattach import Reattached, ReattachError
from infiniswap.kernel_shim.watch import ConnectionWatch
from tests.support.fake_kernel import FakeKernel
from tests.support.waiting import eventually


class World:
    """A kernel device of three connections, the news about it, and what was replaced."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.kernel = FakeKernel(root)
        self.open = 3
        self.deadline_ms: int | None = None
        self.timeout_s = 10.0
        self.expected: list[bool] = []
        self.failures: list[Exception] = []
        self.no_news = False
        self.hear, self.tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.hear.setblocking(False)
        patch.setattr(module, "reattach", self._reattach)
        patch.setattr(module, "open_news", lambda: None if self.no_news else self.hear.dup())
        patch.setattr(module, "LOOK_INTERVAL_S", 0.02)
        patch.setattr(module, "_SETTLE_S", 0)
        patch.setattr(module, "RETRY_S", 0.01)
        self.watch = ConnectionWatch(
            "a", "/s", open_connections=lambda: self.open, deadline_ms=lambda: self.deadline_ms, root=root
        )

    def attach(self) -> None:
        """The kernel device appears."""
        self.kernel.add(0, size_bytes=1 << 20, backend="infiniswap:a:3:/s")

    async def _reattach(
        self, _name: str, _path: str, *, some_expected: bool, root: Path, caller: Caller
    ) -> Reattached | None:
        del root, caller
        self.expected.append(some_expected)
        if self.failures:
            raise self.failures.pop(0)
        if self.watch.device is None:
            return None
        dead, self.open = 3 - self.open, 3
        return Reattached(0, dead, self.timeout_s)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A watch that runs, with no kernel device yet."""
    world = World(tmp_path, monkeypatch)
    task = asyncio.create_task(world.watch.run())
    await eventually(lambda: world.expected == [True])
    yield world
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    world.hear.close()
    world.tell.close()


async def test_told_by_the_kernel(world: World) -> None:
    """At every news connections are replaced, also when other clients hide from the count that any are dead."""
    world.attach()
    await eventually(lambda: world.watch.connections() == 3)
    for count in (2, 3):
        world.tell.send(b"link dead")
        await eventually(lambda count=count: len(world.expected) == count)  # type: ignore[misc]
    assert world.expected == [True, False, False]


@pytest.mark.parametrize("alive", [2, 0])
async def test_seen_without_news(world: World, alive: int) -> None:
    """News that never came, or cannot come at all: the count of open connections tells; facts show it."""
    world.no_news = alive == 0
    world.attach()
    await eventually(lambda: world.watch.connections() == 3)
    assert world.watch.facts() == {"nbd": "/dev/nbd0", "nbd_connections": 3, "nbd_dead": 0, "nbd_replaced": 0}
    world.open = alive
    assert world.watch.dead() == 3 - alive
    await eventually(lambda: world.watch.replaced == 3 - alive)
    assert world.watch.dead() == 0


async def test_nothing_ends_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Errors of either kind are logged, a repeated one once, and it goes on until connections are back."""
    world.failures = [ReattachError("no"), ReattachError("no"), TypeError("a bug"), ReattachError("no")]
    world.attach()
    world.open = 1
    await eventually(lambda: world.watch.replaced == 2)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["no", "watching the kernel device went wrong; going on"]


async def test_detached(world: World) -> None:
    """A kernel device that was taken away has no dead connections."""
    world.attach()
    await eventually(lambda: world.watch.connections() == 3)
    (world.kernel.root / "sys/block/nbd0/pid").unlink()
    world.open = 0
    await eventually(lambda: world.watch.device is None)
    assert world.watch.facts()["nbd_dead"] == 0


async def test_time_outs_are_checked(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A service whose requests may take longer than the kernel's time-out says what to attach with."""
    world.attach()
    world.deadline_ms = 10_000
    world.open = 2
    await eventually(lambda: world.watch.replaced == 1)
    await eventually(lambda: "--timeout 20" in caplog.text)


async def test_caller() -> None:
    """One thread makes all calls and was there before; a call that hangs is left behind, and the next one is made."""
    caller = Caller("test")
    caller.prepare()
    idents: list[int] = []
    for _ in range(3):
        await caller.call(lambda: idents.append(threading.get_ident()), 5)
    assert len(set(idents)) == 1
    assert idents[0] != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await caller.call(lambda: print(1 // 0), 5)
    go_on = threading.Event()

    def hang() -> None:
        go_on.wait(20)

    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        await caller.call(hang, 0.1)
    assert time.monotonic() - begun < 10
    await caller.call(lambda: idents.append(threading.get_ident()), 5)
    assert idents[-1] != idents[0]
    go_on.set()
    caller.close()
