"""Client of a control API: HTTP and JSON over one connection, with the standard library alone.

The commands live for a moment; importing an asynchronous client would take longer than all they do.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any, Self

from infiniswap.shared.errors import ExitCode, UserError

KEEP_ALIVE_S = 5.0  # of a connection without a request: our servers end it soon after, which must not meet one
_PIECE_BYTES = 1 << 20


class JsonClient:
    """Requests to one server, one after the other. Use it as a context manager; the connection is kept.

    Who the server is, and what is to be done when it is not there, is said by who derives from this.
    """

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        *,
        timeout_s: float,
        answer_bytes_max: int,
        silence_s: float | None = None,
    ) -> None:
        """Connect at the first request; timeout_s limits each request as a whole, silence_s each wait for a byte."""
        self._connection = connection
        self._timeout_s = timeout_s
        self._silence_s = timeout_s if silence_s is None else min(silence_s, timeout_s)
        self._answer_bytes_max = answer_bytes_max
        self._used_s = 0.0  # when the connection was used last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> Any:
        """Answer to GET path. UserError when there is no such server or it does not answer in time."""
        return self._request("GET", path)

    def get_text(self, path: str) -> str:
        """Answer to GET path that is no JSON; errors as get."""
        return str(self._request("GET", path, as_text=True))

    def post(
        self, path: str, content: Mapping[str, object] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Answer to POST path with content, by default an empty object; errors as get."""
        return self._request("POST", path, json.dumps(dict(content or {})).encode(), headers)

    def delete(self, path: str) -> Any:
        """Answer to DELETE path; errors as get."""
        return self._request("DELETE", path)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        more: Mapping[str, str] | None = None,
        *,
        as_text: bool = False,
    ) -> Any:
        deadline_s = time.monotonic() + self._timeout_s
        headers = {**({"Content-Type": "application/json"} if body is not None else {}), **(more or {})}
        sent = False
        if time.monotonic() - self._used_s > KEEP_ALIVE_S:
            self._connection.close()
        try:
            if self._connection.sock is None:
                self._connection.connect()
            self._limit(deadline_s)
            self._connection.request(method, path, body, headers)
            sent = True
            with self._connection.getresponse() as response:
                data = self._read(response, deadline_s)
        except TimeoutError:
            late = time.monotonic() >= deadline_s
            waited_s = self._timeout_s if late else self.silence_s()
            silent = self.silent(f"does not answer within {waited_s:g} s")
            if sent and method != "GET":  # its server has it, and reads it once it goes on
                raise UserError(f"{silent}; what was asked for may still come to be", silent.code) from None
            raise silent from None
        except OSError as error:
            raise self.unreachable(error) from None
        except http.client.HTTPException as error:
            raise self.nonsense(error) from None
        self._used_s = time.monotonic()
        if as_text and response.status < 400:
            return data.decode(errors="replace")
        answer = self._decode(response.status, data)
        if response.status >= 400:
            reason = answer.get("error") if isinstance(answer, dict) else None
            raise self.refused(response.status, reason if isinstance(reason, str) else None)
        return answer

    def _limit(self, deadline_s: float) -> None:
        """Let the next operation on the socket take no longer than what is left."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if self._connection.sock is not None:
            self._connection.sock.settimeout(min(left_s, self.silence_s()))

    def silence_s(self) -> float:
        """How long the next byte is waited for."""
        return self._silence_s

    def _read(self, response: http.client.HTTPResponse, deadline_s: float) -> bytes:
        data = bytearray()
        while piece := response.read1(_PIECE_BYTES):
            data += piece
            if len(data) > self._answer_bytes_max:
                raise self.failed(f"answers with more than {self._answer_bytes_max} bytes")
            self._limit(deadline_s)
        return bytes(data)

    def _decode(self, status: int, data: bytes) -> Any:
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            if status >= 400:
                return None
            raise self.failed("answers with something that is not JSON") from None

    # ---- what is said ----

    def failed(self, what: str) -> UserError:
        """It answered with what cannot be used."""
        return UserError(f"the server {what}", ExitCode.FAILED)

    def silent(self, what: str) -> UserError:
        """It did not answer in time."""
        return self.failed(what)

    def nonsense(self, _error: http.client.HTTPException) -> UserError:
        """It does not speak HTTP."""
        return self.failed("does not speak HTTP")

    def unreachable(self, error: OSError) -> UserError:
        """It cannot be connected to, or the connection broke."""
        return self.failed(f"cannot be asked: {error.strerror or error}")

    def refused(self, status: int, reason: str | None) -> UserError:
        """It answered with an error; reason: the sentence that came with it."""
        return self.failed(f"refuses: {reason or f'HTTP status {status}'}")
