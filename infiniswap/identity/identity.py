"""This host's identity while a program runs: read at the start, and again whenever its files change."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from infiniswap.identity.contexts import client_context, tried_server_context
from infiniswap.identity.files import TlsPaths
from infiniswap.shared.errors import UserError
from infiniswap.shared.tls_reasons import explain, find_error

if TYPE_CHECKING:
    from infiniswap.identity.certificates import Described

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 2.0  # between looks at the files; a change counts at the latest then
WARN_BEFORE = timedelta(days=30)
WARN_AGAIN = timedelta(days=1)
NAMES_MAX = 1024  # of servers whose contexts are kept; more than a device has peers

Stamp = tuple[tuple[int, int, int], ...]


def utc_now() -> datetime:
    """What this host's clock says."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the files said; all of one moment."""

    own: Described
    server: ssl.SSLContext
    revoked: frozenset[str]
    stamp: Stamp


class Identity:
    """One set of files."""

    def __init__(self, paths: TlsPaths, now: Callable[[], datetime] = utc_now) -> None:
        """Read the files. UserError: one of them is wrong, or the certificate is none that its authority lets in."""
        self.paths = paths
        self._now = now
        self._loaded = self._load()
        self._refused: Stamp = ()  # of files that were not taken, so that it is said once
        self._clients: dict[str, ssl.SSLContext] = {}  # by name of the server
        self.changed: Callable[[], None] = lambda: None  # told when other files count
        self._warned: datetime | None = None
        self._warn()

    @property
    def own(self) -> Described:
        """This host's certificate."""
        return self._loaded.own

    def server(self) -> ssl.SSLContext:
        """For who connects to us now."""
        return self._loaded.server

    def client(self, name: str) -> ssl.SSLContext:
        """For a connection to the host of that name or address now. UserError: the files cannot be used any more."""
        found = self._clients.get(name)
        if found is None:
            if len(self._clients) >= NAMES_MAX:
                self._clients.clear()
            try:
                found = client_context(self.paths, name)
            except (OSError, ValueError) as error:
                raise UserError(f"the certificate {self.paths.cert} cannot be used: {error}") from None
            self._clients[name] = found
        return found

    def forget(self, name: str) -> None:
        """Connections to that host that are open are not to be used again: the next one is made, and checked, anew."""
        self._clients.pop(name, None)

    def explain(self, error: BaseException, name: str = "") -> str | None:
        """What a failed connection to the host of that name means, where TLS is the cause."""
        found = find_error(error)
        return None if found is None else explain(found, self._now(), name)

    def refresh(self) -> bool:
        """Look at the files; True when they have changed and count from now on. What is wrong is logged, once."""
        stamp = self._stamp()
        if stamp in (self._loaded.stamp, self._refused):
            self._warn()
            return False
        try:
            loaded = self._load()
        except UserError as error:
            self._refused = stamp
            log.warning("the certificate is not read again, the one from before counts: %s", error)
            return False
        self._refused = ()
        self._loaded = loaded
        self._clients.clear()
        self._warned = None
        log.info("the certificates were read again: %s, until %s", loaded.own.subject, loaded.own.not_after.date())
        self._warn()
        self.changed()
        return True

    async def watch(self) -> None:
        """Look at the files again and again, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            self.refresh()

    def fault(self, certificate: Mapping[str, Any]) -> str | None:
        """Why somebody who was let in before is not any more; certificate: as getpeercert() tells it."""
        serial = str(certificate.get("serialNumber", "")).lstrip("0")
        if serial in self._loaded.revoked:
            return "its certificate was revoked"
        until = certificate.get("notAfter")
        if isinstance(until, str) and self._now().timestamp() > ssl.cert_time_to_seconds(until):
            return "its certificate has expired"
        return None

    def _load(self) -> _Loaded:
        # Imported late: it takes 10 MiB, which those who speak no TLS need not have.
        from infiniswap.identity.certificates import check_pair, describe, read_certificate, read_key, read_revoked

        stamp = self._stamp()
        paths = self.paths
        certificate = read_certificate(paths.cert)
        check_pair(certificate, read_key(paths.key), paths.cert, paths.key)
        read_certificate(paths.ca, "the authority's certificate")
        revoked = frozenset[str]() if paths.crl is None else read_revoked(paths.crl)
        own = describe(certificate)
        now = self._now()
        if (problem := own.problem(now)) is not None:
            raise UserError(f"the certificate {paths.cert} is of no use here: {problem}")
        return _Loaded(own, tried_server_context(paths, now), revoked, stamp)

    def _stamp(self) -> Stamp:
        """What changes when one of the files does."""
        found = []
        for path in self.paths.all:
            try:
                status = path.stat()
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)

    def _warn(self) -> None:
        now = self._now()
        left = self._loaded.own.not_after - now
        if left > WARN_BEFORE or (self._warned is not None and now - self._warned < WARN_AGAIN):
            return
        self._warned = now
        when = f"{self._loaded.own.not_after:%Y-%m-%d %H:%M} UTC"
        if left < timedelta(0):
            log.error("this host's certificate has expired on %s: nobody lets it in until it is issued anew", when)
        else:
            log.warning("this host's certificate expires on %s: renew it ('infiniswap cluster show' says how)", when)
