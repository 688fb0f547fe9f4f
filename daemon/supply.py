"""What a lender tells of itself: how its memory is divided up, and what has happened since it began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Supply:
    """Memory in bytes: what is lent and could be lent in all, what could be mapped now, what is taken.

    lapsed_bytes: in slabs of leases that have lapsed; free, because those are given up when somebody asks for memory.
    """

    total_bytes: int
    free_bytes: int
    used_bytes: int
    lapsed_bytes: int = 0


@dataclass(slots=True)
class LenderCounts:
    """Events since the start, ever growing."""

    leases_granted: int = 0
    leases_refused: int = 0
    leases_released: int = 0
    leases_expired: int = 0
    leases_revived: int = 0
    leases_throttled: int = 0  # refused because their address asked for too many
    leases_renewed_by_pages: int = 0  # half lives without heartbeats, in which pages moved
    over_quota: int = 0  # leases, slabs and page connections refused because their host has its part
    unproven: int = 0  # calls about a lease without its token
    leases_of_others: int = 0  # calls with a token that another host's certificate had got
    page_connections_refused: int = 0  # their lease had enough
    slabs_mapped: int = 0
    slabs_released: int = 0
    maps_refused: int = 0
    evicted: int = 0  # given up by their device after a notice
    evicted_by_force: int = 0
    notices: int = 0
    ask_timeouts: int = 0  # devices that did not tell their slabs' activity in time
    streams_opened: int = 0
    streams_replaced: int = 0
    streams_overrun: int = 0  # closed because the device did not take its messages
    stream_nonsense: int = 0  # messages that could not be used
