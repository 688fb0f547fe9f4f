"""The memory engine of a daemon over plain dictionaries."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field


@dataclass
class FakeExport:
    """One export of the fake engine."""

    slab_bytes: int
    slabs: int
    mapped: dict[int, int] = field(default_factory=dict)  # slab -> address
    descriptors: dict[int, int] = field(default_factory=dict)  # slab -> what it may be punched through, or -1
    connections: list[socket.socket] = field(default_factory=list)
    requests: int = 0


class FakeEngine:
    """The methods of MemoryEngine over plain dictionaries; misuse raises, as the real one does."""

    counter_names: tuple[str, ...] = ("connections", "read_requests")

    def __init__(self, exports_max: int = 256) -> None:
        self.exports: dict[int, FakeExport] = {}
        self.exports_max = exports_max
        self.closed = False
        self.refuse_maps = False
        self.descriptors: list[int] = []  # given with each mapping
        self.journal: list[str] = []  # what ends something, in order
        self._next = 0

    def open_export(self, slab_bytes: int, slabs: int) -> int:
        if len(self.exports) >= self.exports_max:
            raise OSError(28, "no export is free")
        self._next += 1
        self.exports[self._next] = FakeExport(slab_bytes, slabs)
        return self._next

    def close_export(self, export: int) -> None:
        self.journal.append("close export")
        for sock in self.exports.pop(export).connections:
            sock.close()

    def map_slab(self, export: int, slab: int, address: int, fd: int = -1, fd_offset: int = 0) -> None:
        if self.refuse_maps:
            raise OSError(12, "no memory")
        assert address > 0
        assert fd_offset % self.exports[export].slab_bytes == 0
        assert 0 <= slab < self.exports[export].slabs
        assert slab not in self.exports[export].mapped
        self.exports[export].mapped[slab] = address
        self.exports[export].descriptors[slab] = fd
        self.descriptors.append(fd)

    def unmap_slab(self, export: int, slab: int) -> None:
        self.journal.append(f"unmap {slab}")
        del self.exports[export].mapped[slab]

    def add_connection(self, export: int, sock: socket.socket, flags: object, early: bytes = b"") -> None:
        del flags, early
        self.exports[export].connections.append(sock)

    def export_connections(self, export: int) -> int:
        return len(self.exports[export].connections)

    def export_requests(self, export: int) -> int:
        return self.exports[export].requests

    def counter(self, name: str) -> int:
        del name
        return sum(len(export.connections) for export in self.exports.values())

    def close(self) -> None:
        for export in list(self.exports):
            self.close_export(export)
        self.closed = True
