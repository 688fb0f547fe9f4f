"""--encrypt: a donor reads nothing; what it answers but what was written is found out; crashes lose nothing more."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import pytest

from infiniswap.device.root_key import KEY_BYTES, is_in_memory
from infiniswap.engine.binding import crc32c
from infiniswap.nbd.client import RequestError
from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import PAGES, SIZE, SLABS, Cluster, MakeCluster
from tests.faults.harm import memory_of
from tests.support.lease import leases_on_record
from tests.support.load import PAGE_BYTES, content_of
from tests.support.services import Daemon
from tests.support.waiting import wait_for

NEVER_MS = "60000"  # write-behind that waits so long is not seen in a test


def key_file(folder: Path, byte: int = 7) -> str:
    """A key file with such a key."""
    path = folder / "root.key"
    path.write_bytes(bytes([byte]) * KEY_BYTES)
    path.chmod(0o600)
    return str(path)


def whole_memory(daemon: Daemon) -> bytes:
    """All that the donor has."""
    with memory_of(daemon).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        return memory[:]


def test_donor_reads_nothing(make_cluster: MakeCluster) -> None:
    """No page that a client wrote is in the donor's memory, equal pages look different there, and all reads right."""
    cluster = make_cluster(1, "--encrypt")
    cluster.fill()
    with cluster.device.connect() as client:
        client.write(0, b"secret!!" * (2 * PAGE_BYTES // 8))
        memory = whole_memory(cluster.daemons[0])
        assert b"secret!!" not in memory
        for page in range(2, PAGES, 97):
            assert content_of(page, 1)[:64] not in memory
        (lease,) = leases_on_record(cluster.services, "vol").values()
        with lease.connect() as donor:
            assert donor.read(0, PAGE_BYTES) != donor.read(PAGE_BYTES, PAGE_BYTES)
        assert client.read(0, 2 * PAGE_BYTES) == b"secret!!" * (2 * PAGE_BYTES // 8)
        client.write(0, content_of(0, 1) + content_of(1, 1))
    with cluster.load() as load:
        load.check()
    assert cluster.stats()["reads"]["remote"] > 0
    assert cluster.failures()["checksum_mismatches"] == 0
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def forged(page: bytes, at: int) -> bytes:
    """Another page with the same CRC32C: what differs is the polynomial itself (RFC 3720, 12.1), so no sum changes."""
    other = bytearray(page)
    for place, bit in enumerate((1, *(0x1EDC6F41 >> (31 - power) & 1 for power in range(32)))):
        other[at + place // 8] ^= bit << place % 8
    assert bytes(other) != page
    assert crc32c(other) == crc32c(page)
    return bytes(other)


def test_donor_lies(make_cluster: MakeCluster) -> None:
    """A changed, swapped, replayed or foreign page, one that meets the CRC: counted, and answered from the backup."""
    cluster = make_cluster(1, "--encrypt", daemon_options=("--memory", "20MiB"))
    cluster.fill()
    other_device = cluster.services.device("other", "--encrypt", "--map", "eager", size="1MiB", peers=cluster.daemons)
    with other_device.connect() as client:
        client.write(0, content_of(0, 1))
        wait_for(lambda: other_device.get("/v1/status")["mapped_slabs"] == 1, what="its slab")
        for page in (0, 50):
            client.write(page * PAGE_BYTES, content_of(page, 1))
    (other_lease,) = leases_on_record(cluster.services, "other").values()
    with other_lease.connect() as donor:
        foreign = donor.read(50 * PAGE_BYTES, PAGE_BYTES)
    assert other_device.stop() == ExitCode.OK
    (lease,) = leases_on_record(cluster.services, "vol").values()
    with lease.connect() as donor, cluster.device.connect() as client:

        def stored(page: int) -> bytes:
            return donor.read(page * PAGE_BYTES, PAGE_BYTES)

        def store(page: int, content: bytes) -> None:
            donor.write(page * PAGE_BYTES, content)

        old = stored(30)
        client.write(30 * PAGE_BYTES, content_of(30, 2))
        client.flush()
        changed = bytearray(stored(10))
        changed[77] ^= 1
        store(10, bytes(changed))
        twenty, other = stored(20), stored(21)
        store(20, other)  # swapped
        store(21, twenty)
        store(30, old)  # what it was before
        store(40, content_of(40, 1))  # what it reads as, not sealed: its CRC32C is right
        store(50, foreign)  # sealed by another device, as this very page with this very content
        store(60, forged(stored(60), 100))
        store(61, forged(content_of(61, 1), 0))
        store(62, bytes(PAGE_BYTES))
        lies = (10, 20, 21, 30, 40, 50, 60, 61, 62)
        for page, version in (*((page, 2 if page == 30 else 1) for page in lies), (41, 1), (63, 1)):
            assert client.read(page * PAGE_BYTES, PAGE_BYTES) == content_of(page, version)
        client.write(30 * PAGE_BYTES, content_of(30, 1))
    assert cluster.failures()["checksum_mismatches"] == cluster.peer(cluster.daemons[0])["mismatches"] == len(lies)
    assert cluster.failures()["lost_pages"] == 0
    with cluster.load() as load:
        load.check()


def test_killed_under_load(make_cluster: MakeCluster, short_path: Path) -> None:
    """With a key file a killed device is back with every acknowledged write, and opens what its donors still have."""
    options = ("--encrypt", "--encrypt-key-file", key_file(short_path), "--writeback-delay-ms", NEVER_MS)
    cluster = make_cluster(2, *options)
    cluster.fill()
    for turn in range(2):
        cluster.kill_in_the_middle(60 + turn, 1200)
        cluster.restart_device()
        status = cluster.device.get("/v1/status")
        assert status["mapped_slabs"] == SLABS
        assert status["sealed"], "as the doctor has to know"
        with cluster.load() as load:
            load.check()
        stats = cluster.stats()
        assert stats["failures"]["lost_pages"] == stats["failures"]["checksum_mismatches"] == 0
        assert stats["reads"]["remote"] > 0
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def refuse(cluster: Cluster, *options: str) -> str:
    """A start that is refused; what it said."""
    device = cluster.services.device(
        "vol", *options, size=SIZE, peers=cluster.daemons, backup=cluster.device.backup, ready=False
    )
    device.expected_code = ExitCode.REFUSED
    assert device.wait() == ExitCode.REFUSED
    return device.log


def test_wrong_keys_change_nothing(make_cluster: MakeCluster, short_path: Path) -> None:
    """After a crash another key, no key, or --no-encrypt: refused in one line; with the right key all is there."""
    right = ("--encrypt", "--encrypt-key-file", key_file(short_path))
    cluster = make_cluster(1, *right, "--writeback-delay-ms", NEVER_MS)
    cluster.fill()
    with cluster.device.connect() as client:
        client.write(9 * PAGE_BYTES, content_of(9, 2))
    cluster.device.kill()
    key_file(short_path, 8)
    assert "is not the one that this device's pages at peers are sealed with" in refuse(cluster, *right)
    assert "give that with --encrypt-key-file" in refuse(cluster, "--encrypt")
    assert "give that with --encrypt-key-file" in refuse(cluster)
    assert "start it once with --encrypt" in refuse(cluster, "--no-encrypt")
    key_file(short_path)
    device = cluster.restart_device()
    with device.connect() as client:
        assert client.read(9 * PAGE_BYTES, PAGE_BYTES) == content_of(9, 2)
    assert cluster.failures()["lost_pages"] == 0


def test_lost_key_loses_what_was_pending(make_cluster: MakeCluster, short_path: Path) -> None:
    """A key that nobody kept: after a crash what was pending reads as EIO until it is written, all else is there."""
    if is_in_memory(short_path):
        pytest.skip("TMPDIR is in memory, which keeps keys")
    cluster = make_cluster(1, "--encrypt", "--writeback-delay-ms", NEVER_MS)
    cluster.fill()
    assert "--encrypt-key-file keeps it" in cluster.device.log
    with cluster.device.connect() as client:
        client.write(500 * PAGE_BYTES, content_of(500, 2))
    cluster.device.kill()
    device = cluster.restart_device()
    assert "ended with the process that had it: what only they had is lost" in device.log
    assert "1 pages have no copy left" in device.log
    with device.connect() as client:
        with pytest.raises(RequestError) as failure:
            client.read(500 * PAGE_BYTES, PAGE_BYTES)
        assert failure.value.errno == errno.EIO
        assert client.read(501 * PAGE_BYTES, PAGE_BYTES) == content_of(501, 1)
        client.write(500 * PAGE_BYTES, content_of(500, 3))
        assert client.read(500 * PAGE_BYTES, PAGE_BYTES) == content_of(500, 3)
    cluster.map_all()  # the leases of before were given back: there would be no memory else


def test_sealed_slabs_move(make_cluster: MakeCluster) -> None:
    """A donor that is drained takes nothing with it: its pages go to another as they are, and open there."""
    cluster = make_cluster(2, "--encrypt")
    cluster.fill()
    done = cluster.services.command("donor", "drain", cluster.daemons[0].address)
    assert (done.returncode, done.stderr) == (0, "")
    wait_for(lambda: cluster.peer(cluster.daemons[1])["slabs"] == SLABS, what="all slabs being at the other donor")
    with cluster.load() as load:
        load.check()
    assert cluster.failures()["checksum_mismatches"] == cluster.failures()["lost_pages"] == 0
