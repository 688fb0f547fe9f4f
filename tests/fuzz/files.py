"""Files that a start reads: TOML of both programs, the record of leases, the state file's header and its record."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infiniswap.daemon.config import load_config as load_daemon
from infiniswap.device import remembered
from infiniswap.device.config import load_config as load_device
from infiniswap.device.lease_book import LeaseBook
from infiniswap.device.state import Header, Phase, StateDirectory
from infiniswap.shared.errors import UserError
from infiniswap.shared.file_sd import TARGETS_MAX, parse

DEVICE_ID = "8a6e0804-2bd0-4672-b79d-d97027f9071a"
SIZE_BYTES = 1 << 20


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """A file in memory, by a path."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _one_line(error: UserError) -> None:
    text = str(error)
    assert text, "a reason"
    assert "\n" not in text, "one line"


def device_toml(data: bytes) -> None:
    """A device's file gives a device or one line."""
    with _as_file(data) as path:
        try:
            load_device(None, {}, path)
        except UserError as error:
            _one_line(error)


def device_toml_seeds() -> list[bytes]:
    """A file with an option of each kind, and numbers, names and nesting beyond reason."""
    good = [
        'name = "vol"', 'size = "1GiB"', 'backup = "/v/vol.img"', 'peers = ["127.0.0.1:7401", "[::1]:7402"]',
        'map = "eager"', "sparse = true", "peer_timeout_ms = 3000", "recovery_timeout_s = 1.5",
        'tcp = ["0.0.0.0:10809"]', 'transport = "tcp"',
    ]  # fmt: skip
    bad = [
        "size = " + "9" * 400,
        "a = " + "[" * 300,
        'name = "x\\ny"',
        "[size]\nx = 1",
        "size = inf",
        'backup = "\\u0000"',
    ]
    return [text.encode() for text in ("\n".join(good), *bad, *("\n".join([*good, line]) for line in bad))]


def daemon_toml(data: bytes) -> None:
    """A daemon's file gives a daemon or one line."""
    with _as_file(data) as path:
        try:
            load_daemon({}, path)
        except UserError as error:
            _one_line(error)


def daemon_toml_seeds() -> list[bytes]:
    """A file with an option of each kind, and numbers beyond reason."""
    good = [
        'memory = "512MiB"', 'listen = "127.0.0.1:7401"', 'headroom = "64MiB"', "threads = 2", 'rdma = "auto"',
        "lease_ttl_s = 60", 'log_level = "info"', "huge_pages = false",
    ]  # fmt: skip
    bad = ["memory = 1\nthreads = " + "9" * 400, "memory = nan", "memory = true\n[listen]\nx=1"]
    return [text.encode() for text in ("\n".join(good), *bad)]


def lease_book(data: bytes) -> None:
    """A record of leases gives entries that can be used, or none."""
    with _as_file(data) as path:
        for entry in LeaseBook(path).read(DEVICE_ID):
            assert all(type(slab) is int for slab in entry.slabs)
            assert str(entry.peer)


def lease_book_seeds() -> list[bytes]:
    """As it is written, and with values of other kinds."""
    lease = {
        "peer": ["127.0.0.1", 7401], "lease": "l", "token": "t", "export": "e", "address": ["127.0.0.1", 7402],
        "incarnation": "i", "ttl_s": 60.0, "size_bytes": 1 << 20, "rdma": False, "over_rdma": False, "slabs": [0, 1, 2],
    }  # fmt: skip
    books: list[object] = [{"device_id": DEVICE_ID, "leases": [lease]}]
    books += [
        {"device_id": DEVICE_ID, "leases": [{**lease, name: wrong}]}
        for name in lease
        for wrong in (None, -1, "x", [[1]], 1e400)
    ]
    return [json.dumps(book).encode() for book in books] + [b"[" * 100_000, b'{"device_id": ' + b"9" * 5000 + b"}"]


def state_file(data: bytes) -> None:
    """A torn or foreign state file and record are told from good ones; nothing raises but a UserError."""
    cut = data[0] if data else 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        directory = StateDirectory(Path(folder))
        directory.state_path.write_bytes(data[1:])
        (directory.path / "backup.json").write_bytes(data[1 + cut :])
        with contextlib.suppress(UserError):
            header = directory.read_header()
            assert not isinstance(header, Header) or header.size_bytes > 0
        with contextlib.suppress(UserError):
            directory.read_record()


def state_file_seeds() -> list[bytes]:
    """Headers of every phase, each whole and torn."""
    seeds = []
    for phase in Phase:
        packed = Header(phase, SIZE_BYTES, SIZE_BYTES, "boot", DEVICE_ID).pack()
        seeds += [
            bytes([len(packed)]) + packed + b'{"device_id": "d", "backup": "/b", "marked": true}',
            b"\0" + packed[:50],
        ]
    return seeds


def peer_list(data: bytes) -> None:
    """A list of hosts gives hosts, or a reason in a few words."""
    for name in ("peers.json", "peers.yml"):
        try:
            found = parse(data, Path(name))
        except ValueError as error:
            assert str(error)
        else:
            assert len(found) <= TARGETS_MAX
            assert all(0 < address.port < 65536 for address in found)


def peer_list_seeds() -> list[bytes]:
    """Right and torn, as JSON and as YAML."""
    good = b'[{"targets": ["node1", "10.0.0.2:9000", "[::1]:7401"], "labels": {"rack": "r1"}}]'
    yaml = b"- targets: [node1, '10.0.0.2:9000']\n  labels:\n    rack: r1\n"
    return [good, good[:-9], yaml, yaml[:20], b"a: &a [x]\nb: [*a, *a]\n", b"[" * 5000, b"- 1e999", b"\xff"]


def options_memory(data: bytes) -> None:
    """What a device remembers of its options is all there, or nothing is."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / remembered.FILE_NAME).write_bytes(data)
        found = remembered.read(Path(folder))
        if found is not None:
            assert all(isinstance(name, str) for name in found.changed)
            found.write(Path(folder))
            assert remembered.read(Path(folder)) is not None


def options_memory_seeds() -> list[bytes]:
    """As it is written, and with values of other kinds."""
    good = {
        "file": "/f", "given": {"size": "1G"}, "values": {"size": "1GiB"}, "added": ["a:1"], "removed": [],
        "changed": {"map": {"value": "hot", "instead_of": "eager"}}, "discovered": ["[::1]:2"],
    }  # fmt: skip
    contents: list[object] = [
        good,
        *({**good, name: wrong} for name in good for wrong in (None, 3, "x", [[1]], {"a": 1})),
    ]
    return [json.dumps(content).encode() for content in contents]
