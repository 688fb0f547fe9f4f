"""What device and engine tell each other of RDMA: an opened port, and how to connect a peer's queue pairs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """What an opened RDMA port can do (struct isw_rdma_port)."""

    mtu_bytes: int
    lid: int
    reads_max: int
    queue_depth: int
    inline_bytes: int


@dataclass(frozen=True, slots=True)
class RdmaConnection:
    """How to connect a peer's queue pairs (struct isw_rdma_path); gid, lid, number, psn and probe: the other end's."""

    gid: bytes
    gid_index: int
    global_route: bool
    lid: int
    mtu_bytes: int
    reads_max: int
    ack_timeout: int
    retries: int
    rnr_timer: int
    rnr_retries: int
    hop_limit: int
    number: tuple[int, ...]
    psn: tuple[int, ...]
    own_psn: tuple[int, ...]
    probe_address: int
    probe_rkey: int
