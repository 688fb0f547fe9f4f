"""The device from start to stop: what is written is on the backup after an orderly end, and served again afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from infiniswap.nbd.client import NbdClient
from tests.device.support import PAGE_BYTES, mapped, pattern, pending_pages
from tests.support.backups import read_backup
from tests.support.layouts import both_layouts
from tests.support.services import INFINISWAP, Services
from tests.support.waiting import wait_for

SIZE = 32 << 20


def test_backup_is_a_plain_image_after_a_stop(services: Services) -> None:
    """Byte for byte, wherever the pages had been; the leases are given back, nothing but backup and state is left."""
    daemons = [services.daemon() for _ in range(2)]
    device = services.device("vol", "--map", "eager", "--writeback-delay-ms", "10000", peers=daemons)
    data = pattern(2048)
    with device.connect() as client:
        client.write(PAGE_BYTES, data)
        wait_for(lambda: len(mapped(device)) == 9, what="mapping")
        client.write(PAGE_BYTES, data)
        client.write(SIZE - 100, b"e" * 100)
        assert pending_pages(device) > 1000
    assert device.stop() == 0
    image = device.backup.read_bytes()
    assert image == bytes(PAGE_BYTES) + data + bytes(SIZE - len(data) - PAGE_BYTES - 100) + b"e" * 100
    assert all(daemon.get("/v1/offer")["leases"] == 0 for daemon in daemons)
    assert not device.socket.exists()
    assert list(services.runtime_dir.iterdir()) == []
    assert not (services.folder / "state" / "vol" / "leases.json").exists()


def test_serves_an_existing_image(services: Services) -> None:
    """Made by anybody, with holes; and again after a stop, with what was written in between."""
    backup = services.folder / "old.img"
    data = pattern(16)
    with backup.open("wb") as stream:
        stream.truncate(SIZE)
        stream.seek(5 * PAGE_BYTES)
        stream.write(data)
    device = services.device("vol", "--adopt-image", backup=backup)
    with device.connect() as client:
        assert client.read(0, 21 * PAGE_BYTES) == bytes(5 * PAGE_BYTES) + data
        client.write(0, b"new")
    sources = device.get("/v1/stats")["reads"]
    assert (sources["zero"], sources["backup"]) == (5, 16)
    device.stop()
    again = services.device(backup=backup)
    with again.connect() as client:
        assert client.read(0, 3) == b"new"
        assert client.read(5 * PAGE_BYTES, len(data)) == data


def test_image_changed_between_two_runs(services: Services) -> None:
    """After an orderly stop the image is the user's to change."""
    device = services.device()
    with device.connect() as client:
        client.write(0, pattern(4))
    device.stop()
    with device.backup.open("r+b") as stream:
        stream.seek(100 * PAGE_BYTES)
        stream.write(b"put here by hand")
    with services.device().connect() as client:
        assert client.read(100 * PAGE_BYTES, 16) == b"put here by hand"


@both_layouts
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "control"])
def test_ways_to_stop(services: Services, how: str) -> None:
    """All end with exit code 0 and everything on the backup, with a client connected."""
    device = services.device("vol", "--writeback-delay-ms", "10000")
    data = pattern(64)
    client = device.connect()
    client.write(0, data)
    if how == "control":
        assert services.command("device", "stop", "vol", "--under-use").returncode == 0
    else:
        os.kill(device.pid, getattr(signal, how))
    assert device.wait() == 0
    client.close()
    assert read_backup(device.backup, len(data)) == data


