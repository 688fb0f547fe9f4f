"""Typed face of the C engine's other half: the memory daemon's server over slab memory.

As binding.py, which has what both share.
"""

from __future__ import annotations

import errno
import socket

import numpy as np
from numpy.typing import NDArray

from infiniswap.engine.binding import ConnectionFlag, _check, _hand_over, _view, ffi, lib


class MemoryEngine:
    """The daemon's data path: NBD over slab memory. Not thread-safe: call it from one thread."""

    def __init__(
        self, threads: int, exports_max: int = 256, connections_max: int = 1024, client_stall_timeout_ms: int = 60000
    ) -> None:
        """Start the threads."""
        config = ffi.new("struct isw_memory_config *")
        config.threads, config.exports_max, config.connections_max = threads, exports_max, connections_max
        config.client_stall_timeout_ms = client_stall_timeout_ms
        error = ffi.new("char[256]")
        self._memory = lib.isw_memory_start(config, error, len(error))
        if self._memory == ffi.NULL:
            raise OSError(errno.EINVAL, ffi.string(error).decode())
        count = ffi.new("uint32_t *")
        pointer = lib.isw_memory_counters(self._memory, count)
        self.counters: NDArray[np.uint64] = _view(pointer, count[0], np.dtype(np.uint64))
        self.counter_names = tuple(ffi.string(lib.isw_memory_counter_name(i)).decode() for i in range(count[0]))

    def open_export(self, slab_bytes: int, slabs: int) -> int:
        """A new export of slabs * slab_bytes with nothing mapped; returns its number."""
        return _check(lib.isw_memory_export_open(self._memory, slab_bytes, slabs), "open export")

    def close_export(self, export: int) -> None:
        """End the export's connections; afterwards no thread touches its memory."""
        _check(lib.isw_memory_export_close(self._memory, export), "close export")

    def map_slab(self, export: int, slab: int, address: int, fd: int = -1, fd_offset: int = 0) -> None:
        """Let the export serve slab from slab_bytes of memory at address; fd and fd_offset are the memfd behind it."""
        pointer = ffi.cast("void *", address)
        _check(lib.isw_memory_slab_map(self._memory, export, slab, pointer, fd, fd_offset), f"map slab {slab}")

    def unmap_slab(self, export: int, slab: int) -> None:
        """Requests to slab fail from now on (ESHUTDOWN); afterwards no thread touches its memory."""
        _check(lib.isw_memory_slab_unmap(self._memory, export, slab), f"unmap slab {slab}")

    def add_connection(self, export: int, sock: socket.socket, flags: ConnectionFlag, early: bytes = b"") -> None:
        """Give a negotiated client socket to the engine, with what the client had already sent behind the handshake."""
        result = lib.isw_memory_connection_add(self._memory, export, _hand_over(sock), int(flags), early, len(early))
        _check(result, "connection")

    def export_connections(self, export: int) -> int:
        """Connections open on the export now."""
        return _check(lib.isw_memory_export_connections(self._memory, export), "export connections")

    def export_requests(self, export: int) -> int:
        """READs and WRITEs of mapped slabs since the export was opened."""
        return _check(lib.isw_memory_export_requests(self._memory, export), "export requests")

    def counter(self, name: str) -> int:
        """One counter by its name in ISW_MEMORY_COUNTERS."""
        return int(self.counters[self.counter_names.index(name)])

    def close(self) -> None:
        """End all connections and threads and free."""
        if self._memory == ffi.NULL:
            return
        self.counters = self.counters.copy()
        lib.isw_memory_stop(self._memory)
        self._memory = ffi.NULL
