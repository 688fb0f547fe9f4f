"""The authority's end of an invitation: one TLS server with a certificate of its own, until one host has joined.

A host joins in two steps: it shows that it has the code and gets a certificate; when it has looked at that, it says so.
Without the second step the certificate is taken back, and in both cases the code is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from infiniswap.identity.authority import Authority
from infiniswap.identity.certificates import describe
from infiniswap.identity.invitation import Invitation, Tries, check_clocks
from infiniswap.identity.join_code import JoinCode
from infiniswap.identity.requests import key_pem, named, new_key, read_request
from infiniswap.shared.crowd import network_of
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.http_server import BodyError, HttpServer, read_object
from infiniswap.shared.tls_accept import TlsAccept
from infiniswap.shared.tls_reasons import explain, find_error

CONNECTIONS_MAX = 32
LIFE_S = 30.0  # of a connection
BODY_BYTES_MAX = 16384
CONFIRM_S = 15.0  # from the certificate to the word that it is taken
JOIN, JOINED = "join", "joined"  # the two steps, as paths and as what is proven
SCHEME = "Infiniswap-Join"
_OTHERWISE = "this port is for 'infiniswap cluster join', which speaks TLS"


class Inviting:
    """One invitation, which is open while wait() runs."""

    def __init__(self, authority: Authority, invitation: Invitation, now: Callable[[], datetime]) -> None:
        """Draw a code. Who is not let in is logged."""
        self._authority = authority
        self._invitation = invitation
        self._now = now
        self._tries = Tries()
        self._context, shown = _own_context(now())
        self.code = JoinCode.of(shown)
        self._issued: x509.Certificate | None = None  # the code is used
        self._confirmed = False
        self._end: asyncio.Future[str] | None = None

    async def wait(self, listening: socket.socket, valid_s: float) -> str:
        """Serve on listening until a host has joined: who. UserError: nobody did within valid_s, or too many tried."""
        self._end = asyncio.get_running_loop().create_future()
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.add_routes([web.post(f"/v1/{JOIN}", self._join), web.post(f"/v1/{JOINED}", self._joined)])
        secure = TlsAccept(lambda: self._context, self._explain, who="an invitation", otherwise=_OTHERWISE)
        server = HttpServer(application, listening, connections_max=CONNECTIONS_MAX, life_s=LIFE_S, secure=secure)
        await server.start()
        try:
            await asyncio.wait([self._end], timeout=valid_s)
            if not self._end.done() and self._issued is not None:
                await asyncio.wait([self._end], timeout=CONFIRM_S)
            if not self._end.done():
                raise UserError(f"'{self._invitation.host}' has not joined in time; the code is void", ExitCode.FAILED)
            return self._end.result()
        finally:
            self._end.cancel()  # who comes while it closes is too late, so that what is taken back was not confirmed
            await server.close()
            self._take_back()

    @property
    def _is_over(self) -> bool:
        return self._confirmed or self._end is None or self._end.done()

    def _take_back(self) -> None:
        if self._issued is not None and not self._confirmed:
            self._authority.revoke_one(describe(self._issued).serial, self._now())

    def _explain(self, error: BaseException) -> str | None:
        found = find_error(error)
        return None if found is None else explain(found, self._now())

    def _finish(self, result: str | UserError) -> None:
        assert self._end is not None
        if not self._end.done():
            if isinstance(result, UserError):
                self._end.set_exception(result)
            else:
                self._end.set_result(result)

    async def _join(self, request: web.Request) -> web.StreamResponse:
        """The first step."""
        try:
            content = await self._proven(request, JOIN)
            if self._issued is not None or self._is_over:
                raise _RefusedError(HTTPStatus.CONFLICT, "the code was used already: invite once more")
            return web.json_response(self._certify(request, content))
        except (_RefusedError, BodyError) as error:
            return _refusal(error)
        except UserError as error:
            return _refusal(_RefusedError(HTTPStatus.CONFLICT, str(error)))

    def _certify(self, request: web.Request, content: dict[str, object]) -> dict[str, str]:
        """The answer to who has the code. UserError: it cannot join so, and may try again."""
        wanted = read_request(str(content.get("request", "")).encode())
        clock = content.get("clock")
        if not isinstance(clock, int | float) or not 0 < clock < 1e11:
            raise UserError("the request does not say what time it is there")
        now, invitation = self._now(), self._invitation
        check_clocks(datetime.fromtimestamp(clock, UTC), now, wanted.name)
        invitation.check(wanted.names)
        names = invitation.names(wanted.names, _source(request))
        self._issued = self._authority.certify(names, wanted.key, now, invitation.days)
        loop = asyncio.get_running_loop()
        away = f"{request.remote} had the code, but did not go on: its certificate was taken back; invite once more"
        loop.call_later(CONFIRM_S, self._finish, UserError(away, ExitCode.FAILED))
        return {
            "certificate": self._issued.public_bytes(Encoding.PEM).decode(),
            "authority": self._authority.certificate.public_bytes(Encoding.PEM).decode(),
            "revoked": self._authority.public_list().decode(),
        }

    async def _joined(self, request: web.Request) -> web.StreamResponse:
        """The second step: what it got is good."""
        try:
            content = await self._proven(request, JOINED)
            issued = self._issued
            if issued is None or self._is_over:
                raise _RefusedError(HTTPStatus.CONFLICT, "no certificate waits for that")
            own = describe(issued)
            if content.get("serial") != own.serial:
                raise _RefusedError(HTTPStatus.CONFLICT, "that is not the certificate which was issued")
        except (_RefusedError, BodyError) as error:
            return _refusal(error)
        self._authority.remember(issued)
        self._confirmed = True
        response = web.json_response({})
        try:
            await response.prepare(request)
            await response.write_eof()
        finally:  # whether it hears that or not: who does not knows that it is in no cluster
            self._finish(
                f"{own.subject} has joined from {request.remote}, for {', '.join(own.names)}, "
                f"until {own.not_after:%Y-%m-%d}"
            )
        return response

    async def _proven(self, request: web.Request, purpose: str) -> dict[str, object]:
        """The body of who has the code. _RefusedError, BodyError."""
        network = network_of(request.remote or "")
        if self._tries.is_shut_out(network):
            raise _RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong codes came from this address")
        content = await read_object(request)
        scheme, _, proof = request.headers.get("Authorization", "").partition(" ")
        if scheme == SCHEME and self.code.is_proven(purpose, await request.read(), proof):
            return content
        self._tries.add(network)
        if self._tries.is_over:
            self._finish(UserError("too many wrong codes; the code is void: invite once more", ExitCode.REFUSED))
        raise _RefusedError(HTTPStatus.FORBIDDEN, "the code is not that of the invitation that is open here")


class _RefusedError(Exception):
    """What is answered instead."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def _refusal(error: _RefusedError | BodyError) -> web.Response:
    return web.json_response({"error": str(error)}, status=error.status)


def _source(request: web.Request) -> str:
    """The address that it came from, as certificates have it; empty: there is none."""
    try:
        address = ipaddress.ip_address((request.remote or "").partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _own_context(now: datetime) -> tuple[ssl.SSLContext, bytes]:
    """TLS 1.3 with a key that lives as long as this process, in memory alone; and the certificate shown (DER)."""
    key, name = new_key(), named("infiniswap invitation")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    memory = os.memfd_create("invitation", os.MFD_CLOEXEC)  # ssl takes files alone
    try:
        os.write(memory, key_pem(key) + certificate.public_bytes(Encoding.PEM))
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context, certificate.public_bytes(Encoding.DER)
