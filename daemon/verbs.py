"""What the daemon needs of libibverbs, typed, because pyverbs tells no types; tests bring a fake.

All calls are made on the event loop: pyverbs holds the interpreter for their length anyway. Whatever has been opened is
closed in the reverse order by who opened it; closing twice does nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
from dataclasses import dataclass
from typing import Protocol

from infiniswap.rdma.devices import Gid, Port
from infiniswap.rdma.path import (
    ACK_TIMEOUT_MAX,
    HOP_LIMIT,
    RETRIES,
    RNR_RETRIES,
    RNR_TIMER,
    RdmaUnavailableError,
    needs_global_route,
)
from infiniswap.shared.path_messages import LinkLayer, PathEnd, QueuePair

PSN_BITS = 24
OWN_READS = 1  # RDMA READs that the daemon may have outstanding; it never sends any, and 0 is refused by some hardware


class VerbsError(Exception):
    """The verbs refused; the message is one sentence without a full stop, code an errno where there was one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Connection:
    """All that brings one queue pair from RESET through INIT and RTR to RTS (ibv_modify_qp(3))."""

    port: int
    gid_index: int
    global_route: bool
    remote_gid: ipaddress.IPv6Address
    remote_lid: int  # 0 on Ethernet
    remote: QueuePair
    psn: int  # of the first packet that this end sends
    mtu_bytes: int
    reads_served: int  # RDMA READs that the other end may have outstanding
    timeout: int = ACK_TIMEOUT_MAX
    retries: int = RETRIES
    rnr_timer: int = RNR_TIMER
    rnr_retries: int = RNR_RETRIES
    hop_limit: int = HOP_LIMIT


class RegisteredMemory(Protocol):
    """Memory that whoever has the key and a queue pair of the same protection domain may read and write."""

    @property
    def address(self) -> int:
        """Where it begins in this process."""

    @property
    def rkey(self) -> int:
        """The key."""

    def close(self) -> None:
        """Deregister: when this returns, no access can happen any more. VerbsError: it is still registered."""


class QueuePairHandle(Protocol):
    """A reliable connected queue pair that answers RDMA READ and WRITE, and sends nothing."""

    @property
    def number(self) -> int:
        """24 bits that address it."""

    def connect(self, connection: Connection) -> None:
        """Bring it to RTS; VerbsError."""

    def broken(self) -> bool:
        """Whether it has left RTS, or cannot be asked any more."""

    def close(self) -> None:
        """Destroy it: when this returns, nothing arrives through it any more. VerbsError: it is still there."""


class ProtectionDomain(Protocol):
    """Keys made in one protection domain open nothing to the queue pairs of another."""

    def register(self, address: int, length: int) -> RegisteredMemory:
        """Register memory of this process for remote reading and writing; VerbsError."""

    def queue_pair(self) -> QueuePairHandle:
        """A new queue pair in RESET; VerbsError."""

    def close(self) -> None:
        """End it; VerbsError while something of it is still open."""


class Device(Protocol):
    """An opened RDMA device."""

    @property
    def reads_max(self) -> int:
        """RDMA READs that a queue pair of it can serve at a time."""

    def mtu_bytes(self, port: int) -> int:
        """The MTU in force on that port; VerbsError."""

    def alive(self) -> bool:
        """Whether it still answers: one that was unplugged never does again, even if it is plugged in anew."""

    def protection_domain(self) -> ProtectionDomain:
        """A new protection domain; VerbsError."""

    def close(self) -> None:
        """Close the device; VerbsError."""


class Verbs(Protocol):
    """libibverbs."""

    def open(self, name: str) -> Device:
        """Open the RDMA device of that name; VerbsError."""


def plan_connections(
    *, link_layer: LinkLayer, port: Port, gid: Gid, mtu_bytes: int, reads_max: int, remote: PathEnd
) -> list[Connection]:
    """How each of this end's queue pairs meets the remote one of the same place.

    RdmaUnavailableError: the two ends cannot reach each other.
    """
    if remote.link_layer is not link_layer:
        raise RdmaUnavailableError(
            f"RDMA port {port} is {link_layer}, but the other end's is {remote.link_layer}: they cannot be connected"
        )
    global_route = needs_global_route(link_layer, gid.address, remote.gid)
    if link_layer is LinkLayer.INFINIBAND and not global_route and remote.lid == 0:
        raise RdmaUnavailableError("the other end has no LID: is a subnet manager running?")
    return [
        Connection(
            port=port.number,
            gid_index=gid.index,
            global_route=global_route,
            remote_gid=remote.gid,
            remote_lid=remote.lid if link_layer is LinkLayer.INFINIBAND else 0,
            remote=pair,
            psn=secrets.randbits(PSN_BITS),
            mtu_bytes=min(mtu_bytes, remote.mtu_bytes),
            reads_served=max(1, min(reads_max, remote.reads_max)),
        )
        for pair in remote.queue_pairs
    ]


def registration_failure(error: VerbsError, length: int) -> str:
    """One sentence on why length bytes cannot be registered, and what mends it."""
    if error.code == errno.ENOMEM:
        return (
            f"{length >> 20} MiB of slab memory cannot be locked for RDMA: raise the limit of locked memory "
            "('ulimit -l unlimited', or LimitMEMLOCK=infinity in a systemd unit)"
        )
    return f"{length >> 20} MiB of slab memory cannot be registered for RDMA: {error}"
