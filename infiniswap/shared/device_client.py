"""Client of a device's control API: HTTP and JSON over a UNIX socket."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import struct
from pathlib import Path
from typing import Any

from infiniswap.shared.address import check_name
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.json_client import JsonClient
from infiniswap.shared.paths import SYSTEM_RUNTIME_DIR, control_socket, default_runtime_dir, device_names, shard_names
from infiniswap.shared.shard_names import whole_of
from infiniswap.shared.suggest import did_you_mean

TIMEOUT_S = 30.0  # for an answer as a whole
SILENCE_S = 3.0  # until who looks on is told that nothing comes; a device answers within milliseconds
_STOPPED = ("T", "t")  # by a signal, by a debugger
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
ANSWER_BYTES_MAX = 64 << 20  # a device of 2^18 slabs answers with some 50 MiB


def runtime_dir_or_default(given: Path | None) -> Path:
    """The directory where control sockets are looked for."""
    return given if given is not None else default_runtime_dir()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("device", timeout=timeout_s)
        self._path = path
        self.pid: int | None = None  # of the server, once connected; None in another PID namespace

    def connect(self) -> None:
        """Connect to the socket instead of to a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
            credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            self.pid = _CREDENTIALS.unpack(credentials)[0] or None
        except BaseException:
            self.sock.close()
            raise


class DeviceClient(JsonClient):
    """Requests to one device, one after the other. Use it as a context manager; the connection is kept."""

    def __init__(
        self, name: str, runtime_dir: Path, timeout_s: float = TIMEOUT_S, silence_s: float = SILENCE_S
    ) -> None:
        """Connect at the first request; timeout_s limits each request as a whole, silence_s each wait for a byte."""
        self.name = check_name(name)
        self.runtime_dir = runtime_dir
        self.path = control_socket(runtime_dir, name)
        self._server = _UnixConnection(self.path, min(timeout_s, silence_s))
        super().__init__(self._server, timeout_s=timeout_s, answer_bytes_max=ANSWER_BYTES_MAX, silence_s=silence_s)

    def failed(self, what: str) -> UserError:
        """With its name and socket."""
        return UserError(f"device '{self.name}' {what} (socket {self.path})", ExitCode.FAILED)

    def silence_s(self) -> float:
        """No longer than SILENCE_S for a process that is stopped, whoever waits: it is not busy."""
        return min(super().silence_s(), SILENCE_S) if self._state() in _STOPPED else super().silence_s()

    def _state(self) -> str:
        return "" if self._server.pid is None else _process_state(self._server.pid)

    def silent(self, what: str) -> UserError:
        """With the state of its process, for who stopped it may have forgotten."""
        return self.failed(what + self._why_silent())

    def _why_silent(self) -> str:
        pid, state = self._server.pid, self._state()
        if state in _STOPPED:
            return f": its process {pid} is stopped; 'kill -CONT {pid}' lets it go on"
        if state == "D":
            return f": its process {pid} waits in the kernel, for a disk perhaps; see 'dmesg'"
        return "" if pid is None else f"; its process is {pid}"

    def refused(self, status: int, reason: str | None) -> UserError:
        """With its name."""
        code = {400: ExitCode.USAGE, 404: ExitCode.NOT_FOUND}.get(status, ExitCode.FAILED)
        return UserError(f"device '{self.name}': {reason or f'HTTP status {status}'}", code)

    def unreachable(self, error: OSError) -> UserError:
        """Which devices there are, or whose socket it is."""
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            running = [name for name in device_names(self.runtime_dir) if name != self.name]
            known = f"; there are {', '.join(running)}" if running else elsewhere(self.runtime_dir)
            hint = did_you_mean(self.name, running)
            known = f"{hint}{known.replace(';', '', 1)}" if hint else known
            return UserError(f"no device '{self.name}' in {self.runtime_dir}{known}", ExitCode.NOT_FOUND)
        if error.errno == errno.ECONNREFUSED:
            message = f"device '{self.name}' does not run any more (socket {self.path} was left behind)"
            if alive := living_shards(self.runtime_dir, self.name):
                message = (
                    f"device '{self.name}' has lost its parent, and its shards {', '.join(alive)} do without: "
                    f"'infiniswap device serve {self.name}' takes them up again"
                )
            return UserError(message, ExitCode.NOT_FOUND)
        if error.errno in (errno.EACCES, errno.EPERM):
            return UserError(
                f"no permission for {self.path}: run this as the device's user or root", ExitCode.RESOURCES
            )
        return self.failed(f"cannot be asked: {error.strerror or error}")


def fetch(name: str, path: str, runtime_dir: Path | None = None, silence_s: float = SILENCE_S) -> Any:
    """Answer of device name to GET path."""
    with DeviceClient(name, runtime_dir_or_default(runtime_dir), silence_s=silence_s) as control:
        return control.get(path)


def living_shards(runtime_dir: Path, whole: str) -> list[str]:
    """Shards of device whole that have a process, whether it answers or not."""
    return [name for name in shard_names(runtime_dir, whole) if _listens(control_socket(runtime_dir, name))]


def way_to_stop(shard: str, runtime_dir: Path) -> str:
    """What ends a shard, in words: that of all, which takes a parent."""
    whole = whole_of(shard)
    first = "" if _listens(control_socket(runtime_dir, whole)) else f"'infiniswap device serve {whole}' first, then "
    return f"{first}'infiniswap device stop {whole}'"


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        return sock.connect_ex(str(path)) in (0, errno.EAGAIN, errno.EACCES)


def elsewhere(runtime_dir: Path) -> str:
    """Where else devices may be, for who has forgotten sudo: the end of a sentence that says there are none here."""
    if os.geteuid() != 0 and runtime_dir != SYSTEM_RUNTIME_DIR:
        return f"; those of root are in {SYSTEM_RUNTIME_DIR}: use sudo to see them"
    if runtime_dir != SYSTEM_RUNTIME_DIR and device_names(SYSTEM_RUNTIME_DIR):
        return f"; there are {', '.join(device_names(SYSTEM_RUNTIME_DIR))} in {SYSTEM_RUNTIME_DIR}"
    return "; start one with 'infiniswap device serve NAME'"


def _process_state(pid: int) -> str:
    """The letter of /proc/PID/stat (proc(5)), empty where it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return fields[0] if fields else ""
