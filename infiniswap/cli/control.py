"""Client of a device's control API (HTTP and JSON over a UNIX socket)."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any, Self

import aiohttp

from infiniswap.config import check_name
from infiniswap.errors import ExitCode, UserError
from infiniswap.paths import control_socket, default_runtime_dir, device_names

TIMEOUT_S = 10.0
_ANSWER_BYTES_MAX = 64 << 20  # a device of 2^18 slabs answers with some 50 MiB


def runtime_dir_or_default(given: Path | None) -> Path:
    """The directory where control sockets are looked for."""
    return given if given is not None else default_runtime_dir()


class Control:
    """Requests to one device. Use it as an async context manager; one connection is kept."""

    def __init__(self, name: str, runtime_dir: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.name = check_name(name)
        self.runtime_dir = runtime_dir
        self.path = control_socket(runtime_dir, name)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            "http://device",
            connector=aiohttp.UnixConnector(str(self.path), limit=1),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        """Answer to GET path. UserError when no such device runs or it does not answer in time."""
        return await self._request("GET", path)

    async def post(self, path: str) -> Any:
        """Answer to POST path with an empty object; errors as get."""
        return await self._request("POST", path)

    async def _request(self, method: str, path: str) -> Any:
        body: dict[str, str] | None = {} if method == "POST" else None
        try:
            async with self._session.request(method, path, json=body) as response:
                answer = self._decode(response.status, await self._body(response))
                if response.status >= 400:
                    reason = answer.get("error") if isinstance(answer, dict) else None
                    raise UserError(
                        f"device '{self.name}': {reason or f'HTTP status {response.status}'}", ExitCode.FAILED
                    )
                return answer
        except TimeoutError:
            raise UserError(
                f"device '{self.name}' does not answer within {self._timeout_s:g} s (socket {self.path})",
                ExitCode.FAILED,
            ) from None
        except aiohttp.ClientOSError as error:
            raise self._unreachable(error) from None
        except aiohttp.ClientError as error:
            raise UserError(f"device '{self.name}': {error} (socket {self.path})", ExitCode.FAILED) from None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > _ANSWER_BYTES_MAX:
                raise UserError(
                    f"device '{self.name}': the answer is longer than {_ANSWER_BYTES_MAX} bytes", ExitCode.FAILED
                )
        return bytes(data)

    def _decode(self, status: int, data: bytes) -> Any:
        try:
            return json.loads(data) if data else None
        except ValueError:
            if status >= 400:
                return None
            message = f"device '{self.name}': what answers on {self.path} is no device's control API"
            raise UserError(message, ExitCode.FAILED) from None

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
        return UserError(f"device '{self.name}': {error.strerror or error} (socket {self.path})", ExitCode.FAILED)


async def _fetch(name: str, path: str, runtime_dir: Path) -> Any:
    async with Control(name, runtime_dir) as control:
        return await control.get(path)


def fetch(name: str, path: str, runtime_dir: Path | None = None) -> Any:
    """Answer of device name to GET path, from a program without an event loop."""
    return asyncio.run(_fetch(name, path, runtime_dir_or_default(runtime_dir)))
