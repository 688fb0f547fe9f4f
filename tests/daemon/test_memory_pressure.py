"""Under real memory pressure lent memory goes, and nothing else: not the application, not the daemon, not a byte.

Daemon and application stand in a memory control group with a limit; the application is one that the OOM killer may take
as any other. A device with a client that writes and checks all the time has its pages in the daemon.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import nbd
import pytest

from tests.support import memory_group
from tests.support.load import Ledger, Load
from tests.support.memory_group import MemoryGroup
from tests.support.pace import paced
from tests.support.services import Daemon, Device, Service, Services
from tests.support.waiting import wait_for

MIB = 1 << 20
PROGRAMS = 160 * MIB  # in the group beside slabs and headroom: daemon, fuses, interpreter of the application
SLAB = 8 * MIB
SLABS = 72
FUSES = 16  # the default
TRIES = 3
RESTORED_S = 10.0  # 2 s are promised where the host has nothing else to do; a test may assume no speed

pytestmark = pytest.mark.skipif(memory_group.why_not() is not None, reason=memory_group.why_not() or "")


class OvertakenError(AssertionError):
    """The kernel took a process that was to live, for the daemon had no turn before all fuses were blown."""


class Crowd:
    """A daemon whose slabs are filled, the device that holds them, and an application beside the daemon."""

    def __init__(self, services: Services, headroom_bytes: int, *, yielding: bool = False) -> None:
        """yielding: the application leaves the processor to everybody else."""
        self.headroom_bytes = headroom_bytes
        self.hog = [*(("nice", "-n", "19") if yielding else ()), sys.executable, "-m", "tests.support.hog"]
        self.group = MemoryGroup(PROGRAMS + headroom_bytes + headroom_bytes // 8 + SLABS * SLAB)
        self.services = services

    def __enter__(self) -> Self:
        group, services = self.group.__enter__(), self.services
        headroom = str(self.headroom_bytes)
        self.daemon: Daemon = services.daemon("640MiB", "--headroom", headroom, prefix=group.prefix)
        size = f"{SLABS * SLAB // MIB}MiB"
        self.device: Device = services.device(
            "vol", "--map", "eager", "--pending-limit", "64MiB", size=size, slab_size="8MiB", peers=[self.daemon]
        )
        self.ledger = Ledger(SLABS * SLAB // 4096)
        # Touched once they are mapped, and written again so that their pages are really there.
        with self.device.connect() as client:
            for index in range(SLABS):
                client.write(index * SLAB, bytes(4096))
            wait_for(lambda: self.stats()["slabs"] == SLABS, what="all slabs", timeout_s=60)
        with Load(self.device.uri, self.ledger, seed=1, pages_max=64) as load:
            load.write_all(timeout_s=120)
        wait_for(lambda: self.stats()["memory"]["occupied_bytes"] > 500 * MIB, what="filled slabs", timeout_s=60)
        self.application: Service = services.spawn("application", [*group.prefix, *self.hog], stdin=subprocess.PIPE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        # Without its daemon whatever comes next fails, in its own words.
        daemon_taken = self.group.killed > FUSES and self.daemon.process.poll() == -signal.SIGKILL
        if kind is OvertakenError or daemon_taken:
            self.services.any_log = True
            for service in self.services.started:
                service.killed = True
        if self.application.process.stdin is not None:
            self.application.process.stdin.close()
        try:
            self.services.close()  # nobody may be left in the group
        finally:
            self.group.__exit__()
        if daemon_taken and kind is not OvertakenError:
            raise OvertakenError("the daemon") from error

    def stats(self) -> dict[str, Any]:
        """Of the daemon."""
        content: dict[str, Any] = self.daemon.get("/v1/stats")
        return content

    def order(self, text: str, timeout_s: float = 60.0) -> None:
        """The application does it; AssertionError when it cannot."""
        assert self.application.process.stdin is not None
        self.application.process.stdin.write(text.encode() + b"\n")
        self.application.process.stdin.flush()
        answer = self.application.output.line(paced(timeout_s))
        if answer is None and self.group.killed > FUSES:
            raise OvertakenError(text)
        assert answer == "done", f"{text}: {answer}; exit code {self.application.process.poll()}"

    def restored(self) -> float:
        """Wait until the headroom is there; how long that took, s."""
        begun_s = time.monotonic()
        wait_for(lambda: self.group.free_bytes >= self.headroom_bytes - MIB, RESTORED_S, "the headroom")
        return time.monotonic() - begun_s

    @contextmanager
    def client(self) -> Iterator[Load]:
        """A client that writes and checks what it reads meanwhile; afterwards all is read back."""
        done = threading.Event()
        wrong: list[Exception] = []

        def run() -> None:
            try:
                load.run(done.is_set, timeout_s=300)
            except (AssertionError, nbd.Error) as error:
                wrong.append(error)

        with Load(self.device.uri, self.ledger, seed=2, depth=8) as load:
            thread = threading.Thread(target=run)
            thread.start()
            try:
                yield load
            finally:
                done.set()
                thread.join()
            assert not wrong, wrong
            assert load.counts.errors == []
            load.check()

    def all_live(self) -> None:
        """Neither daemon nor device nor application has ended, and what the latter holds is right."""
        self.order("check")
        assert self.daemon.running
        assert self.device.running
        failures = self.device.get("/v1/stats")["failures"]
        assert failures["lost_pages"] == failures["request_errors"] == failures["checksum_mismatches"] == 0


@pytest.mark.slow
def test_an_application_that_grows(services: Services) -> None:
    """Step by step it takes half of what was lent: each time the headroom is there again, and nobody is killed."""
    services.expect_log("taken back by force", "refuses slab [0-9]+, which is lost there")
    took_s = []
    with Crowd(services, 256 * MIB) as crowd:
        with crowd.client() as load:
            for _ in range(5):
                crowd.order("64 0.5")
                took_s.append(crowd.restored())
            assert load.counts.written_pages > 0
        assert crowd.group.killed == 0
        crowd.all_live()
        stats = crowd.stats()
        assert stats["memory"]["occupied_bytes"] <= SLABS * SLAB - 128 * MIB
        print("headroom restored after", [round(seconds, 2) for seconds in took_s], "s;", stats["counts"])


@pytest.mark.slow
@pytest.mark.parametrize("headroom_bytes", [256 * MIB, 32 * MIB])
def test_an_application_that_outruns_everything(services: Services, headroom_bytes: int) -> None:
    """It takes more than is free in one system call: whoever the kernel takes, it is a fuse, and lent memory goes.

    The kernel does not wait for a daemon that other work keeps from the processor for longer than its fuses last: that
    is no failure, but each time is one. From the second time on the application is what other work keeps from it.
    """
    for count in range(TRIES - 1):
        with contextlib.suppress(OvertakenError):
            outrun(services, headroom_bytes, yielding=count > 0)
            return
    outrun(services, headroom_bytes, yielding=True)


def outrun(services: Services, headroom_bytes: int, *, yielding: bool = False) -> None:
    """Once."""
    services.expect_log("taken back by force", "refuses slab [0-9]+, which is lost there")
    services.expect_log("the OOM killer took a fuse", "fuses against the OOM killer")
    with Crowd(services, headroom_bytes, yielding=yielding) as crowd:
        with crowd.client():
            begun_s = time.monotonic()
            crowd.order(f"{(headroom_bytes + 256 * MIB) // MIB} 0")
            rush_s = time.monotonic() - begun_s
            took_s = crowd.restored()
        crowd.all_live()
        wait_for(
            lambda: crowd.group.killed == crowd.stats()["counts"]["host_fuses_blown"], what="fuses alone, all told"
        )
        stats = crowd.stats()
        wait_for(lambda: crowd.stats()["host"]["fuses"] == FUSES, what="fuses in place again", timeout_s=30)
        print(f"rush of {rush_s:.2f} s, headroom restored {took_s:.2f} s later;", stats["counts"])
