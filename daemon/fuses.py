"""Fuses: tiny processes that the kernel kills before any other when memory runs out, so that the daemon hears of it.

The OOM killer takes the process with the highest score (proc(5)): pages in use plus oom_score_adj thousandths of all
memory. A process that is as small as can be, with 1000, comes before every application and before
the daemon, whose own score counts all the memory that it lends. One that was killed tells in the same moment that lent
memory must go, by force; until it is gone the kernel finds the next fuse. They stand in the daemon's control group, so
they answer for its limits and those above it as well as for the whole host.

A fuse is cat, which waits for a pipe of the daemon's to end: however the daemon ends, its fuses end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import select
import shutil
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path

from infiniswap.daemon.cgroup import dies_as_a_whole
from infiniswap.shared.clock import Clock

log = logging.getLogger(__name__)

DESCRIPTORS_PER_FUSE = 16  # that this process may have, or connections would lack those that fuses hold
SCORE = 1000  # the most that there is
RESPAWN_PAUSE_S = 2.0  # after the last one was blown: what is short of memory must not be given work
BLOWN_MAX = 64  # replaced within BLOWN_WINDOW_S; more of them wait until that is over
BLOWN_WINDOW_S = 60.0
END_TIMEOUT_S = 5.0  # for fuses to end when they are told to, before they are killed
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # sent to all of a service or a terminal


def wanted_fuses(count: int) -> int:
    """How many fuses there may be of count: none where the kernel would kill the daemon with the first one."""
    if count and dies_as_a_whole():
        log.warning("no fuses: memory.oom.group is set, and with one of them the kernel would kill the daemon")
        return 0
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return count if limit == resource.RLIM_INFINITY else min(count, limit // DESCRIPTORS_PER_FUSE)


class Fuses:
    """Keeps a number of fuses in place. start() once, then close() once, on the event loop."""

    def __init__(
        self,
        count: int,
        blown: Callable[[], None],
        *,
        clock: Clock,
        program: str | None = None,
        proc: Path = Path("/proc"),
        respawn_pause_s: float = RESPAWN_PAUSE_S,
    ) -> None:
        """count: 0 for none; blown: called for each that was killed; program: cat, found by itself; proc: for tests."""
        self._count = count
        self._blown = blown
        self._clock = clock
        self._program = program or shutil.which("cat") or ""
        self._proc = proc
        self._respawn_pause_s = respawn_pause_s
        self._fuses: dict[int, int] = {}  # pidfd -> pid
        self._recent_s: deque[float] = deque()  # when fuses were blown, the last BLOWN_WINDOW_S
        self._pipe: tuple[int, int] | None = None
        self._respawn: asyncio.TimerHandle | None = None
        self.blown = 0  # since the start

    def __len__(self) -> int:
        """Fuses in place."""
        return len(self._fuses)

    @property
    def pids(self) -> list[int]:
        """Their processes."""
        return list(self._fuses.values())

    def start(self) -> None:
        """Put all of them in place, as far as the host lets us."""
        if self._count == 0:
            return
        self._pipe = os.pipe2(os.O_CLOEXEC)
        self._fill()

    async def close(self) -> None:
        """End them, and wait for that."""
        if self._respawn is not None:
            self._respawn.cancel()
        if self._pipe is None:
            return
        for end in self._pipe:
            os.close(end)
        self._pipe = None
        loop = asyncio.get_running_loop()
        fuses, self._fuses = self._fuses, {}
        for pidfd in fuses:
            loop.remove_reader(pidfd)
        await asyncio.gather(*(loop.run_in_executor(None, _end, pidfd, pid) for pidfd, pid in fuses.items()))

    def _fill(self) -> None:
        self._respawn = None
        while len(self._fuses) < self._count:
            try:
                self._add()
            except OSError as error:
                # Without memory for a fuse there will be none for the next; it is tried again.
                log.warning("only %d of %d fuses against the OOM killer: %s", len(self._fuses), self._count, error)
                self._refill_later()
                return

    def _refill_later(self) -> None:
        """One timer for all that are missing."""
        if self._respawn is not None:
            self._respawn.cancel()
        now = self._clock()
        while self._recent_s and now - self._recent_s[0] >= BLOWN_WINDOW_S:
            self._recent_s.popleft()
        pause_s = self._respawn_pause_s
        if len(self._recent_s) >= BLOWN_MAX:
            pause_s = max(pause_s, BLOWN_WINDOW_S - (now - self._recent_s[0]))
        self._respawn = asyncio.get_running_loop().call_later(pause_s, self._fill)

    def _add(self) -> None:
        """One more; OSError when there cannot be."""
        assert self._pipe is not None
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, self._pipe[0], 0)]
            actions += [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (1, 2)]
            # What systemd passed to the daemon, and whoever started it may have left open, is not for fuses to hold.
            actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
            # Not fork(): a copy of the daemon's page tables is no way to begin when memory is short.
            pid = os.posix_spawn(
                self._program, ["infiniswapd-fuse"], {}, file_actions=actions, setpgroup=0, setsigmask=_IGNORED
            )
        finally:
            os.close(null)
        try:
            (self._proc / str(pid) / "oom_score_adj").write_text(str(SCORE))
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._fuses[pidfd] = pid
        asyncio.get_running_loop().add_reader(pidfd, self._ended, pidfd)

    def _ended(self, pidfd: int) -> None:
        """One has ended, of which nobody told us."""
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        pid = self._fuses.pop(pidfd)
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:  # somebody else has waited for it: take it for the worst
            status = signal.SIGKILL
        self._recent_s.append(self._clock())
        if len(self._recent_s) > BLOWN_MAX:
            self._recent_s.popleft()
        self._refill_later()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.blown += 1
            self._blown()
        else:
            log.warning("a fuse ended by itself (status %d)", status)


def _inheritable() -> list[int]:
    """Descriptors above stderr that a child would have."""
    found = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # beyond it posix_spawn() refuses to close any
    for entry in Path("/proc/self/fd").iterdir():
        number = int(entry.name)
        with contextlib.suppress(OSError):  # the one by which the folder is read is gone again
            if number > 2 and os.get_inheritable(number) and (limit == resource.RLIM_INFINITY or number < limit):
                found.append(number)
    return found


def _end(pidfd: int, pid: int) -> None:
    """Wait until a fuse whose pipe has ended is gone; kill it when that takes too long."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(END_TIMEOUT_S * 1000):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    os.close(pidfd)
