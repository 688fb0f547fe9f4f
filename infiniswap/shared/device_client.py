"""Client of a device's control API: HTTP and JSON over a UNIX socket, with the standard library alone.

The commands live for a moment; importing an asynchronous client would take longer than all they do.
"""

from __future__ import annotations

import errno
import http.client
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from infiniswap.shared.address import check_name
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import control_socket, default_runtime_dir, device_names

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 64 << 20  # a device of 2^18 slabs answers with some 50 MiB
_PIECE_BYTES = 1 << 20


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


class DeviceClient:
    """Requests to one device, one after the other. Use it as a context manager; the connection is kept."""

    def __init__(self, name: str, runtime_dir: Path, timeout_s: float = TIMEOUT_S) -> None:
        """Connect at the first request; timeout_s limits each request as a whole."""
        self.name = check_name(name)
        self.runtime_dir = runtime_dir
        self.path = control_socket(runtime_dir, name)
        self._timeout_s = timeout_s
        self._connection = _UnixConnection(self.path, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> Any:
        """Answer to GET path. UserError when no such device runs or it does not answer in time."""
        return self._request("GET", path)

    def post(self, path: str, content: Mapping[str, object] | None = None) -> Any:
        """Answer to POST path with content, by default an empty object; errors as get."""
        return self._request("POST", path, json.dumps(dict(content or {})).encode())

    def delete(self, path: str) -> Any:
        """Answer to DELETE path; errors as get."""
        return self._request("DELETE", path)

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        deadline_s = time.monotonic() + self._timeout_s
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            self._limit(deadline_s)
            self._connection.request(method, path, body, headers)
            with self._connection.getresponse() as response:
                data = self._read(response, deadline_s)
        except TimeoutError:
            raise self._failed(f"does not answer within {self._timeout_s:g} s") from None
        except OSError as error:
            raise self._unreachable(error) from None
        except http.client.HTTPException:
            raise self._failed("does not speak HTTP") from None
        answer = self._decode(response.status, data)
        if response.status >= 400:
            reason = answer.get("error") if isinstance(answer, dict) else None
            message = f"device '{self.name}': {reason or f'HTTP status {response.status}'}"
            raise UserError(message, ExitCode.FAILED)
        return answer

    def _limit(self, deadline_s: float) -> None:
        """Let the next operation on the socket take no longer than what is left."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if self._connection.sock is not None:
            self._connection.sock.settimeout(left_s)

    def _read(self, response: http.client.HTTPResponse, deadline_s: float) -> bytes:
        data = bytearray()
        while piece := response.read1(_PIECE_BYTES):
            data += piece
            if len(data) > ANSWER_BYTES_MAX:
                raise self._failed(f"answers with more than {ANSWER_BYTES_MAX} bytes")
            self._limit(deadline_s)
        return bytes(data)

    def _decode(self, status: int, data: bytes) -> Any:
        try:
            return json.loads(data) if data else None
        except ValueError:
            if status >= 400:
                return None
            raise self._failed("answers with something that is not JSON") from None

    def _failed(self, what: str) -> UserError:
        return UserError(f"device '{self.name}' {what} (socket {self.path})", ExitCode.FAILED)

    def _unreachable(self, error: OSError) -> UserError:
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
        return self._failed(f"cannot be asked: {error.strerror or error}")


def fetch(name: str, path: str, runtime_dir: Path | None = None) -> Any:
    """Answer of device name to GET path."""
    with DeviceClient(name, runtime_dir_or_default(runtime_dir)) as control:
        return control.get(path)
