"""A production build counts what its accounts contradict, says it once, and serves on."""

from __future__ import annotations

import mmap
import os
import socket
import struct

from infiniswap.engine.binding import ConnectionFlag, DeviceEngine, DeviceParameters, EventKind, PageFlag, state_layout

PAGE = 4096
SIZE = 4 << 20
READ, WRITE, FLUSH, TRIM = 0, 1, 3, 4
WAIT_S = 20


def call(client: socket.socket, command: int, offset: int, length: int, payload: bytes = b"") -> bytes:
    """One NBD request and its simple reply, which must be good."""
    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length) + payload)
    wanted, got = 16 + (length if command == READ else 0), b""
    while len(got) < wanted:
        got += client.recv(wanted - len(got))
    magic, error, cookie = struct.unpack(">IIQ", got[:16])
    assert (magic, error, cookie) == (0x67446698, 0, 7)
    return got[16:]


def test_a_broken_account_is_counted_and_the_device_goes_on() -> None:
    """A page that became REMOTE behind the engine's back is trimmed: a count would go below zero, and nothing else."""
    backup = os.memfd_create("backup")
    os.truncate(backup, SIZE)
    layout = state_layout(SIZE)
    state = mmap.mmap(-1, layout.total_bytes)
    parameters = DeviceParameters(size_bytes=SIZE, slab_bytes=1 << 20, pending_limit_bytes=1 << 20, backup_fd=backup)
    device = DeviceEngine(parameters, state)
    ours, client = socket.socketpair()
    client.settimeout(WAIT_S)
    device.add_connection(ours, ConnectionFlag(0))
    for page in (5, 6):
        struct.pack_into("=II", state, layout.pages_offset + 8 * page, 0, int(PageFlag.REMOTE))
        call(client, TRIM, page * PAGE, PAGE)
    assert device.counter("broken_invariants") >= 2
    assert [event.kind for event in device.events()].count(EventKind.BROKEN) == 1
    call(client, WRITE, 5 * PAGE, PAGE, b"x" * PAGE)
    call(client, FLUSH, 0, 0)
    assert call(client, READ, 5 * PAGE, PAGE) == b"x" * PAGE
    client.close()
    assert device.stop(WAIT_S * 1000)
    device.close()
    os.close(backup)
