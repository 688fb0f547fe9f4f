"""Which lease may open another connection for page I/O: each one always has its share, and more only from what is left.

Pure. So leases that open all they may leave room for those that come later, and for every device that reconnects.
"""

from __future__ import annotations

from collections.abc import Iterable

LEASES_MAX = 256
LEASE_SHARE = 3  # that every lease may have: a device needs 2, and one for a moment more when it connects again
LEASE_CONNECTIONS_MAX = 32  # that one lease may have while few do
SPARE_MAX = 256  # beyond their shares, of all leases together
CONNECTIONS_MAX = LEASES_MAX * LEASE_SHARE + SPARE_MAX


def refusal(own: int, others: Iterable[int]) -> str:
    """Why a lease with so many connections gets no more; "": it does. others: those of all other leases."""
    if own < LEASE_SHARE:
        return ""
    if own >= LEASE_CONNECTIONS_MAX:
        return f"it has {own} connections"
    spare = sum(max(0, each - LEASE_SHARE) for each in (own, *others))
    if spare >= SPARE_MAX:
        return f"it has {own} connections, and few are left for others"
    return ""
