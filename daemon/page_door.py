"""Who is let in to the page port: by a ticket, or by the name of a lease's export; and as often as its lease may."""

from __future__ import annotations

import logging
import socket
from typing import Protocol

from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.lender import Lender, SlabEngine
from infiniswap.daemon.page_slots import refusal
from infiniswap.daemon.tickets import Tickets
from infiniswap.engine.binding import ConnectionFlag
from infiniswap.nbd.handshake import ExportInfo, Negotiated
from infiniswap.shared.complaints import Complaints


class PageEngine(SlabEngine, Protocol):
    """What the service needs of the data path (memory_binding.MemoryEngine)."""

    counter_names: tuple[str, ...]

    def add_connection(self, export: int, sock: socket.socket, flags: ConnectionFlag, early: bytes = b"") -> None:
        """See MemoryEngine.add_connection."""

    def counter(self, name: str) -> int:
        """See MemoryEngine.counter."""

    def close(self) -> None:
        """See MemoryEngine.close."""


def export_info(leases: LeaseTable, tickets: Tickets, name: str, *, secured: bool) -> ExportInfo | None:
    """The export of that name: a ticket, or where control is not secured what the holder of a lease's token knows."""
    lease = tickets.take(name) or (None if secured else leases.by_export(name))
    if lease is None:
        return None
    return ExportInfo(name=name, size_bytes=lease.size_bytes, description="slabs of a lease", handle=lease)


def hand_over(
    lender: Lender, engine: PageEngine, complaints: Complaints, sock: socket.socket, negotiated: Negotiated
) -> None:
    """Give a negotiated client to the engine, unless its lease has ended meanwhile."""
    lease = negotiated.export.handle
    assert isinstance(lease, Lease)
    if not lender.leases.is_live(lease):
        sock.close()
        return
    others = (engine.export_connections(each.export) for each in lender.leases.leases() if each is not lease)
    own = engine.export_connections(lease.export)
    over = lender.quotas.connection_refusal(
        lease, lender.leases.leases(), lambda one: engine.export_connections(one.export)
    )
    lender.counts.over_quota += bool(over)
    if refused := over or refusal(own, others):
        lender.counts.page_connections_refused += 1
        message = f"lease {lease.lease_id} of device {lease.device} got no further connection: {refused}"
        complaints.say("connections", message, logging.WARNING)
        sock.close()
    else:
        engine.add_connection(lease.export, sock, negotiated.flags, negotiated.early)
