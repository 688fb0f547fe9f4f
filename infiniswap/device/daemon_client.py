"""Client of the memory daemon's control API: every call with a time-out, every answer checked before it is used."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection

from infiniswap.identity.identity import Identity
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.errors import UserError
from infiniswap.shared.host_names import is_address, look_up
from infiniswap.shared.json_client import KEEP_ALIVE_S
from infiniswap.shared.loopback import all_loopback, is_loopback
from infiniswap.shared.messages import (
    AnswerError,
    Beat,
    Granted,
    LeaseRequest,
    Mapped,
    Offered,
    OpenedPath,
    PathRequest,
    Ticket,
    incarnation,
)
from infiniswap.shared.path_messages import PathEnd
from infiniswap.shared.stream_messages import MESSAGE_BYTES_MAX
from infiniswap.shared.tls_reasons import find_error

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult  # which 3.8 has no name for

ANSWER_BYTES_MAX = 4 << 20  # a heartbeat lists up to 2^18 slabs
REASON_CHARACTERS_MAX = 200
GONE_STATUSES = (401, 403, 404, 410)  # of a call about a lease
STREAM_CLOSE_TIMEOUT_S = 0.5

_Message = TypeVar("_Message")


class PeerError(Exception):
    """A daemon that could not be reached, took too long or answered nonsense; the message is one sentence."""


class RefusedError(PeerError):
    """The daemon answered, and said no."""

    def __init__(self, message: str, status: int) -> None:
        """status: the HTTP status."""
        super().__init__(message)
        self.status = status


class LeaseGoneError(PeerError):
    """The daemon does not know the lease any more."""


class DistrustedError(PeerError):
    """The daemon's certificate is none that we take, or counts no more: nothing more is to go there."""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease as the daemon granted it; times are monotonic seconds of this host."""

    lease_id: str
    token: str = field(repr=False)
    export: str = field(repr=False)
    address: tuple[str, int]
    incarnation: str
    ttl_s: float
    size_bytes: int
    renewal: list[float] = field(compare=False)
    rdma: bool = False  # the daemon can be reached over RDMA too
    no_rdma: str = ""  # why not, in the daemon's words
    control: str = ""  # the one address, of those that the peer's name has, at which it was granted; "": it has none

    def renewed(self, at_s: float) -> None:
        """A heartbeat sent at at_s was answered."""
        self.renewal[0] = max(self.renewal[0], at_s)

    def expired(self, now_s: float) -> bool:
        """Whether the daemon may have let it go for want of heartbeats."""
        return now_s >= self.renewal[0] + self.ttl_s


def read(parse: Callable[[dict[str, Any]], _Message], answer: dict[str, Any]) -> _Message:
    """The message in answer; PeerError when it cannot be used."""
    try:
        return parse(answer)
    except AnswerError as error:
        raise PeerError(str(error)) from None


