"""Client of the memory daemon's control API: every call with a time-out, every answer checked before it is used."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection

from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.host_names import is_address, look_up
from infiniswap.shared.path_messages import PathEnd, Region, parse_end, parse_region

ANSWER_BYTES_MAX = 4 << 20  # a heartbeat lists up to 2^18 slabs
TTL_S_MIN = 0.1
TTL_S_MAX = 86_400.0
REASON_CHARACTERS_MAX = 200
_NUMBER_MAX = 1 << 62


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


@dataclass(frozen=True, slots=True)
class Lease:
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
    control: str = (
        ""  # the one address, of those that the peer's name has, at which it was granted; "": a name has none
    )

    def renewed(self, at_s: float) -> None:
        """A heartbeat sent at at_s was answered."""
        self.renewal[0] = max(self.renewal[0], at_s)

    def expired(self, now_s: float) -> bool:
        """Whether the daemon may have let it go for want of heartbeats."""
        return now_s >= self.renewal[0] + self.ttl_s


@dataclass(frozen=True, slots=True)
class Offered:
    """Memory that a daemon offers now, bytes."""

    free_bytes: int
    total_bytes: int
    incarnation: str
    rdma: bool = False  # it can be reached over RDMA now


@dataclass(frozen=True, slots=True)
class Beat:
    """Answer to a heartbeat."""

    slabs: frozenset[int]
    free_bytes: int
    connections: int = 0  # page I/O connections open on the lease, 0 also where the daemon does not tell
    rdma: bool = True  # False: an RDMA path of the lease is dead at the daemon's end


@dataclass(frozen=True, slots=True)
class Mapped:
    """Answer to a mapping."""

    free_bytes: int
    region: Region | None = None  # the slab's memory, when the lease has an RDMA path


@dataclass(frozen=True, slots=True)
class RemoteEnd:
    """The daemon's end of an RDMA path, with the memory that the lease may reach through it."""

    end: PathEnd
    port: str
    probe: Region
    regions: dict[int, Region]


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
    ) -> None:
        """Session is shared and remains the caller's; timeout_s bounds each call as a whole.

        clock: of the leases that are granted.
        """
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
        answer = await self._call("GET", f"/offer?slab_bytes={self._slab_bytes}")
        return Offered(
            _integer(answer, "free_bytes"),
            _integer(answer, "total_bytes"),
            _string(answer, "incarnation"),
            isinstance(answer.get("rdma"), dict),
        )

    async def open_lease(self) -> Lease:
        """A new lease."""
        body = {
            "device": self._device,
            "device_id": self._device_id,
            "size_bytes": self._size_bytes,
            "slab_bytes": self._slab_bytes,
        }
        sent_s = self._clock()
        answer, granted_at = await self._ask("POST", "/leases", body=body)
        named = not is_address(self._address.host)
        return Lease(
            lease_id=_path_part(answer, "lease"),
            token=_string(answer, "token"),
            export=_string(answer, "export"),
            address=await self._page_address(answer, granted_at if named else self._address.host),
            incarnation=_string(answer, "incarnation"),
            ttl_s=_ttl(answer),
            size_bytes=self._size_bytes,
            renewal=[sent_s],
            rdma=isinstance(answer.get("rdma"), dict),
            control=granted_at if named else "",
        )

    async def _page_address(self, answer: dict[str, Any], granted_at: str) -> tuple[str, int]:
        """Where pages go: of the addresses of a name, the one of the host that granted the lease."""
        host, port = _address(answer)
        if is_address(host):
            return host, port
        try:
            async with asyncio.timeout(self._timeout_s):
                found = [str(target[0]) for _, target in await look_up(host, port)]
        except (OSError, TimeoutError):
            found = []
        return (granted_at if granted_at in found else host), port

    async def map_slab(self, lease: Lease, slab: int) -> Mapped:
        """Memory for slab. RefusedError when there is none."""
        answer = await self._call("PUT", f"/leases/{lease.lease_id}/slabs/{slab}", lease=lease)
        region = answer.get("rdma")
        return Mapped(_integer(answer, "free_bytes"), None if region is None else _region(region))

    async def open_rdma(self, lease: Lease, end: PathEnd) -> RemoteEnd:
        """The daemon's end of an RDMA path to ours, ready for it; an earlier path of the lease is cut."""
        path = f"/leases/{lease.lease_id}/rdma"
        answer = await self._call("POST", path, lease=lease, body={"path": end.as_json()})
        slabs = answer.get("slabs")
        if not isinstance(slabs, list) or not all(
            isinstance(item, dict) and type(item.get("slab")) is int for item in slabs
        ):
            raise PeerError("its answer lacks the list of slabs")
        try:
            remote = parse_end(answer.get("path"))
        except ValueError as error:
            raise PeerError(f"its end of the RDMA path cannot be used: {error}") from None
        return RemoteEnd(
            end=remote,
            port=_string(answer, "device"),
            probe=_region(answer.get("probe")),
            regions={item["slab"]: _region(item) for item in slabs},
        )

    async def close_rdma(self, lease: Lease) -> None:
        """Cut the lease's RDMA path, if it has one: afterwards nothing that was sent through it changes memory."""
        await self._call("DELETE", f"/leases/{lease.lease_id}/rdma", lease=lease)

    async def unmap_slab(self, lease: Lease, slab: int) -> None:
        """Give the memory of slab back."""
        await self._call("DELETE", f"/leases/{lease.lease_id}/slabs/{slab}", lease=lease)

    async def heartbeat(self, lease: Lease) -> Beat:
        """Renew the lease. LeaseGoneError also when the daemon has lost its memory since (another incarnation)."""
        sent_s = self._clock()
        answer = await self._call("POST", f"/leases/{lease.lease_id}/heartbeat", lease=lease, body={})
        if _string(answer, "incarnation") != lease.incarnation:
            raise LeaseGoneError("the daemon was restarted")
        lease.renewed(sent_s)
        slabs = answer.get("slabs")
        if not isinstance(slabs, list) or not all(type(slab) is int for slab in slabs):
            raise PeerError("its answer lacks the list of slabs")
        connections = _integer(answer, "connections") if "connections" in answer else 0
        rdma = answer.get("rdma") is not False
        return Beat(frozenset(slabs), _integer(answer, "free_bytes"), connections, rdma)

    async def look_at(self, lease: Lease) -> None:
        """See that the lease lives, without renewing it. LeaseGoneError when it does not."""
        answer = await self._call("GET", f"/leases/{lease.lease_id}", lease=lease)
        if answer.get("incarnation", lease.incarnation) != lease.incarnation:
            raise LeaseGoneError("the daemon was restarted")

    async def release(self, lease: Lease) -> None:
        """Give the lease back; nothing to do when it is gone already."""
        try:
            await self._call("DELETE", f"/leases/{lease.lease_id}", lease=lease)
        except LeaseGoneError:
            return

    async def _call(
        self, method: str, path: str, *, lease: Lease | None = None, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return (await self._ask(method, path, lease=lease, body=body))[0]

    async def _ask(
        self, method: str, path: str, *, lease: Lease | None = None, body: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], str]:
        """The answer, and the address that gave it. What concerns a lease goes to the host that granted it."""
        headers = {"Accept-Encoding": "identity"}
        address = self._address
        if lease is not None:
            headers["Authorization"] = f"Bearer {lease.token}"
            if lease.control:
                address = HostPort(lease.control, address.port)
        try:
            async with self._session.request(
                method,
                f"http://{address}/v1{path}",
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
            # asyncio puts words of its own in the place of the system's, with the address once more.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise PeerError(f"cannot connect: {reason}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PeerError(f"the request failed: {_one_line(str(error)) or type(error).__name__}") from None
        answered_at = response.answered_at if isinstance(response, _Response) else ""
        return _interpret(status, raw, has_lease=lease is not None), answered_at


class _Response(aiohttp.ClientResponse):
    """Remembers which address answered: aiohttp tries all that a name has, and does not tell."""

    answered_at = ""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """The head of the answer is about to come."""
        peer = None if connection.transport is None else connection.transport.get_extra_info("peername")
        if peer:
            self.answered_at = str(peer[0])
        return await super().start(connection)


class _Resolver(AbstractResolver):
    """look_up for aiohttp."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As aiohttp asks for it."""
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host,
                host=socket.getnameinfo(target, numeric)[0],
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, target in await look_up(host, port, family)
        ]

    async def close(self) -> None:
        """Nothing is held."""


