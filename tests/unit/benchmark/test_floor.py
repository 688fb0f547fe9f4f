"""The floor programs store what they are given: a floor that loses data would be no measure.

Requests cross the borders of receive chunks, several clients write at once, and one leaves in the middle of a WRITE.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from scripts.benchmark.floor_build import build_floor
from scripts.benchmark.processes import Programs

SIZE_BYTES = 64 << 20
STRIPE_BYTES = 1 << 20
REQUESTS = 400
IN_FLIGHT = 64
SLOTS = 1024  # of relay.c


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the compiled programs, with the sanitizers that catch a misplaced byte."""
    folder = tmp_path_factory.mktemp("floor")
    build_floor(folder, ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    return folder


@pytest.fixture
def relay(floor: Path, short_path: Path) -> Iterator[Path]:
    """Socket of a relay in front of three servers, which run until the test ends and must then still run."""
    path = short_path / "relay.sock"
    with Programs(short_path, {"ASAN_OPTIONS": "detect_leaks=0"}) as programs:
        started = []
        ports = []
        for number in range(3):
            server = programs.start(f"memory-{number}", [str(floor / "memory_server"), str(SIZE_BYTES)])
            ports.append(programs.ready_line(server))
            started.append(server)
        front = programs.start("relay", [str(floor / "relay"), str(path), str(STRIPE_BYTES), *ports])
        programs.ready_line(front)
        yield path
        for program in [*started, front]:
            assert program.process.poll() is None, program.failed("has ended")


def connect(path: Path) -> nbd.NBD:
    """A new connection."""
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///?socket={path}")
    return handle


def drain(handle: nbd.NBD, in_flight_max: int) -> None:
    """Wait until at most so many requests are out; each must have succeeded."""
    while handle.aio_in_flight() > in_flight_max:
        assert handle.poll(30_000) == 1
        while handle.aio_in_flight() and (cookie := handle.aio_peek_command_completed()) > 0:
            assert handle.aio_command_completed(cookie)


def test_data_survives_deep_queues_of_all_sizes(relay: Path) -> None:
    """Writes of all lengths on two connections, many in flight, then reads the same way: every byte is as written."""
    rng = random.Random(7)
    content = bytearray(SIZE_BYTES)
    handles = [connect(relay), connect(relay)]
    assert handles[0].get_size() == SIZE_BYTES
    places = rng.sample(range(SIZE_BYTES // STRIPE_BYTES), SIZE_BYTES // STRIPE_BYTES)
    written = []
    for number in range(REQUESTS):
        # One request per slice of a stripe: requests in flight never overlap, for their order would be open.
        stripe, part = places[number % len(places)], number // len(places)
        slice_bytes = STRIPE_BYTES // (REQUESTS // len(places) + 1)
        length = rng.choice([1, 27, 512, 4096, 65536, slice_bytes])
        offset = stripe * STRIPE_BYTES + part * slice_bytes + rng.randrange(slice_bytes - length + 1)
        written.append((offset, length))
        data = rng.randbytes(length)
        content[offset : offset + length] = data
        handle = handles[number % 2]
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset)
        drain(handle, IN_FLIGHT - 1)
    for handle in handles:
        drain(handle, 0)
        handle.flush()
    buffers = []
    for number, (offset, length) in enumerate(written):
        buffer = nbd.Buffer(length)
        buffers.append(buffer)
        handles[number % 2].aio_pread(buffer, offset)
        drain(handles[number % 2], IN_FLIGHT - 1)
    for handle in handles:
        drain(handle, 0)
    for (offset, length), buffer in zip(written, buffers, strict=True):
        assert buffer.to_bytearray() == content[offset : offset + length]
    for stripe in range(0, SIZE_BYTES, STRIPE_BYTES):
        assert handles[0].pread(STRIPE_BYTES, stripe) == content[stripe : stripe + STRIPE_BYTES]
    for handle in handles:
        handle.shutdown()


def test_what_it_does_not_do_is_refused(relay: Path) -> None:
    """A request across a stripe or beyond the end gets EINVAL, and the connection goes on."""
    handle = connect(relay)
    handle.set_strict_mode(0)
    for offset in (STRIPE_BYTES - 4096, SIZE_BYTES - 4096):
        with pytest.raises(nbd.Error) as caught:
            handle.pread(8192, offset)
        assert caught.value.errno == "EINVAL"
    assert handle.pread(4096, 0) == bytearray(4096)
    handle.shutdown()


def test_a_client_that_leaves_in_the_middle_of_a_write_harms_nobody(relay: Path) -> None:
    """More such clients than there are slots for requests: another one is still served."""
    cut_off = struct.pack(">IHHQQI", 0x25609513, 0, 1, 9, 0, 65536) + b"x" * 5000
    reads = b"".join(struct.pack(">IHHQQI", 0x25609513, 0, 0, i, 4096 * i, 4096) for i in range(64))
    for number in range(SLOTS + 50):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(relay))
            client.recv(18, socket.MSG_WAITALL)
            client.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 0))
            client.recv(10, socket.MSG_WAITALL)
            client.sendall((reads if number % 16 == 0 else b"") + cut_off)
    handle = connect(relay)  # the wait of a request without a slot would be for ever: pytest's time limit ends it
    handle.pwrite(b"y" * 4096, 4096)
    assert handle.pread(4096, 4096) == b"y" * 4096
    handle.shutdown()
