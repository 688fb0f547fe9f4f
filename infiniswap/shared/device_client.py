"""Client of a device's control API: HTTP and JSON over a UNIX socket."""

from __future__ import annotations

import errno
import http.client
import socket
from pathlib import Path
from typing import Any

from infiniswap.shared.address import check_name
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.json_client import JsonClient
from infiniswap.shared.paths import control_socket, default_runtime_dir, device_names

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 64 << 20  # a device of 2^18 slabs answers with some 50 MiB


def runtime_dir_or_default(given: Path | None) -> Path:
    """The directory where control sockets are looked for."""
    return given if given is not None else default_runtime_dir()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("device", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of to a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


class DeviceClient(JsonClient):
    """Requests to one device, one after the other. Use it as a context manager; the connection is kept."""

    def __init__(self, name: str, runtime_dir: Path, timeout_s: float = TIMEOUT_S) -> None:
        """Connect at the first request; timeout_s limits each request as a whole."""
        self.name = check_name(name)
        self.runtime_dir = runtime_dir
        self.path = control_socket(runtime_dir, name)
        connection = _UnixConnection(self.path, timeout_s)
        super().__init__(connection, timeout_s=timeout_s, answer_bytes_max=ANSWER_BYTES_MAX)

    def failed(self, what: str) -> UserError:
        """With its name and socket."""
        return UserError(f"device '{self.name}' {what} (socket {self.path})", ExitCode.FAILED)

    def refused(self, status: int, reason: str | None) -> UserError:
        """With its name."""
        return UserError(f"device '{self.name}': {reason or f'HTTP status {status}'}", ExitCode.FAILED)

    def unreachable(self, error: OSError) -> UserError:
        """Which devices there are, or whose socket it is."""
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            running = [name for name in device_names(self.runtime_dir) if name != self.name]
            known = (
                f"; there are {', '.join(running)}" if running else "; 'infiniswap device list' shows those that run"
            )
            return UserError(f"no device '{self.name}' in {self.runtime_dir}{known}", ExitCode.NOT_FOUND)
        if error.errno == errno.ECONNREFUSED:
            message = f"device '{self.name}' does not run any more (socket {self.path} was left behind)"
            return UserError(message, ExitCode.NOT_FOUND)
        if error.errno in (errno.EACCES, errno.EPERM):
            return UserError(
                f"no permission for {self.path}: run this as the device's user or root", ExitCode.RESOURCES
            )
        return self.failed(f"cannot be asked: {error.strerror or error}")


def fetch(name: str, path: str, runtime_dir: Path | None = None) -> Any:
    """Answer of device name to GET path."""
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        return control.get(path)