def make_session(*, ttl_dns_cache_s: int = 10) -> aiohttp.ClientSession:
    """A session for all daemons of a device: no proxies, no cookies, no decompression of what a stranger sends."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=256, limit_per_host=8, ttl_dns_cache=ttl_dns_cache_s, resolver=_Resolver()
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
    if has_lease and status in (401, 403, 404, 410):
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


def _integer(answer: dict[str, Any], name: str) -> int:
    value = answer.get(name)
    if type(value) is not int or not 0 <= value <= _NUMBER_MAX:
        raise PeerError(f"its answer lacks {name}")
    return value


def _region(content: object) -> Region:
    try:
        return parse_region(content)
    except ValueError as error:
        raise PeerError(f"its answer has a memory region that cannot be used: {error}") from None


def _string(answer: dict[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 1024 or not value.isprintable():
        raise PeerError(f"its answer lacks {name}")
    return value


def _path_part(answer: dict[str, Any], name: str) -> str:
    value = _string(answer, name)
    if not value.isascii() or not value.replace("-", "").replace("_", "").isalnum():
        raise PeerError(f"its answer has a {name} that cannot be used")
    return value


def _address(answer: dict[str, Any]) -> tuple[str, int]:
    match answer.get("address"):
        case [str(host), int(port)] if host and 0 < port < 65536:
            return host, port
    raise PeerError("its answer lacks the address for page I/O")


def _ttl(answer: dict[str, Any]) -> float:
    value = answer.get("ttl_s")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not TTL_S_MIN <= value <= TTL_S_MAX:
        raise PeerError(f"its answer lacks a ttl_s between {TTL_S_MIN:g} and {TTL_S_MAX:g}")
    return float(value)