@both_layouts
def test_sigterm_while_starting(services: Services) -> None:
    """A start that waits for peers which never answer ends at once, and leaves nothing behind."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        device = services.device("vol", peers=[f"{host}:{port}"], ready=False)
        wait_for((services.runtime_dir / "vol.lock").exists, what="start")
        silent.settimeout(10)
        connection, _ = silent.accept()
        services.expect_log(f"peer {host}:{port}: ")
        os.kill(device.pid, signal.SIGTERM)
        assert device.wait(10.0) == 0
        connection.close()
    left = {path.name for path in services.folder.iterdir() if path.suffix != ".log"}
    assert left <= {"run", "state"} | {"vol.img"}
    if "vol.img" in left:  # it had begun to serve just before the signal
        assert services.device().running


def test_ready_line_is_the_only_output(services: Services) -> None:
    """Programs read it; the URI is the one that clients take."""
    device = services.device()
    assert device.ready == f"nbd+unix:///vol?socket={device.socket}"
    device.stop()
    assert device.process.stdout is not None
    assert device.process.stdout.read() == b""


def test_tcp_too(services: Services) -> None:
    """A listener on TCP beside the UNIX socket; its port is told by status."""
    device = services.device("vol", "--tcp", "127.0.0.1:0")
    (address,) = device.get("/v1/status")["tcp"]
    port = int(address.rpartition(":")[2])
    with NbdClient(("127.0.0.1", port), "vol") as client:
        client.write(0, b"over tcp")
    with device.connect() as client:
        assert client.read(0, 8) == b"over tcp"


def test_default_export_and_no_other(services: Services) -> None:
    """The empty name is the device too; any other is refused."""
    services.expect_log("a client asked for an export that is not here")
    device = services.device()
    with NbdClient(device.socket, "") as client:
        assert client.size_bytes == SIZE
    with pytest.raises(Exception, match="refused"):
        NbdClient(device.socket, "another")


def test_service_manager_is_told(services: Services) -> None:
    """READY=1 when it serves, STOPPING=1 when it ends."""
    services.expect_log("no peers are configured")
    path = services.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(10.0)
        options = ["--size", str(SIZE), "--backup", str(services.folder / "vol.img")]
        service = services.spawn("told", [*INFINISWAP, "device", "serve", "vol", *options], NOTIFY_SOCKET=str(path))
        service.read_ready(30.0)
        assert manager.recv(4096).splitlines()[0] == b"READY=1"
        assert service.stop() == 0
        assert manager.recv(4096) == b"STOPPING=1"


def test_control_shows_the_device(services: Services) -> None:
    """Status, slabs, peers, statistics and metrics agree with what was done."""
    daemon = services.daemon()
    device = services.device("vol", "--map", "eager", peers=[daemon])
    with device.connect() as client:
        client.write(0, pattern(8))
        wait_for(lambda: mapped(device) == {0}, what="mapping")
        client.write(0, pattern(8, seed=2))
        client.flush()
        status = device.get("/v1/status")
        assert (status["state"], status["connections"], status["mapped_slabs"], status["slabs"]) == (
            "serving",
            1,
            1,
            32,
        )
        assert (status["pid"], status["backup"], status["peers"]) == (device.pid, str(device.backup), 1)
        slab = device.get("/v1/slabs")[0]
        assert (slab["peer"], slab["remote_pages"], slab["page_outs"]) == (daemon.address, 8, 16)
        assert slab["pending_pages"] == 0
        (peer,) = device.get("/v1/peers")
        assert (peer["state"], peer["slabs"], peer["failures"]) == ("up", 1, 0)
        stats = device.get("/v1/stats")
        assert stats["writes"] == {"remote": 8, "backup": 8}
        assert stats["latency_us"]["write_remote"]["count"] >= 1
        assert stats["pending_bytes"] == 0
    names = {path.name for path in services.runtime_dir.iterdir()}
    assert names == {"vol.control", "vol.lock"}
    assert (services.runtime_dir / "vol.control").stat().st_mode & 0o777 == 0o600


@both_layouts
def test_memory_stays_within_the_bound(services: Services) -> None:
    """96 MiB + 2 MiB per GiB of device + the pending limit, under a full load of writes."""
    options = ("--sparse", "--pending-limit", "16MiB", "--map", "eager")
    device = services.device("vol", *options, size="4GiB", slab_size="16MiB", peers=[services.daemon("128MiB")])
    data = pattern(2048)

    def write(first: int) -> None:
        with device.connect() as client:
            for at in range(8):
                client.write((first + at * 4) * len(data), data)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rss = next(
        int(line.split()[1]) << 10
        for line in Path(f"/proc/{device.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    assert rss <= (96 + 2 * 4 + 16) << 20, f"{rss >> 20} MiB"


@both_layouts
def test_backup_engine_without_io_uring(services: Services) -> None:
    """The thread pool does the same, when asked for."""
    device = services.device("vol", "--backup-engine", "threads")
    assert device.get("/v1/status")["backup_engine"] == "threads"
    data = pattern(256)
    with device.connect() as client:
        client.write(0, data)
        client.flush()
        assert read_backup(device.backup, len(data)) == data


def test_second_device_beside_the_first(services: Services) -> None:
    """Two devices share a daemon without seeing each other's pages."""
    daemon = services.daemon()
    one = services.device("one", "--map", "eager", peers=[daemon])
    two = services.device("two", "--map", "eager", peers=[daemon])
    with one.connect() as first, two.connect() as second:
        for client, seed in ((first, 1), (second, 2), (first, 3), (second, 4)):
            client.write(0, pattern(256, seed))
            wait_for(lambda: mapped(one) == {0} or mapped(two) == {0}, what="mapping")
        assert first.read(0, 256 * PAGE_BYTES) == pattern(256, 3)
        assert second.read(0, 256 * PAGE_BYTES) == pattern(256, 4)


@both_layouts
def test_flush_is_on_the_backup(services: Services) -> None:
    """FLUSH and FUA answer when the image has the data, not before."""
    device = services.device("vol", "--map", "eager", "--writeback-delay-ms", "10000", peers=[services.daemon()])
    data = pattern(512)
    with device.connect() as client:
        client.write(0, data)
        wait_for(lambda: mapped(device) == {0, 1}, what="mapping")
        client.write(0, data)
        client.flush()
        assert read_backup(device.backup, len(data)) == data
        client.write(0, data[::-1], fua=True)
        assert read_backup(device.backup, len(data)) == data[::-1]


def test_listing_knows_it(services: Services) -> None:
    """nbdinfo, a stranger's client, finds the export by listing."""
    device = services.device()
    done = subprocess.run(
        ["/usr/bin/nbdinfo", "--list", f"nbd+unix:///?socket={device.socket}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert 'export="vol"' in done.stdout
