"""Which peer each lease on record belongs to after a crash: by the daemon it is, not by how its name is spelled.

Leases on record come first. Where the peers named and those on record are more than the device can have, peers named
that hold nothing of it wait for another start.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from infiniswap.device.lease_book import RecordedLease
from infiniswap.device.limits import PEERS_MAX
from infiniswap.shared.address import HostPort

log = logging.getLogger(__name__)

Addresses = Mapping[HostPort, frozenset[tuple[str, int]]]


@dataclass(frozen=True, slots=True)
class Seats:
    """peers: of those named, the ones that have a place. entries: on record, each under a name of its own."""

    peers: tuple[HostPort, ...]
    entries: tuple[RecordedLease, ...]


def seat(
    named: Sequence[HostPort], entries: Sequence[RecordedLease], addresses: Addresses, most: int = PEERS_MAX
) -> Seats:
    """Match entries with the peers named; addresses: what each name is known as (missing: unknown)."""
    taken: dict[HostPort, RecordedLease] = {}
    rest: list[RecordedLease] = []
    for entry in entries:
        if entry.peer in named and entry.peer not in taken:
            taken[entry.peer] = entry
        else:
            rest.append(entry)
    left: list[RecordedLease] = []
    for entry in rest:
        peer = next((p for p in named if p not in taken and _same(entry, p, addresses)), None)
        if peer is not None:
            taken[peer] = _renamed(entry, peer)
        elif entry.peer not in taken and all(entry.peer != other.peer for other in left):
            left.append(entry)
        else:
            log.warning("peer %s is on record twice; its second lease expires", entry.peer)
    left = left[: max(most - len(taken), 0)]
    room = most - len(left)
    waiting = [peer for peer in named if peer not in taken][max(room - len(taken), 0) :]
    if waiting:
        log.warning(
            "peers %s are not used until the device starts again: %d peers from before the crash hold pages, and the "
            "most is %d",
            ", ".join(map(str, waiting)),
            len(left),
            most,
        )
    peers = tuple(peer for peer in named if peer not in waiting)
    return Seats(peers, (*(taken[peer] for peer in peers if peer in taken), *left))


def _same(entry: RecordedLease, peer: HostPort, addresses: Addresses) -> bool:
    known = addresses.get(peer, frozenset())
    if entry.peer.port != peer.port:
        return False
    granted = (entry.lease.control, entry.peer.port)
    return granted in known or bool(known & addresses.get(entry.peer, frozenset()))


def _renamed(entry: RecordedLease, peer: HostPort) -> RecordedLease:
    """Under the peer's spelling of today, while the lease stays with the host that granted it."""
    control = entry.lease.control or entry.peer.host
    return replace(entry, peer=peer, lease=replace(entry.lease, control=control))
