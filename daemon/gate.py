"""Who is let in to the control API, and to what, where control is secured: by the names in the client's certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.identity.identity import Identity
from infiniswap.identity.roles import Role, Roles, called, names_in
from infiniswap.shared.http_server import Handler

MAY_DRAIN = "infiniswap.may_drain"  # in a request: its sender's orders are taken, wherever it comes from
_BORROW = "/v1/leases"
_ORDERS = ("/v1/status", "/v1/cordon", "/v1/uncordon", "/v1/drain", "/v1/log-level")
_WORDS = {Role.BORROW: "may_borrow", Role.LOOK: "may_look", Role.DRAIN: "may_drain"}


def role_of(path: str) -> Role:
    """What a request of that path wants to do."""
    if path == _BORROW or path.startswith(_BORROW + "/"):
        return Role.BORROW
    return Role.DRAIN if path in _ORDERS else Role.LOOK


@dataclass(slots=True)
class GateCounts:
    """Requests of hosts that were let in, and may not do what they asked for; ever growing."""

    look: int = 0
    borrow: int = 0
    drain: int = 0
    out: int = 0  # their certificate was revoked, or has expired, since the connection was made

    def add(self, what: str) -> None:
        """One more."""
        setattr(self, what, getattr(self, what) + 1)


class Gate:
    """A middleware, and what ends connections of those who are not let in any more."""

    def __init__(self, identity: Identity, roles: Roles) -> None:
        """roles: may be replaced while requests come."""
        self._identity = identity
        self.roles = roles
        self.counts = GateCounts()

    def is_out(self, transport: asyncio.BaseTransport) -> bool:
        """Whether the other end of a connection was let in and is not any more."""
        return self._identity.fault(_certificate(transport)) is not None

    def who(self, request: web.Request) -> str:
        """Whose certificate came with it (roles.called)."""
        return called({} if request.transport is None else _certificate(request.transport))

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """RefusedError with FORBIDDEN unless who asks may."""
        certificate = {} if request.transport is None else _certificate(request.transport)
        names = names_in(certificate)
        who = called(certificate)
        if (fault := self._identity.fault(certificate)) is not None:
            self.counts.out += 1
            raise RefusedError(Refusal.FORBIDDEN, f"{who} is not let in any more: {fault}")
        role = role_of(request.path)
        if role is Role.DRAIN and self.roles.may_drain is None:
            return await handler(request)  # the operators' own rule counts
        if not self.roles.allow(role, names):
            self.counts.add(role)
            word = _WORDS[role]
            sentence = f"{who} may not {role} here: no pattern of this daemon's {word} fits its certificate's names"
            raise RefusedError(Refusal.FORBIDDEN, sentence)
        if role is Role.DRAIN:
            request[MAY_DRAIN] = True
        return await handler(request)


def _certificate(transport: asyncio.BaseTransport) -> Mapping[str, Any]:
    found = transport.get_extra_info("peercert")
    return found if isinstance(found, dict) else {}
