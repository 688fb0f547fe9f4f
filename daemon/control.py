"""The server of the control API: in the clear, or with certificates at both ends."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import asdict

from aiohttp import web

from infiniswap.daemon.config import DaemonConfig
from infiniswap.daemon.gate import Gate
from infiniswap.identity.files import how_to_get_one
from infiniswap.identity.identity import Identity
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.http_server import HttpServer
from infiniswap.shared.tls_accept import TlsAccept

log = logging.getLogger(__name__)


class Control:
    """Of one daemon."""

    def __init__(self, config: DaemonConfig, beyond: HostPort | None) -> None:
        """Read the certificates, if there are any. beyond: an address at which other hosts reach this daemon.

        UserError: they are of no use, or there are none and others may come.
        """
        self._identity = None if config.tls is None else Identity(config.tls)
        if self._identity is None and not config.insecure:
            if beyond is not None:
                raise UserError(
                    f"other hosts reach {beyond}, and there is no certificate to tell them from strangers: "
                    f"{how_to_get_one()}; or give --insecure, and whoever reaches it may borrow",
                    ExitCode.REFUSED,
                )
            log.info("without certificates, for this daemon is on loopback alone: programs of this host may borrow")
        self._gate = None if self._identity is None else Gate(self._identity, config.roles)
        self._server: HttpServer | None = None
        self._accept = None if self._identity is None else TlsAccept(self._identity.server, self._identity.explain)

    @property
    def secured(self) -> bool:
        """Whether clients show certificates."""
        return self._identity is not None

    def adjust(self, config: DaemonConfig) -> None:
        """Roles of config count from now on, and files that have changed."""
        if self._gate is not None and self._identity is not None:
            self._gate.roles = config.roles
            self._identity.refresh()

    def open(self, make: Callable[[Gate | None], web.Application], listening: socket.socket) -> HttpServer:
        """The server, not started yet; make: its application."""
        self._server = HttpServer(make(self._gate), listening, secure=self._accept)
        return self._server

    def counts(self) -> dict[str, dict[str, int]]:
        """Who was not let in, and who was refused what; nothing where control is not secured."""
        if self._accept is None or self._gate is None:
            return {}
        return {"handshakes": asdict(self._accept.counts), "roles": asdict(self._gate.counts)}

    async def watch(self) -> None:
        """Take up changed files, and cut off whose certificate counts no more; called again and again."""
        if self._identity is None or self._gate is None or self._server is None:
            return
        self._identity.refresh()
        if count := self._server.cut(self._gate.is_out):
            log.warning("%d connections were cut off: their certificates were revoked, or have expired", count)
