"""Listening sockets: UNIX paths without races, TCP addresses, and those that systemd hands over."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.passed import Passed, passed_descriptors
from infiniswap.shared.private_files import LockedError, take_lock

BACKLOG = 1024  # connections that the kernel keeps while accepting pauses
_LOCK_TIMEOUT_S = 5.0
_LOCK_RETRY_S = 0.02
_PORT_MAX = 65535  # getaddrinfo takes larger numbers modulo 65536


class OwnedUnixSocket(socket.socket):
    """A listening UNIX socket that removes its path when closed, unless another server has taken the path since."""

    lock_dir: Path | None = None  # see open_unix_socket

    def close(self) -> None:
        """Stop listening and remove the path."""
        name = self.getsockname() if self.fileno() >= 0 else ""
        super().close()
        if not isinstance(name, str) or not name:
            return
        path = Path(name)
        # A path that cannot be locked or removed is stale, which the next server copes with.
        with suppress(OSError, UserError), _path_lock(path, self.lock_dir):
            if _probe(path) == "stale":
                path.unlink()


@contextmanager
def _path_lock(path: Path, folder: Path | None) -> Iterator[None]:
    """Keep other servers of this user's from taking or removing path meanwhile.

    By a file that no other user can open; a lock on the folder would be everybody's to take.
    """
    name = hashlib.sha256(bytes(path)).hexdigest()[:16]
    lock = (folder or path.parent) / f".{name}.lock"
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fd = take_lock(lock)
            break
        except LockedError:
            if time.monotonic() > deadline:
                raise UserError(f"{path} stays locked by another process", ExitCode.IN_USE) from None
            time.sleep(_LOCK_RETRY_S)
    try:
        yield
    finally:
        with suppress(OSError):  # one that stays is free to be taken
            lock.unlink()
        os.close(fd)


def _probe(path: Path) -> str:
    """What is at path: "free", "stale" (a socket that nobody listens on), "live", or "foreign" (no socket)."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "free"
    if not stat.S_ISSOCK(mode):
        return "foreign"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return "stale"
        except FileNotFoundError:
            return "free"
        except OSError:
            return "live"  # a full backlog, another type, no permission: somebody's in any case
    return "live"


def open_unix_socket(path: Path | str, mode: int = 0o600, *, lock_dir: Path | None = None) -> socket.socket:
    """Listen on a UNIX socket at path, with these permissions; a stale socket of a dead server is replaced.

    lock_dir: where the lock is that keeps others from doing the same at once, a folder of this user's; None: path's.

    Closing the socket removes the path. UserError when a server is alive there, when something else has the name, or
    when the folder does not allow it.
    """
    path = Path(path).absolute()
    sock = OwnedUnixSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.lock_dir = lock_dir
    try:
        with _path_lock(path, lock_dir):
            found = _probe(path)
            if found == "live":
                raise UserError(f"{path}: a server is listening there already", ExitCode.IN_USE)
            if found == "foreign":
                raise UserError(f"{path}: exists and is not a socket; remove it or choose another", ExitCode.REFUSED)
            if found == "stale":
                path.unlink()
            # Linux takes the file's permissions from the socket's, so there is no moment at which they are wider.
            os.fchmod(sock.fileno(), mode)
            sock.bind(str(path))
            path.chmod(mode)  # the umask may have taken bits away
            sock.listen(BACKLOG)
    except BaseException as error:
        socket.socket.close(sock)  # not ours to remove: the path was another's or never made
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path}: there is no folder {path.parent}", ExitCode.NOT_FOUND) from None
        if isinstance(error, OSError):
            hint = "the path is too long for a UNIX socket" if "too long" in str(error) else error.strerror
            raise UserError(f"{path}: cannot listen there: {hint}", ExitCode.RESOURCES) from None
        raise
    sock.setblocking(False)
    return sock


def open_tcp_socket(host: str, port: int) -> socket.socket:
    """Listen on host (name or address; "" means every address) and port (0: any free one).

    UserError when the address is not this host's or the port is in use.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not 0 <= port <= _PORT_MAX:
        raise UserError(f"{where}: a port is a number up to {_PORT_MAX}")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UserError(f"{where}: no such address: {_reason(error)}", ExitCode.USAGE) from None
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            failure = failure or error
            continue
        sock.setblocking(False)
        return sock
    code = ExitCode.IN_USE if failure and failure.errno == errno.EADDRINUSE else ExitCode.RESOURCES
    raise UserError(f"{where}: cannot listen there: {_reason(failure)}", code)


def _reason(error: Exception | None) -> str:
    return (getattr(error, "strerror", None) or str(error)) if error else "no address found"


def sockets_from_environment(passed: list[Passed] | None = None) -> list[socket.socket]:
    """Listening sockets passed by systemd (LISTEN_FDS and LISTEN_PID, sd_listen_fds(3)); empty when there are none.

    passed: those of them that are meant, where other things are passed as well. UserError when what was passed is not
    a listening stream socket.
    """
    sockets: list[socket.socket] = []
    for _, fd in passed_descriptors() if passed is None else passed:
        try:
            sock = socket.socket(fileno=fd)
            sockets.append(sock)
            listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise UserError(f"LISTEN_FDS: descriptor {fd} is not a socket: {_reason(error)}") from None
        if not listening or sock.type != socket.SOCK_STREAM:
            raise UserError(f"LISTEN_FDS: descriptor {fd} is not a listening stream socket")
        sock.set_inheritable(False)
        sock.setblocking(False)
    return sockets