class DaemonClient:
    """The control API of one daemon, for one device."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: HostPort,
        *,
        device: str,
        device_id: str,
        size_bytes: int,
        slab_bytes: int,
        timeout_s: float,
        clock: Clock,
        identity: Identity | None = None,
        local_only: str | None = None,
    ) -> None:
        """Session is shared and remains the caller's; timeout_s bounds each call as a whole.

        clock: of the leases that are granted. identity: by which this host shows itself; None: control in the clear.
        local_only: see Reach; of a name the session's resolver takes care (make_session).
        """
        self._local_only = local_only
        self._identity = identity
        self._session = session
        self._address = address
        self._device = device
        self._device_id = device_id
        self._size_bytes = size_bytes
        self._slab_bytes = slab_bytes
        self._timeout_s = timeout_s
        self._clock = clock

    async def offer(self) -> Offered:
        """Free memory, asked now."""
        return read(Offered.parse, await self._call("GET", f"/offer?slab_bytes={self._slab_bytes}"))

    async def open_lease(self) -> HeldLease:
        """A new lease."""
        request = LeaseRequest(self._device, self._device_id, self._size_bytes, self._slab_bytes)
        sent_s = self._clock()
        answer, granted_at = await self._ask("POST", "/leases", body=request.as_json())
        granted = read(Granted.parse, answer)
        named = not is_address(self._address.host)
        return HeldLease(
            lease_id=granted.lease_id,
            token=granted.token,
            export=granted.export,
            address=await self._page_address(granted.address, granted_at if named else self._address.host),
            incarnation=granted.life.incarnation,
            ttl_s=granted.life.ttl_s,
            size_bytes=self._size_bytes,
            renewal=[sent_s],
            rdma=granted.link_layer is not None,
            no_rdma=granted.no_rdma,
            control=granted_at if named else "",
        )

    def _check_reach(self, host: str) -> None:
        if self._local_only is not None and is_address(host) and not is_loopback(host):
            raise PeerError(f"it {self._local_only}")

    async def _page_address(self, told: tuple[str, int], granted_at: str) -> tuple[str, int]:
        """Where pages go: of the addresses of a name, the one of the host that granted the lease."""
        host, port = told
        self._check_reach(host)
        if is_address(host):
            return host, port
        try:
            async with asyncio.timeout(self._timeout_s):
                found = [str(target[0]) for _, target in await look_up(host, port)]
        except (OSError, TimeoutError):
            found = []
        return (granted_at if granted_at in found else host), port

    async def export_name(self, lease: HeldLease) -> str:
        """The NBD export by which one connection to the lease's pages can be opened now: a ticket where TLS is on."""
        if self._identity is None:
            return lease.export
        answer = await self._call("POST", f"/leases/{lease.lease_id}/tickets", lease=lease, body={})
        return read(Ticket.parse, answer).export

    async def map_slab(self, lease: HeldLease, slab: int) -> Mapped:
        """Memory for slab. RefusedError when there is none."""
        answer = await self._call("PUT", f"/leases/{lease.lease_id}/slabs/{slab}", lease=lease)
        return read(Mapped.parse, answer)

    async def open_rdma(self, lease: HeldLease, end: PathEnd) -> OpenedPath:
        """The daemon's end of an RDMA path to ours, ready for it; an earlier path of the lease is cut."""
        path = f"/leases/{lease.lease_id}/rdma"
        answer = await self._call("POST", path, lease=lease, body=PathRequest(end).as_json())
        return read(OpenedPath.parse, answer)

    async def close_rdma(self, lease: HeldLease) -> None:
        """Cut the lease's RDMA path, if it has one: afterwards nothing that was sent through it changes memory."""
        await self._call("DELETE", f"/leases/{lease.lease_id}/rdma", lease=lease)

    async def unmap_slab(self, lease: HeldLease, slab: int) -> None:
        """Give the memory of slab back."""
        await self._call("DELETE", f"/leases/{lease.lease_id}/slabs/{slab}", lease=lease)

    async def heartbeat(self, lease: HeldLease) -> Beat:
        """Renew the lease. LeaseGoneError also when the daemon has lost its memory since (another incarnation)."""
        sent_s = self._clock()
        answer = await self._call("POST", f"/leases/{lease.lease_id}/heartbeat", lease=lease, body={})
        if read(incarnation, answer) != lease.incarnation:
            raise LeaseGoneError("the daemon was restarted")
        lease.renewed(sent_s)
        return read(Beat.parse, answer)

    async def look_at(self, lease: HeldLease) -> None:
        """See that the lease lives, without renewing it. LeaseGoneError when it does not."""
        answer = await self._call("GET", f"/leases/{lease.lease_id}", lease=lease)
        if answer.get("incarnation", lease.incarnation) != lease.incarnation:
            raise LeaseGoneError("the daemon was restarted")

    async def open_stream(self, lease: HeldLease) -> aiohttp.ClientWebSocketResponse:
        """A new stream of the lease; the caller closes it. LeaseGoneError also when the daemon has no streams."""
        address, headers = self._target(lease)
        try:
            async with asyncio.timeout(self._timeout_s):
                opened: aiohttp.ClientWebSocketResponse = await self._session.ws_connect(
                    f"{self._scheme}://{address}/v1/leases/{lease.lease_id}/stream",
                    headers=headers,
                    **self._tls(),
                    timeout=_stream_timeout(),
                    max_msg_size=MESSAGE_BYTES_MAX,
                )
                return opened
        except aiohttp.WSServerHandshakeError as error:
            if error.status in GONE_STATUSES:
                raise LeaseGoneError("it has no such stream") from None
            raise RefusedError(f"it refused a stream: HTTP status {error.status}", error.status) from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise PeerError(
                self._of_tls(error) or f"no stream: {_one_line(str(error)) or type(error).__name__}"
            ) from None

    async def release(self, lease: HeldLease) -> None:
        """Give the lease back; nothing to do when it is gone already."""
        try:
            await self._call("DELETE", f"/leases/{lease.lease_id}", lease=lease)
        except LeaseGoneError:
            return

    async def _call(
        self, method: str, path: str, *, lease: HeldLease | None = None, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return (await self._ask(method, path, lease=lease, body=body))[0]

    async def _ask(
        self, method: str, path: str, *, lease: HeldLease | None = None, body: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], str]:
        """The answer, and the address that gave it. What concerns a lease goes to the host that granted it."""
        address, headers = self._target(lease)
        try:
            async with self._session.request(
                method,
                f"{self._scheme}://{address}/v1{path}",
                **self._tls(),
                json=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            ) as response:
                raw = await _read(response)
                status = response.status
        except TimeoutError:
            raise PeerError(f"no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            if (reason := self._of_tls(error)) is not None:
                raise _tls_error(error)(reason) from None
            # asyncio puts words of its own in the place of the system's, with the address once more.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise PeerError(f"cannot connect: {reason}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = self._of_tls(error) or f"the request failed: {_one_line(str(error)) or type(error).__name__}"
            raise PeerError(said) from None
        self._check(response)
        answered_at = response.answered_at if isinstance(response, _Response) else ""
        return _interpret(status, raw, has_lease=lease is not None), answered_at

    def _check(self, response: aiohttp.ClientResponse) -> None:
        """A connection that was made before its end was revoked, or had expired, is of no use. DistrustedError."""
        if self._identity is None or not isinstance(response, _Response):
            return
        if (fault := self._identity.fault(response.certificate)) is not None:
            self._identity.forget(self._address.host)  # so that the next call makes a connection of its own
            raise DistrustedError(f"it is not trusted any more: {fault}")

    @property
    def _scheme(self) -> str:
        return "http" if self._identity is None else "https"

    def _tls(self) -> dict[str, Any]:
        """What a call of aiohttp needs to know; the daemon is checked by its name as the user gave it. PeerError."""
        if self._identity is None:
            return {}
        try:
            return {"ssl": self._identity.client(self._address.host)}
        except UserError as error:
            raise PeerError(str(error)) from None

    def _of_tls(self, error: BaseException) -> str | None:
        """What is wrong with a certificate, where that was the cause."""
        return None if self._identity is None else self._identity.explain(error, self._address.host)

    def _target(self, lease: HeldLease | None) -> tuple[HostPort, dict[str, str]]:
        """Where to ask, and with which headers. PeerError: not there."""
        self._check_reach(self._address.host)
        headers = {"Accept-Encoding": "identity"}
        if lease is None:
            return self._address, headers
        headers["Authorization"] = f"Bearer {lease.token}"
        return HostPort(lease.control, self._address.port) if lease.control else self._address, headers


def _tls_error(error: BaseException) -> type[PeerError]:
    """Of a handshake that failed: whether it was we who did not take the daemon's certificate."""
    refused = isinstance(find_error(error), ssl.SSLCertVerificationError)
    return DistrustedError if refused else PeerError


def _stream_timeout() -> Any:
    """How long a closing handshake may take. Before aiohttp 3.11 that is a plain number, which later ones warn of."""
    kind = getattr(aiohttp, "ClientWSTimeout", None)
    return STREAM_CLOSE_TIMEOUT_S if kind is None else kind(ws_close=STREAM_CLOSE_TIMEOUT_S)


class _Response(aiohttp.ClientResponse):
    """Remembers which address answered, for aiohttp tries all that a name has and does not tell; and who that is."""

    answered_at = ""
    certificate: Mapping[str, Any] = MappingProxyType({})  # that it showed, as ssl tells it

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """The head of the answer is about to come."""
        transport = connection.transport
        peer = None if transport is None else transport.get_extra_info("peername")
        if transport is not None:
            self.certificate = transport.get_extra_info("peercert") or {}
        if peer:
            self.answered_at = str(peer[0])
        return await super().start(connection)


class _Resolver(AbstractResolver):
    """look_up for aiohttp."""

    def __init__(self, local_only: str | None) -> None:
        self._local_only = local_only

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As aiohttp asks for it."""
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        found = await look_up(host, port, family)
        if self._local_only is not None and not all_loopback(str(target[0]) for _, target in found):
            raise OSError(0, f"it {self._local_only}")
        return [
            {
                "hostname": host,
                "host": socket.getnameinfo(target, numeric)[0],
                "port": port,
                "family": kind,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for kind, target in found
        ]

    async def close(self) -> None:
        """Nothing is held."""


def make_session(*, ttl_dns_cache_s: int = 10, local_only: str | None = None) -> aiohttp.ClientSession:
    """A session for all daemons of a device: no proxies, no cookies, no decompression of what a stranger sends.

    local_only: why it connects to no name that leads beyond this host; None: it does.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=256,
            limit_per_host=8,
            keepalive_timeout=KEEP_ALIVE_S,
            ttl_dns_cache=ttl_dns_cache_s,
            resolver=_Resolver(local_only),
        ),
        response_class=_Response,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > ANSWER_BYTES_MAX:
            raise PeerError(f"its answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(data)


def _interpret(status: int, raw: bytes, *, has_lease: bool) -> dict[str, Any]:
    try:
        answer = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        answer = None
    if has_lease and status in GONE_STATUSES:
        raise LeaseGoneError("it does not know the lease any more")
    if not 200 <= status < 300:
        reason = answer.get("error") if isinstance(answer, dict) else None
        said = _one_line(reason) if isinstance(reason, str) else f"HTTP status {status}"
        raise RefusedError(f"it refused: {said}", status)
    if not isinstance(answer, dict):
        raise PeerError("its answer is not a memory daemon's")
    return answer


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:REASON_CHARACTERS_MAX])
