"""What programs print, and the promise that a service outlives whoever reads it.

A service writes to its descriptors directly: a buffered stream keeps what could not be written and stumbles over it
again at exit, and a pipe that nobody empties would hold up the event loop, and with it the heartbeats.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys

import click

from infiniswap.shared.errors import one_line

STDOUT_FD, STDERR_FD = 1, 2


_were_closed: set[int] = set()


def was_closed(fd: int) -> bool:
    """Whether hold_standard_streams() found it closed: what is written there goes nowhere."""
    return fd in _were_closed


def hold_standard_streams() -> None:
    """Open descriptors 0 to 2 where they are closed, before anything else takes their numbers.

    What is printed would go there: into the backup, or to a client.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            _were_closed.add(fd)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, so this one
    # Python has none for a descriptor that was closed when it began.
    sys.stdout = sys.stdout or os.fdopen(STDOUT_FD, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(STDERR_FD, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are bytes, and go out as such


def drop(fd: int) -> None:
    """From now on what is printed to fd goes nowhere, also what a stream still holds for the time of exit."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null)


def say(message: str) -> None:
    """One line on stderr, or nowhere."""
    try:
        click.echo(message, err=True)
    except OSError:
        drop(STDERR_FD)


def announce(line: str) -> None:
    """One line on stdout from a service, whatever names stand in it, or nowhere."""
    _put(STDOUT_FD, f"{one_line(line)}\n".encode(errors="replace"))


class ServiceLog(logging.Handler):
    """Lines on stderr as far as it takes them; it never waits, and tells later how many were lost."""

    def __init__(self, fd: int = STDERR_FD) -> None:
        """fd: where to; it stays open."""
        super().__init__()
        self._fd = fd
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as a line."""
        try:
            text = self.format(record)
            if not record.exc_info and not record.stack_info:  # names may hold line ends; a traceback has its own
                text = one_line(text)
        except Exception:  # noqa: BLE001 - a message with wrong arguments must not end who logs it
            text = f"{record.levelname} {record.name}: {record.msg}"
        if self._lost and _put(self._fd, f"({self._lost} lines are lost: nobody took them)\n".encode()):
            self._lost = 0
        self._lost += not _put(self._fd, f"{text}\n".encode(errors="replace"))


def _put(fd: int, data: bytes) -> bool:
    """Write without waiting; False when not all of it was taken."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    try:
        while data:
            # A pipe that is writable takes PIPE_BUF bytes without waiting (pipe(7)).
            if not any(state & select.POLLOUT for _, state in poll.poll(0)):
                return False
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]
    except OSError:
        return False
    return True
