"""Heartbeats of leases that a start has found alive, from then until the peers' own tasks renew them.

A start may take longer than a lease lives: it waits for dead peers, reads half-written pages, sets up RDMA paths.
"""

from __future__ import annotations

import asyncio
import logging

from infiniswap.device.daemon_client import DaemonClient, HeldLease, LeaseGoneError, PeerError

log = logging.getLogger(__name__)

BEATS_PER_TTL = 3
RETRY_S = 1.0  # after a heartbeat that failed, while the lease may still live


class Heartbeats:
    """One task a lease; at most one lease a peer on record, so at most PEERS_MAX."""

    def __init__(self) -> None:
        """Nothing is renewed yet."""
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, client: DaemonClient, lease: HeldLease) -> None:
        """Renew lease, which has just been renewed, until stop() or its end."""
        self._tasks.append(asyncio.create_task(_renew(client, lease), name=f"heartbeats of {lease.address[0]}"))

    async def stop(self) -> None:
        """Renew nothing any more; again and again changes nothing."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _renew(client: DaemonClient, lease: HeldLease) -> None:
    interval_s = lease.ttl_s / BEATS_PER_TTL
    pause_s = interval_s
    while True:
        await asyncio.sleep(pause_s)
        try:
            await client.heartbeat(lease)
            pause_s = interval_s
        except LeaseGoneError as error:
            log.warning("peer at %s: its lease ended while the device started: %s", lease.address[0], error)
            return
        except PeerError as error:
            log.info("peer at %s: no heartbeat: %s", lease.address[0], error)
            pause_s = min(interval_s, RETRY_S)
