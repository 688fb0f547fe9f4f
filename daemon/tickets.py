"""One-time names of exports: each opens one connection to one lease, within seconds. Pure: the clock is handed in.

Only digests are kept, so that nothing that prints the table can give a ticket away.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.shared.clock import Clock

PREFIX = "ticket-"
LIFE_S = 10.0
LEASE_MAX = 64  # tickets of one lease that nobody has used yet; a device needs three at once
RANDOM_BYTES = 32


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


class Tickets:
    """Those that were issued and not used; at most LEASE_MAX for each lease."""

    def __init__(self, clock: Clock, is_live: Callable[[Lease], bool]) -> None:
        """clock: monotonic seconds; is_live: whether a lease is still one."""
        self._clock = clock
        self._is_live = is_live
        # Digest: whose it is, and until when. In the order of their issue.
        self._open: dict[bytes, tuple[Lease, float]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def issue(self, lease: Lease) -> str:
        """The name by which one connection can be opened to the lease now. RefusedError: too many wait to be used."""
        self._forget_old()
        if sum(1 for known, _ in self._open.values() if known is lease) >= LEASE_MAX:
            raise RefusedError(Refusal.UNAVAILABLE, f"{LEASE_MAX} tickets of this lease wait to be used")
        name = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
        self._open[_digest(name)] = (lease, self._clock() + LIFE_S)
        return name

    def take(self, name: str) -> Lease | None:
        """The lease that name opens, which it does this once. None: it is none, or old, or was used."""
        if not name.startswith(PREFIX):
            return None
        lease, until_s = self._open.pop(_digest(name), (None, 0.0))
        return lease if lease is not None and self._clock() < until_s and self._is_live(lease) else None

    def _forget_old(self) -> None:
        now = self._clock()
        for digest in [it for it, (lease, until_s) in self._open.items() if now >= until_s or not self._is_live(lease)]:
            del self._open[digest]
