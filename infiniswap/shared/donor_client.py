"""Client of a memory daemon's calls for administrators: status, cordon, uncordon, drain."""

from __future__ import annotations

import http.client
import socket
import ssl
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote

from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.json_client import JsonClient
from infiniswap.shared.messages import AnswerError, Ticket
from infiniswap.shared.operator_messages import DonorStatus, DrainRequest

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 4 << 20  # a daemon has at most 256 leases
_NBD_GREETING = "NBDMAGIC"  # what a data port says to everybody


class Tls(Protocol):
    """What is needed of this host's certificate (identity.Identity)."""

    def client(self, name: str) -> ssl.SSLContext:
        """See Identity.client."""

    def explain(self, error: BaseException, name: str = "") -> str | None:
        """See Identity.explain."""


class DonorClient(JsonClient):
    """Requests to one memory daemon, one after the other. Use it as a context manager; the connection is kept."""

    def __init__(self, address: HostPort, timeout_s: float = TIMEOUT_S, tls: Tls | None = None) -> None:
        """Connect at the first request; timeout_s limits each request as a whole. tls: None: in the clear."""
        self.address = address
        self._tls = tls
        host, port = address
        if tls is None:
            connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls.client(host))
        super().__init__(connection, timeout_s=timeout_s, answer_bytes_max=ANSWER_BYTES_MAX)

    def status(self) -> DonorStatus:
        """How it stands. UserError, as of all calls: NOT_FOUND no daemon, UNREACHABLE no answer, REFUSED not for us."""
        return self._status(self.get("/v1/status"))

    def cordon(self) -> DonorStatus:
        """No new slabs from now on."""
        return self._status(self.post("/v1/cordon"))

    def uncordon(self) -> DonorStatus:
        """Lend again; ends a drain that goes on."""
        return self._status(self.post("/v1/uncordon"))

    def drain(self, request: DrainRequest) -> DonorStatus:
        """Begin to move everything away, or join the drain that goes on."""
        return self._status(self.post("/v1/drain", request.as_json()))

    def ticket(self, lease_id: str, token: str) -> Ticket:
        """The export of a lease for one connection, for who has its token."""
        path = f"/v1/leases/{quote(lease_id, safe='')}/tickets"
        answer = self.post(path, headers={"Authorization": f"Bearer {token}"})
        try:
            return Ticket.parse(answer if isinstance(answer, dict) else {})
        except AnswerError as error:
            raise self.failed(f"answers, but not as a memory daemon of this version: {error}") from None

    def _status(self, answer: object) -> DonorStatus:
        try:
            return DonorStatus.parse(answer)
        except AnswerError as error:
            raise self.failed(f"answers, but not as a memory daemon of this version: {error}") from None

    def failed(self, what: str) -> UserError:
        """Something is there, and it is no daemon that these commands know."""
        return UserError(f"{self.address} {what}", ExitCode.NOT_FOUND)

    def silent(self, what: str) -> UserError:
        """It may be a daemon, and may be back."""
        return UserError(f"{self.address} {what}", ExitCode.UNREACHABLE)

    def nonsense(self, error: http.client.HTTPException) -> UserError:
        """What speaks no HTTP, and a data port, which is easily taken for the other one."""
        if str(error).startswith(_NBD_GREETING):
            return self.failed("is a port for page I/O: give the daemon's --listen address")
        return self.failed("does not speak HTTP: that is no memory daemon")

    def unreachable(self, error: OSError) -> UserError:
        """Nobody listens, or there is no way there."""
        if self._tls is not None and (reason := self._tls.explain(error, self.address.host)) is not None:
            return UserError(f"{self.address}: {reason}", ExitCode.REFUSED)
        if isinstance(error, socket.gaierror):
            return UserError(f"{self.address}: no such host", ExitCode.UNREACHABLE)
        if isinstance(error, ConnectionRefusedError):
            message = f"{self.address}: nobody listens there; infiniswapd does not run, or with another --listen"
            return UserError(message, ExitCode.UNREACHABLE)
        if isinstance(error, http.client.RemoteDisconnected):
            return UserError(f"{self.address} closed the connection without an answer", ExitCode.UNREACHABLE)
        return UserError(f"{self.address} cannot be reached: {error.strerror or error}", ExitCode.UNREACHABLE)

    def refused(self, status: int, reason: str | None) -> UserError:
        """FORBIDDEN is the daemon's word on who may ask."""
        said = reason or f"HTTP status {status}"
        if status == HTTPStatus.FORBIDDEN:
            return UserError(f"{self.address} refuses: {said}", ExitCode.REFUSED)
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return self.failed(f"is no memory daemon, or an older one without this command ({said})")
        return UserError(f"{self.address} refuses: {said}", ExitCode.FAILED)
