"""Typed face of the C engine: what crosses between Python and the data path, and nothing that decides.

Counters and tables are numpy views of memory that the engine writes with relaxed atomics: reading them costs nothing on
the data path and may be done at any time until the object is closed.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.engine import _engine, layout
from infiniswap.engine.layout import HISTOGRAM_DTYPE, take_traces
from infiniswap.engine.log_binding import Log
from infiniswap.engine.rdma_values import RdmaConnection, RdmaPort

ffi: Any = _engine.ffi
lib: Any = _engine.lib

PAGE_BYTES: int = lib.ISW_PAGE_BYTES
PEERS_MAX: int = lib.ISW_PEERS_MAX
EARLY_BYTES_MAX: int = lib.ISW_EARLY_BYTES_MAX
REQUEST_BYTES_MAX: int = lib.ISW_REQUEST_BYTES_MAX
ALLOCATION_CONTEXT_ID: int = lib.ISW_CONTEXT_ALLOCATION
OPS: int = lib.ISW_OPS
OP_PAGES_MAX: int = lib.ISW_OP_PAGES_MAX
_EVENTS_AT_ONCE = 256


class ConnectionFlag(IntFlag):
    """What a client negotiated, told to the engine with the socket."""

    NONE = 0
    STRUCTURED = 1
    ALLOCATION = 2
    READ_ONLY = 4


class PageFlag(IntFlag):
    """Flags of a page table entry (low bits of meta)."""

    REMOTE = 1
    DISK = 2
    WRITING = 4
    PUNCH = 8
    LOST = 16
    DOUBTFUL = 128


class EventKind(IntEnum):
    """News from the device's data path."""

    PEER_LOST = 1
    SLAB_RELEASED = 2
    SLAB_TOUCHED = 3
    FLUSHED = 4
    MISMATCH = 5
    BACKUP_ERROR = 6
    OVERFLOW = 7
    SLAB_LOST = 8
    PEER_READY = 9
    RDMA_LOST = 10
    SCRUBBED = 11
    PEER_SLOW = 12
    BACKUP_CUT = 13
    STATE_ERROR = 14
    BROKEN = 15
    PEER_HELD = 16
    SLAB_MOVED = 17
    MOVE_FAILED = 18
    DIFFERS = 19


class Copy(IntEnum):
    """Which copy of a page a verification found wrong."""

    REMOTE = 1
    BACKUP = 2
    RECORD = 3
    UNREADABLE = 4


class Invariant(IntEnum):
    """What must hold inside the data path; an event BROKEN names the first that did not."""

    PAGE = 1
    BUFFER = 2
    EPOCH = 3
    TRANSFERS = 4
    COUNT = 5


class SlabState(IntEnum):
    """Where a slab's remote copy stands."""

    UNMAPPED = 0
    MAPPED = 1
    DRAINING = 2


SOURCES = ("remote", "pending", "backup", "zero", "write_remote", "write_backup", "flush")
BACKUP_ENGINES = {1: "io_uring", 2: "threads"}

