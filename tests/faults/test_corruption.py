"""Remote memory that changed by itself: noticed by its checksum, answered from elsewhere, never returned."""

from __future__ import annotations

import errno
from random import Random

import pytest

from infiniswap.engine.binding import crc32c
from infiniswap.nbd.client import RequestError
from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import PAGES, SIZE_BYTES, SLABS, Cluster, MakeCluster
from tests.faults.harm import memory_of
from tests.support.backups import read_backup
from tests.support.lease import leases_on_record
from tests.support.load import PAGE_BYTES, content_of
from tests.support.services import Daemon
from tests.support.waiting import wait_for

CRC32C_POLYNOMIAL = 0x105EC76F1  # the lowest bit first, as bytes carry it: added anywhere, it changes no CRC32C
NEVER_MS = "60000"  # write-behind that waits so long is not seen in a test


def scramble(daemon: Daemon, draw: Random) -> None:
    """Change a byte in every page of the daemon's memory."""
    with memory_of(daemon).open("r+b") as file:
        for offset in range(0, SIZE_BYTES, PAGE_BYTES):
            file.seek(offset + draw.randrange(PAGE_BYTES))
            file.write(bytes([draw.randrange(1, 256)]))


def forge(cluster: Cluster, page: int, forged: bytes) -> None:
    """As somebody with the export's name, or somebody on the wire: the page becomes this one at the daemon."""
    (lease,) = leases_on_record(cluster.services, "vol").values()
    with lease.connect() as client:
        client.write(page * PAGE_BYTES, forged)


def spoil(cluster: Cluster, pages: list[int]) -> None:
    """Overwrite pages at the daemon, through the lease's own export."""
    (lease,) = leases_on_record(cluster.services, "vol").values()
    with lease.connect() as client:
        for page in pages:
            client.write(page * PAGE_BYTES, b"\xee" * PAGE_BYTES)


def test_pages_changed_at_the_daemon(make_cluster: MakeCluster) -> None:
    """Changed pages read right, from the backup; each is counted and told in the log, also one that keeps a CRC32C."""
    cluster = make_cluster(1)
    cluster.fill()
    pages = [0, 1, 700, 701, 702, PAGES - 1]
    spoil(cluster, pages)
    with cluster.device.connect() as client:
        for page in pages:
            assert client.read(page * PAGE_BYTES, PAGE_BYTES) == content_of(page, 1)
        assert client.read(703 * PAGE_BYTES + 5, 10) == content_of(703, 1)[5:15]
    assert cluster.failures()["checksum_mismatches"] == len(pages)
    assert cluster.failures()["lost_pages"] == 0
    assert cluster.peer(cluster.daemons[0])["mismatches"] == len(pages)
    assert cluster.peer(cluster.daemons[0])["state"] == "up"
    keeps_crc = bytearray(content_of(800, 1))
    for index, byte in enumerate(CRC32C_POLYNOMIAL.to_bytes(8, "little")):
        keeps_crc[1000 + index] ^= byte
    assert keeps_crc != content_of(800, 1)
    assert crc32c(keeps_crc) == crc32c(content_of(800, 1))
    forge(cluster, 800, bytes(keeps_crc))
    with cluster.device.connect() as client:
        assert client.read(800 * PAGE_BYTES, PAGE_BYTES) == content_of(800, 1)
    assert cluster.failures()["checksum_mismatches"] == len(pages) + 1
    wait_for(lambda: "page 0 of slab 0 came back changed" in cluster.device.log, what="a line in the log")
    with cluster.load() as load:
        load.check()


def test_part_of_a_changed_page_is_written(make_cluster: MakeCluster) -> None:
    """Writing a few bytes of a changed page keeps the rest of it as it was, not as the daemon has it."""
    cluster = make_cluster(1)
    cluster.fill()
    spoil(cluster, [300, 301])
    with cluster.device.connect() as client:
        client.write(300 * PAGE_BYTES + 4090, b"0123456789ab")
        expected = content_of(300, 1)[:4090] + b"0123456789ab" + content_of(301, 1)[6:]
        assert client.read(300 * PAGE_BYTES, 2 * PAGE_BYTES) == expected
    assert cluster.failures()["checksum_mismatches"] == 2
    assert cluster.device.stop() == ExitCode.OK
    assert read_backup(cluster.device.backup, SIZE_BYTES)[300 * PAGE_BYTES :][: 2 * PAGE_BYTES] == expected


def test_all_memory_changes_under_load(make_cluster: MakeCluster) -> None:
    """While a daemon's whole memory is scrambled again and again, no client ever sees a byte of it."""
    cluster = make_cluster(1)
    cluster.fill()
    draw = Random(41)
    with cluster.load(seed=42, read_share=0.5) as load:
        for turn in range(4):
            wanted = (turn + 1) * 1500
            load.run(lambda wanted=wanted: load.counts.read_pages > wanted)  # type: ignore[misc]
            scramble(cluster.daemons[0], draw)
        load.check()
    assert cluster.failures()["checksum_mismatches"] > 100
    assert cluster.failures()["lost_pages"] == cluster.failures()["peers_lost"] == 0
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_changed_before_it_was_on_the_backup(make_cluster: MakeCluster) -> None:
    """A page that only the daemon has, after the device was killed, and that changed there: EIO, not garbage."""
    cluster = make_cluster(1, "--writeback-delay-ms", NEVER_MS)
    cluster.fill()
    with cluster.device.connect() as client:
        client.write(500 * PAGE_BYTES, content_of(500, 2) + content_of(501, 2))
    cluster.device.kill()
    (lease,) = leases_on_record(cluster.services, "vol").values()
    assert len(lease.slabs) == SLABS
    with lease.connect() as spoiler:
        spoiler.write(501 * PAGE_BYTES, b"\xee" * PAGE_BYTES)
    device = cluster.restart_device()
    with device.connect() as client:
        assert client.read(500 * PAGE_BYTES, PAGE_BYTES) == content_of(500, 2)
        with pytest.raises(RequestError) as failure:
            client.read(501 * PAGE_BYTES, PAGE_BYTES)
        assert failure.value.errno == errno.EIO
        assert client.read(502 * PAGE_BYTES, PAGE_BYTES) == content_of(502, 1)
        client.write(501 * PAGE_BYTES, content_of(501, 3))
        assert client.read(501 * PAGE_BYTES, PAGE_BYTES) == content_of(501, 3)
    assert cluster.failures()["lost_pages"] == 1
