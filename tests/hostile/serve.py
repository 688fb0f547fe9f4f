"""Runs one of our data paths behind the listener in a process of its own, so that a crash is seen as one.

`python -m tests.hostile.serve memory|device|remote`. Listening sockets come by LISTEN_FDS. Prints "ready", answers each
line on stdin with the number of open connections and of negotiations, stops when stdin ends or on SIGTERM.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infiniswap.engine.binding import ConnectionFlag, DeviceEngine, DeviceParameters, state_layout
from infiniswap.engine.log_binding import Log, format_log, log_file_bytes
from infiniswap.engine.memory_binding import MemoryEngine
from infiniswap.nbd.handshake import ExportInfo, Negotiated
from infiniswap.nbd.listener import NbdListener, sockets_from_environment
from tests.hostile.servers import CONNECTIONS_MAX, FRONT_SLABS, MIB, SIZE_BYTES, SLAB_BYTES, SLABS

STALL_TIMEOUT_MS = 4000
MAPPED = [*range(FRONT_SLABS), SLABS - 1]

Add = Callable[[socket.socket, Negotiated], None]


@dataclass
class Data:
    """A running data path, as far as this program needs it."""

    add: Add
    connections: Callable[[], int]


@contextmanager
def memory_engine() -> Iterator[tuple[MemoryEngine, int]]:
    """The memory daemon's data path over a memfd, and its export with MAPPED slabs."""
    engine = MemoryEngine(threads=2, connections_max=CONNECTIONS_MAX, client_stall_timeout_ms=STALL_TIMEOUT_MS)
    fd = os.memfd_create("hostile")
    os.ftruncate(fd, SLAB_BYTES * len(MAPPED))
    arena = mmap.mmap(fd, SLAB_BYTES * len(MAPPED))
    export = engine.open_export(SLAB_BYTES, SLABS)
    for number, slab in enumerate(MAPPED):
        engine.map_slab(export, slab, address_of(arena) + number * SLAB_BYTES, fd, number * SLAB_BYTES)
    yield engine, export
    engine.close_export(export)
    engine.close()


@contextmanager
def memory_data() -> Iterator[Data]:
    """What the daemon serves."""
    with memory_engine() as (engine, export):
        yield Data(
            lambda sock, negotiated: engine.add_connection(export, sock, negotiated.flags, negotiated.early),
            lambda: engine.export_connections(export),
        )


@contextmanager
def device_data() -> Iterator[Data]:
    """The device's data path over a sparse backup file, without peers."""
    with device_engine() as engine:
        yield device_face(engine)


@contextmanager
def remote_data() -> Iterator[Data]:
    """The same over a log, with a peer that has memory for the slabs that the tests use."""
    with memory_engine() as (peer, export), device_engine(layout="log") as engine:
        device_ends = []
        for _ in range(2):
            near, far = socket.socketpair()
            peer.add_connection(export, far, ConnectionFlag.NONE)
            device_ends.append(near)
        engine.attach_peer(0, *device_ends)
        for slab in MAPPED:
            engine.map_slab(slab, 0)
        yield device_face(engine)
        if not engine.counter("write_remote_pages"):
            raise SystemExit("no page went to the peer")


def device_face(engine: DeviceEngine) -> Data:
    """A device as this program needs it."""
    return Data(
        lambda sock, negotiated: engine.add_connection(sock, negotiated.flags, negotiated.early),
        lambda: engine.counter("connections"),
    )


@contextmanager
def device_engine(layout: str = "raw") -> Iterator[DeviceEngine]:
    """A device engine on a new state file and a sparse backup."""
    state_bytes = state_layout(SIZE_BYTES).total_bytes
    with tempfile.TemporaryFile() as state_file:
        os.ftruncate(state_file.fileno(), state_bytes)
        state = mmap.mmap(state_file.fileno(), state_bytes)
    backup = os.open(os.environ["HOSTILE_BACKUP"], os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(backup, SIZE_BYTES if layout == "raw" else log_file_bytes(SIZE_BYTES))
    log = None
    if layout == "log":
        format_log(backup, SIZE_BYTES)
        log = Log(backup)
    engine = DeviceEngine(
        DeviceParameters(
            size_bytes=SIZE_BYTES,
            slab_bytes=SLAB_BYTES,
            pending_limit_bytes=64 * MIB,
            backup_fd=backup,
            backup_sparse=True,
            connections_max=CONNECTIONS_MAX,
            client_stall_timeout_ms=STALL_TIMEOUT_MS,
        ),
        state,
        log=log,
    )
    yield engine
    if not engine.stop(20000):
        raise SystemExit("the device does not stop")
    engine.close()
    if log is not None:
        log.close()
    os.close(backup)


def address_of(area: mmap.mmap) -> int:
    """Where a mapping lies in memory."""
    from infiniswap.engine.binding import ffi

    return int(ffi.cast("uintptr_t", ffi.from_buffer(area)))


async def serve(data: Data) -> None:
    """Serve exports "disk" and "disk-ro" until stdin ends."""
    loop = asyncio.get_running_loop()
    exports = {
        "disk": ExportInfo("disk", SIZE_BYTES, description="under attack"),
        "disk-ro": ExportInfo("disk-ro", SIZE_BYTES, read_only=True),
    }
    listener = NbdListener(
        sockets_from_environment(),
        exports.get,
        lambda: list(exports),
        data.add,
        connections_max=CONNECTIONS_MAX,
        open_connections=data.connections,
        handshake_timeout_s=3.0,
        handshakes_max=32,
    )
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def answer() -> None:
        line = os.read(sys.stdin.fileno(), 4096)
        if not line:
            stop.set()
            loop.remove_reader(sys.stdin.fileno())
            return
        print(data.connections(), listener.handshakes, flush=True)

    loop.add_reader(sys.stdin.fileno(), answer)
    await listener.start()
    print("ready", flush=True)
    await stop.wait()
    await listener.close()


def main() -> None:
    """Entry point."""
    kind = {"memory": memory_data, "device": device_data, "remote": remote_data}[sys.argv[1]]
    with kind() as data:
        asyncio.run(serve(data))


if __name__ == "__main__":
    main()