LOST_PENDING: int = lib.ISW_LOST_PENDING  # checksum of a LOST page that a pending buffer has
PAGE_DTYPE = np.dtype([("checksum", "<u4"), ("meta", "<u4")])
INTENT_DTYPE = np.dtype(
    [("first_page", "<u8"), ("pages", "<u4"), ("to_backup", "<u4"), ("checksum", "<u4", (OP_PAGES_MAX,))]
)
SLAB_DTYPE, PEER_DTYPE = layout.SLAB_DTYPE, layout.PEER_DTYPE


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of news; what peer, slab and value mean depends on the kind (see infiniswap_engine.h)."""

    kind: EventKind
    peer: int
    slab: int
    value: int
    attachment: int = 0  # of a peer, which of its attachments; 0: it is about no peer

    def is_past(self, peers: NDArray[Any]) -> bool:
        """Whether it is about a peer (of DeviceEngine.peers) as it was attached before: that lease is over."""
        return bool(self.attachment and self.attachment != peers["attachment"][self.peer])


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Offsets in the state file, bytes."""

    intents_offset: int
    pages_offset: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceParameters:
    """What the engine needs to start; units in the names, meanings in infiniswap_engine.h."""

    size_bytes: int
    slab_bytes: int
    pending_limit_bytes: int
    backup_fd: int
    state_fd: int = -1
    backup_sparse: bool = False
    backup_engine: int = 0
    backup_depth: int = 64
    writeback_delay_ms: int = 20
    connections_max: int = 64
    peers_max: int = 16
    peer_timeout_ms: int = 3000
    peer_grace_ms: int = 0
    request_deadline_ms: int = 0
    hedge_floor_us: int = 0
    prefetch_floor_us: int = 0
    client_stall_timeout_ms: int = 60000
    lock_memory: bool = False
    recovering: bool = False


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def _view(pointer: Any, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.frombuffer(ffi.buffer(pointer, count * dtype.itemsize), dtype=dtype)
    array.flags.writeable = False
    return array


def state_layout(size_bytes: int) -> StateLayout:
    """Layout of the state file of a device of size_bytes (a multiple of the page)."""
    out = ffi.new("uint64_t[3]")
    _check(lib.isw_state_layout(size_bytes, out, out + 1, out + 2), "state layout")
    return StateLayout(out[0], out[1], out[2])


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC32C (Castagnoli, RFC 3720 appendix B.4) of data."""
    buffer = ffi.from_buffer(data)
    return int(lib.isw_crc32c(buffer, len(buffer)))


def histogram_floors_ns() -> NDArray[np.uint64]:
    """Lower edge of each latency bucket, ns, shape (buckets,)."""
    return np.array([lib.isw_histogram_bucket_floor_ns(i) for i in range(lib.ISW_HISTOGRAM_BUCKETS)], dtype=np.uint64)


def _hand_over(sock: socket.socket) -> int:
    sock.setblocking(False)
    return sock.detach()


class DeviceEngine:
    """The block device's data path. Not thread-safe: call it from one thread (the service's event loop)."""

    def __init__(
        self,
        parameters: DeviceParameters,
        state: mmap.mmap,
        seals: tuple[mmap.mmap, bytearray] | None = None,
        log: Log | None = None,
    ) -> None:
        """Take all memory and start the threads; OSError with a sentence when that fails.

        seals: the mapped file of seals and its root key, which may be wiped afterwards; what goes to peers is sealed.
        log: what the backup's descriptor holds, the caller's to close after close(); None: a raw image.
        """
        config = ffi.new("struct isw_device_config *")
        for name in parameters.__dataclass_fields__:
            setattr(config, name, int(getattr(parameters, name)))
        self._mapped = [ffi.from_buffer(state, require_writable=True)]
        config.state, config.state_bytes = self._mapped[0], len(state)
        if seals is not None:
            self._mapped.append(ffi.from_buffer(seals[0], require_writable=True))
            key = ffi.from_buffer(seals[1])
            config.seals, config.seals_bytes, config.seal_key = self._mapped[1], len(seals[0]), key
        if log is not None:
            config.backup_log = log.pointer
        error = ffi.new("char[256]")
        self._device = lib.isw_device_start(config, error, len(error))
        if self._device == ffi.NULL:
            raise OSError(errno.EINVAL, ffi.string(error).decode())
        count = ffi.new("uint32_t *")
        pointer = lib.isw_device_slabs(self._device, count)
        self.slabs: NDArray[Any] = _view(pointer, count[0], SLAB_DTYPE)
        pointer = lib.isw_device_peers(self._device, count)
        self.peers: NDArray[Any] = _view(pointer, count[0], PEER_DTYPE)
        pointer = lib.isw_device_counters(self._device, count)
        self.counters: NDArray[np.uint64] = _view(pointer, count[0], np.dtype(np.uint64))
        self.counter_names = tuple(ffi.string(lib.isw_device_counter_name(i)).decode() for i in range(count[0]))
        pointer = lib.isw_device_histograms(self._device)
        self.latencies: NDArray[Any] = _view(pointer, len(SOURCES), HISTOGRAM_DTYPE)
        pointer = lib.isw_device_peer_histograms(self._device)
        self.peer_latencies: NDArray[Any] = _view(pointer, 2 * len(self.peers), HISTOGRAM_DTYPE).reshape(-1, 2)
        self._events = ffi.new("struct isw_event[]", _EVENTS_AT_ONCE)

    @property
    def backup_engine(self) -> str:
        """How backup I/O is done: io_uring or threads."""
        return BACKUP_ENGINES[lib.isw_device_backup_engine(self._device)]

    @property
    def histograms(self) -> NDArray[np.uint64]:
        """How many requests of each source took how long: the counts of latencies, (sources, buckets)."""
        counts: NDArray[np.uint64] = self.latencies["counts"]
        return counts

    def trace_least(self, least_us: int) -> None:
        """Requests that take less are not remembered from now on."""
        lib.isw_device_trace_least(self._device, least_us * 1000)

    def traces(self, after: int = 0) -> NDArray[Any]:
        """A copy of the last requests, TRACE_DTYPE, the oldest first: those with a number above after."""
        return take_traces(self._device, after)

    def counter(self, name: str) -> int:
        """One counter by its name in ISW_DEVICE_COUNTERS."""
        return int(self.counters[self.counter_names.index(name)])

    def add_connection(self, sock: socket.socket, flags: ConnectionFlag, early: bytes = b"") -> None:
        """Give a negotiated client socket to the engine, with what the client had already sent behind the handshake."""
        result = lib.isw_device_connection_add(self._device, _hand_over(sock), int(flags), early, len(early))
        _check(result, "connection")

    def attach_peer(self, peer: int, read_sock: socket.socket, write_sock: socket.socket) -> None:
        """Give the engine two negotiated connections to a lease's export; peer is a slot below peers_max."""
        result = lib.isw_device_peer_attach(self._device, peer, _hand_over(read_sock), _hand_over(write_sock))
        _check(result, f"attach peer {peer}")

    def rdma_open(self, name: str, port: int, poll_us: int) -> RdmaPort:
        """Open a port and register the buffers with it; OSError with a sentence. May run in a thread of its own."""
        out, error = ffi.new("struct isw_rdma_port *"), ffi.new("char[256]")
        result = lib.isw_device_rdma_open(self._device, name.encode(), port, poll_us, out, error, len(error))
        if result < 0:
            raise OSError(-result, ffi.string(error).decode(errors="replace"))
        return RdmaPort(*(int(getattr(out, name)) for name in RdmaPort.__dataclass_fields__))

    def rdma_close(self) -> None:
        """Close the port; peers reached through it are lost."""
        if self._device == ffi.NULL:
            return
        _check(lib.isw_device_rdma_close(self._device), "close the RDMA port")

    def rdma_prepare(self, peer: int) -> tuple[int, ...]:
        """Make a peer's queue pairs anew; their numbers."""
        numbers = ffi.new("uint32_t[]", lib.ISW_RDMA_QUEUE_PAIRS)
        _check(lib.isw_device_rdma_prepare(self._device, peer, numbers), f"RDMA queue pairs of peer {peer}")
        return tuple(numbers)

    def rdma_connect(self, peer: int, connection: RdmaConnection) -> None:
        """Connect the queue pairs. May take seconds; may run in a thread of its own."""
        path = ffi.new("struct isw_rdma_path *")
        for name in connection.__dataclass_fields__:
            value = getattr(connection, name)
            setattr(path, name, int(value) if isinstance(value, bool) else value)
        _check(lib.isw_device_rdma_connect(self._device, peer, path), f"RDMA path to peer {peer}")

    def attach_peer_rdma(self, peer: int) -> None:
        """Use the connected queue pairs; EventKind.PEER_READY or PEER_LOST follows."""
        _check(lib.isw_device_peer_attach_rdma(self._device, peer), f"attach peer {peer} over RDMA")

    def detach_peer(self, peer: int) -> None:
        """Close a peer's connections; slabs still mapped there are lost."""
        _check(lib.isw_device_peer_detach(self._device, peer), f"detach peer {peer}")

    def answered_bytes(self, peer: int) -> int:
        """What a peer has ever answered: pages, and word of those that it took."""
        return int(self.peers["bytes_in"][peer])

    def hold_peer(self, peer: int) -> None:
        """Close the connections of a peer whose daemon has ended, and keep its slabs for the grace time.

        OSError: it has no slabs or there is no such time; nothing has changed then.
        """
        _check(lib.isw_device_peer_hold(self._device, peer), f"hold peer {peer}")

    def resume_peer(self, peer: int) -> None:
        """Let the copies of a held peer that was attached again count again. OSError: it is not held any more."""
        _check(lib.isw_device_peer_resume(self._device, peer), f"resume peer {peer}")

    def set_region(self, slab: int, peer: int, region: tuple[int, int]) -> None:
        """Say where slab lies at a held peer now: address and key."""
        _check(lib.isw_device_slab_region(self._device, slab, peer, *region), f"region of slab {slab}")

    def slab_gone(self, slab: int, peer: int) -> None:
        """Say that the daemon of a held peer has no memory for slab any more: it alone is lost, and told as such."""
        _check(lib.isw_device_slab_gone(self._device, slab, peer), f"slab {slab} is gone")

    def forget_slab(self, slab: int) -> None:
        """Make sure that no page of slab, which is not mapped, counts as remote: before a new place goes on record."""
        _check(lib.isw_device_slab_forget(self._device, slab), f"forget slab {slab}")

    def map_slab(self, slab: int, peer: int, adopt: bool = False, region: tuple[int, int] | None = None) -> None:
        """Page-outs of slab go to peer from now on. adopt: REMOTE flags found in the state are true.

        region: address and key of the slab's memory, for a peer that is attached over RDMA and only for such a one.
        """
        if region is None:
            result = lib.isw_device_slab_map(self._device, slab, peer, int(adopt))
        else:
            result = lib.isw_device_slab_map_region(self._device, slab, peer, int(adopt), *region)
        _check(result, f"map slab {slab}")

    def end_adoption(self) -> None:
        """All slabs of the last process are mapped: pages whose only copy was in another one are lost."""
        _check(lib.isw_device_adoption_end(self._device), "end of adoption")

    def unmap_slab(self, slab: int) -> None:
        """Begin to give slab up; EventKind.SLAB_RELEASED follows."""
        _check(lib.isw_device_slab_unmap(self._device, slab), f"unmap slab {slab}")

    def move_slab(self, slab: int, peer: int, limit_ms: int = 0, region: tuple[int, int] | None = None) -> None:
        """Take slab to peer with its pages; EventKind.SLAB_MOVED follows, or MOVE_FAILED. region: as in map_slab.

        limit_ms: what is not copied by then and is on the backup is left behind; 0: a minute. Again with the same peer:
        sets the time anew. OSError EAGAIN: too many move.
        """
        if region is None:
            result = lib.isw_device_slab_move(self._device, slab, peer, limit_ms)
        else:
            result = lib.isw_device_slab_move_region(self._device, slab, peer, limit_ms, *region)
        _check(result, f"move slab {slab}")

    def cancel_move(self, slab: int) -> None:
        """Leave slab where it is; EventKind.MOVE_FAILED follows. OSError EALREADY: SLAB_MOVED was told."""
        _check(lib.isw_device_slab_move_cancel(self._device, slab), f"cancel the move of slab {slab}")

    def settle_slab(self, slab: int) -> None:
        """After SLAB_MOVED: page-outs go to the new peer; SLAB_RELEASED of the old one follows. OSError: it is lost."""
        _check(lib.isw_device_slab_settle(self._device, slab), f"settle slab {slab}")

    def flush(self, ticket: int) -> None:
        """Bring what is acknowledged by now to the backup; EventKind.FLUSHED carries the ticket."""
        _check(lib.isw_device_flush(self._device, ticket), "flush")

    def verify(self, pages_per_s: int) -> None:
        """As scrub(), with nothing changed; EventKind.DIFFERS tells of what is wrong."""
        _check(lib.isw_device_verify(self._device, pages_per_s), "verify")

    def scrub(self, pages_per_s: int) -> None:
        """Compare all copies with their checksums; EventKind.SCRUBBED follows. 0: end it. EBUSY: one goes on."""
        _check(lib.isw_device_scrub(self._device, pages_per_s), "scrub")

    def event_fd(self) -> int:
        """An eventfd that is readable when events() has news; the engine keeps it."""
        return int(lib.isw_device_event_fd(self._device))

    def events(self) -> list[Event]:
        """Take what news there is."""
        out: list[Event] = []
        while True:
            count = lib.isw_device_events(self._device, self._events, _EVENTS_AT_ONCE)
            out += [Event(EventKind(e.kind), e.peer, e.slab, e.value, e.attachment) for e in self._events[0:count]]
            if count < _EVENTS_AT_ONCE:
                return out

    def stop(self, timeout_ms: int) -> bool:
        """Answer what is in flight, bring everything to the backup, sync. False: still pending after the time."""
        result = lib.isw_device_stop(self._device, timeout_ms)
        if result == -errno.ETIMEDOUT:
            return False
        _check(result, "stop")
        return True

    def close(self) -> None:
        """Free everything. The numpy views are copied first, so that late readers see the last values."""
        if self._device == ffi.NULL:
            return
        self.slabs, self.peers = self.slabs.copy(), self.peers.copy()
        self.counters, self.latencies = self.counters.copy(), self.latencies.copy()
        self.peer_latencies = self.peer_latencies.copy()
        lib.isw_device_free(self._device)
        self._device = ffi.NULL
        for buffer in self._mapped:
            ffi.release(buffer)
