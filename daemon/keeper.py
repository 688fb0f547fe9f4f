"""Where the daemon's memory is while there is no daemon: in systemd's fd store, with a holder process, or nowhere.

Kept are two memfds, the slabs and the table that says whose they are. One without the other is worth nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from infiniswap.daemon import holder
from infiniswap.nbd.listener import open_unix_socket
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.manager import is_restarting
from infiniswap.shared.notify import notify
from infiniswap.shared.passed import Passed

log = logging.getLogger(__name__)

SLABS_NAME, LEASES_NAME = "infiniswap-slabs", "infiniswap-leases"  # in the fd store
KEPT_NAMES = (SLABS_NAME, LEASES_NAME)
ANSWER_TIMEOUT_S = 5.0  # of the holder
BUSY_TIMEOUT_S = 10.0  # for a daemon before this one that is still ending
RETRY_S = 0.05

Notify = Callable[..., bool]


class Kept(NamedTuple):
    """The two descriptors; who gets them owns them."""

    slabs: int
    leases: int

    def close(self) -> None:
        """Close both."""
        for fd in self:
            os.close(fd)


class Keeper(Protocol):
    """Keeps descriptors beyond this process."""

    keeps: bool  # whether there is a place at all

    def take(self) -> Kept | None:
        """What the daemon before has left; UserError when somebody else has it."""

    def keep(self, kept: Kept) -> None:
        """Keep these from now on, instead of others. A failure is logged: the daemon serves without."""

    def lasts(self) -> bool:
        """Whether what is kept outlives an end of this process now. May take some seconds."""

    def leave(self) -> None:
        """The daemon ends, and what is kept waits for the next one."""

    def forget(self) -> None:
        """Nothing is to be kept any more."""


class NoKeeper:
    """Memory ends with the daemon."""

    keeps = False

    def take(self) -> Kept | None:
        """Nothing."""
        return None

    def keep(self, kept: Kept) -> None:
        """Nothing."""

    def lasts(self) -> bool:
        """Never."""
        return False

    def leave(self) -> None:
        """Nothing."""

    def forget(self) -> None:
        """Nothing."""


class SystemdKeeper:
    """The service manager's fd store: FileDescriptorStoreMax= of the unit, 2 at least."""

    keeps = True

    def __init__(
        self,
        passed: list[Passed],
        send: Notify = notify,
        restarting: Callable[[], bool] = is_restarting,
    ) -> None:
        """passed: of what was handed over at the start, all that has one of KEPT_NAMES. The rest is the manager."""
        self._passed = passed
        self._send = send
        self._restarting = restarting

    def take(self) -> Kept | None:
        """See Keeper."""
        found = dict(self._passed)
        twice = len(found) < len(self._passed)
        passed, self._passed = self._passed, []
        for _, fd in passed:
            os.set_inheritable(fd, False)
        if twice or set(found) != set(KEPT_NAMES):
            for _, fd in passed:
                os.close(fd)
            if passed:
                log.warning("the memory kept by systemd is not complete: starting without it")
                self.forget()
            return None
        return Kept(found[SLABS_NAME], found[LEASES_NAME])

    def keep(self, kept: Kept) -> None:
        """See Keeper. Whether the manager has room for them it does not tell."""
        self.forget()
        for name, fd in zip(KEPT_NAMES, kept, strict=True):
            if not self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=(fd,)):
                log.warning("systemd does not keep the memory: a restart will begin with none")
                return

    def lasts(self) -> bool:
        """See Keeper: on a restart the manager hands everything over again, and drops it on a stop."""
        return self._restarting()

    def leave(self) -> None:
        """See Keeper."""

    def forget(self) -> None:
        """See Keeper."""
        for name in KEPT_NAMES:
            self._send("FDSTOREREMOVE=1", f"FDNAME={name}")


class HolderKeeper:
    """A holder process (holder.py), which is started when there is none."""

    keeps = True

    def __init__(self, path: Path, *, linger_s: float) -> None:
        """path: of its socket; linger_s: how long it waits for the next daemon."""
        self._path = path
        self._linger_s = linger_s
        self._sock: socket.socket | None = None

    def take(self) -> Kept | None:
        """See Keeper; waits for a daemon that is still ending."""
        limit_s = time.monotonic() + BUSY_TIMEOUT_S
        while self._connect():
            answer, fds = self._ask("take")
            if answer == "have" and len(fds) == 2:
                return Kept(*fds)
            for fd in fds:
                os.close(fd)
            if answer == "none":
                return None
            self._close()
            if time.monotonic() > limit_s:
                busy = "another daemon has the memory that is kept there"
                message = busy if answer == "busy" else "what listens there does not answer as a holder does"
                raise UserError(f"--keep-memory {self._path}: {message}", ExitCode.IN_USE)
            time.sleep(RETRY_S)  # the holder may be just ending, too
        return None

    def keep(self, kept: Kept) -> None:
        """See Keeper."""
        if self._sock is None and not self._connect():
            self._start()
        if self._sock is None or self._ask(f"keep {self._linger_s:g}", kept)[0] != "ok":
            log.warning("--keep-memory %s: the memory is not kept: a restart will begin with none", self._path)

    def lasts(self) -> bool:
        """See Keeper."""
        return self._sock is not None

    def leave(self) -> None:
        """See Keeper."""
        if self._sock is not None:
            self._ask("leave")
            self._close()

    def forget(self) -> None:
        """See Keeper."""
        if self._sock is not None:
            self._ask("forget")
            self._close()

    def _connect(self) -> bool:
        """Whether there is a holder, of this user; UserError: it is somebody else's."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            sock.connect(str(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return False
        except OSError as error:
            sock.close()
            raise UserError(f"--keep-memory {self._path}: {error.strerror or error}", ExitCode.RESOURCES) from None
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            sock.close()
            raise UserError(f"--keep-memory {self._path}: another user listens there", ExitCode.REFUSED)
        self._sock = sock
        return True

    def _start(self) -> None:
        listening = open_unix_socket(self._path)
        fd = listening.detach()  # closing it here would remove its path
        try:
            os.set_blocking(fd, True)
            command = [sys.executable, "-I", "-S", holder.__file__, str(fd), str(self._path)]
            # Its first process ends at once: the holder is nobody's child, and in nobody's session.
            nothing = subprocess.DEVNULL
            subprocess.run(
                command,
                pass_fds=(fd,),
                start_new_session=True,
                cwd="/",
                check=True,
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
            )
            self._connect()
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("--keep-memory %s: no holder can be started: %s", self._path, error)
        finally:
            os.close(fd)

    def _ask(self, line: str, fds: tuple[int, ...] = ()) -> tuple[str, list[int]]:
        assert self._sock is not None
        with contextlib.suppress(OSError, UnicodeDecodeError):
            socket.send_fds(self._sock, [line.encode() + b"\n"], fds)
            answer, given, _, _ = socket.recv_fds(self._sock, holder.LINE_BYTES_MAX, 4)
            for fd in given:
                os.set_inheritable(fd, False)
            return answer.decode().strip(), list(given)
        return "", []

    def _close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def make_keeper(keep_memory: Path | None, *, passed: list[Passed], managed: bool, linger_s: float) -> Keeper:
    """As the options and the surroundings want it.

    passed: what systemd's fd store gave back; managed: there is a service manager. linger_s: of a holder.
    """
    if keep_memory is None and managed:
        return SystemdKeeper(passed)
    if passed:
        SystemdKeeper([]).forget()
        for _, fd in passed:
            os.close(fd)
    return NoKeeper() if keep_memory is None else HolderKeeper(keep_memory, linger_s=linger_s)
