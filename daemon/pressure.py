"""Hears from the kernel at once that tasks wait for memory: PSI triggers, where there are any.

Source: kernel docs, accounting/psi: "some STALL WINDOW" (microseconds) written to a pressure file arms a trigger, which
POLLPRI tells at most once in a window. asyncio waits for POLLIN only, so an epoll of our own stands between: it becomes
readable when one of its triggers fires.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path

from infiniswap.shared.descriptors import EXHAUSTED

log = logging.getLogger(__name__)

# A tenth of half a second, the shortest window that there is; without CAP_SYS_RESOURCE windows are of whole 2 s.
# The line feed matters: the kernel puts its final zero over the last byte.
TRIGGERS = (b"some 50000 500000\n", b"some 200000 2000000\n")
FILES_MAX = 16  # pressure files watched


class PressureTriggers:
    """Calls back when tasks of the host, or of a limited control group, wait for memory."""

    def __init__(self, files: Sequence[Path], told: Callable[[], None]) -> None:
        """files: of PSI, those that cannot be armed are left out; told: called on the event loop. Call start()."""
        self._told = told
        self._epoll: select.epoll | None = None
        self._armed: dict[int, Path] = {}
        self._files = files[:FILES_MAX]
        self.fired = 0  # since the start

    @property
    def armed(self) -> int:
        """Files that are watched; 0: only samples tell how the host stands."""
        return len(self._armed)

    def start(self) -> None:
        """Arm what can be armed; nothing fails where the kernel has no PSI."""
        self._epoll = select.epoll()
        for file in self._files:
            fd = _arm(file)
            if fd is not None:
                self._armed[fd] = file
                self._epoll.register(fd, select.EPOLLPRI)
        if self._armed:
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)
        log.info("pressure triggers: %s", ", ".join(map(str, self._armed.values())) or "none")

    def close(self) -> None:
        """Disarm; the call-back is not called any more."""
        if self._epoll is None:
            return
        if self._armed:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        for fd in self._armed:
            os.close(fd)
        self._armed.clear()
        self._epoll.close()
        self._epoll = None

    def _ready(self) -> None:
        assert self._epoll is not None
        pressed = False
        for fd, events in self._epoll.poll(0):
            if events & select.EPOLLERR:  # the control group is gone, and its trigger with it
                self._epoll.unregister(fd)
                os.close(fd)
                log.info("the pressure trigger of %s has gone", self._armed.pop(fd))
            elif events & select.EPOLLPRI:
                pressed = True
        if pressed:
            self.fired += 1
            self._told()


def _arm(file: Path) -> int | None:
    """A descriptor with a trigger on it; None where the kernel has none, or does not let us."""
    for trigger in TRIGGERS:
        try:
            fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise
            return None
        try:
            os.write(fd, trigger)
        except OSError as error:
            log.debug("%s: %s", file, error)
            os.close(fd)
        else:
            return fd
    return None
