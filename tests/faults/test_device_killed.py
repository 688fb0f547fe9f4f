"""kill -9 of the device, alone or with daemons: what was acknowledged is there again, or its loss is told."""

from __future__ import annotations

import errno
import time
from random import Random

import pytest

from infiniswap.nbd.client import NbdClient, RequestError
from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import PAGES, SLABS, Cluster, MakeCluster
from tests.support.load import PAGE_BYTES, content_of
from tests.support.pace import lighter
from tests.support.waiting import wait_for

NEVER_MS = "60000"  # write-behind that waits so long is not seen in a test
FRESH_PAGES = range(100, PAGES, 7)


@pytest.mark.parametrize("delay_ms", ["20", NEVER_MS])
def test_under_load(make_cluster: MakeCluster, delay_ms: str) -> None:
    """Killed under load, and again, the device is back with every acknowledged write and its slabs still mapped."""
    cluster = make_cluster(2, "--writeback-delay-ms", delay_ms)
    cluster.fill()
    for turn in range(lighter(2)):
        cluster.kill_in_the_middle(50 + turn, 1500)
        cluster.restart_device()
        assert cluster.device.get("/v1/status")["mapped_slabs"] == SLABS
        assert f"leases with {SLABS} slabs live on" in cluster.device.log
        with cluster.load() as load:
            load.check()
        stats = cluster.stats()
        assert stats["failures"]["lost_pages"] == stats["failures"]["checksum_mismatches"] == 0
        assert stats["reads"]["remote"] > 0
    if delay_ms == NEVER_MS:  # what was only remote is brought to the backup again without anybody's asking
        assert "half-written pages settled" in cluster.device.log
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()
    wait_for(lambda: all(d.get("/v1/stats")["leases"] == 0 for d in cluster.daemons), what="leases being given back")


def test_without_daemons(make_cluster: MakeCluster) -> None:
    """Without any daemon every acknowledged write was on the backup, and is there after kill -9."""
    cluster = make_cluster(0)
    cluster.kill_in_the_middle(52, 800)
    cluster.restart_device()
    with cluster.load() as load:
        load.check()
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_killed_while_recovering(make_cluster: MakeCluster) -> None:
    """A device that is killed at any moment of its restart, several times, still comes back with everything."""
    cluster = make_cluster(1, "--writeback-delay-ms", NEVER_MS)
    cluster.fill()
    cluster.kill_in_the_middle(53, 1500)
    draw = Random(54)
    for _ in range(4):
        device = cluster.services.device("vol", *cluster.options, size="16MiB", peers=cluster.daemons, ready=False)
        time.sleep(draw.uniform(0.3, 1.5))  # not to wait for anything: the moment is the point
        device.kill()
    cluster.restart_device()
    with cluster.load() as load:
        load.check()
    assert cluster.failures()["lost_pages"] == 0
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def killed_with_nothing_on_the_backup(make_cluster: MakeCluster) -> Cluster:
    """A cluster whose device has acknowledged every page once, and died before any reached the backup."""
    cluster = make_cluster(2, "--writeback-delay-ms", NEVER_MS, "--pending-limit", "64MiB")
    cluster.map_all()
    with cluster.load(read_share=0, zero_share=0) as load:
        load.write_all()
    cluster.device.kill()
    return cluster


def test_stopped_as_soon_as_it_recovered(make_cluster: MakeCluster) -> None:
    """Killed with nothing on the backup, started, stopped at once: exit code 0 means that all of it is there."""
    cluster = killed_with_nothing_on_the_backup(make_cluster)
    cluster.restart_device()
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_flushed_as_soon_as_it_recovered(make_cluster: MakeCluster) -> None:
    """A FLUSH right after a recovery covers what the killed process had acknowledged, though everybody dies then."""
    cluster = killed_with_nothing_on_the_backup(make_cluster)
    cluster.restart_device()
    with cluster.device.connect() as client:
        client.flush()
    cluster.device.kill()
    for daemon in cluster.daemons:
        daemon.kill()
    cluster.check_image()


def read_or_errno(client: NbdClient, page: int) -> bytes | int:
    """The page, or the error of reading it."""
    try:
        return client.read(page * PAGE_BYTES, PAGE_BYTES)
    except RequestError as error:
        return error.errno or 0


def test_with_all_daemons(make_cluster: MakeCluster) -> None:
    """Device and daemons killed: what was flushed is there; newer pages read EIO, not zeroes, not the old version."""
    cluster = make_cluster(2, "--writeback-delay-ms", NEVER_MS)
    cluster.fill()
    with cluster.device.connect() as client:
        for page in FRESH_PAGES:
            client.write(page * PAGE_BYTES, content_of(page, 2))
    assert cluster.stats()["pending_bytes"] == len(FRESH_PAGES) * PAGE_BYTES
    cluster.device.kill()
    for daemon in cluster.daemons:
        daemon.kill()
    device = cluster.restart_device("--recovery-timeout-s", "1")
    assert f"{len(FRESH_PAGES)} pages have no copy left" in device.log
    fresh = set(FRESH_PAGES)
    with device.connect() as client:
        for page in range(PAGES):
            assert read_or_errno(client, page) == (errno.EIO if page in fresh else content_of(page, 1))
        written, zeroed, trimmed, part = FRESH_PAGES[:4]
        client.write(written * PAGE_BYTES, content_of(written, 3))
        client.write_zeroes(zeroed * PAGE_BYTES, PAGE_BYTES)
        client.trim(trimmed * PAGE_BYTES, PAGE_BYTES)
        with pytest.raises(RequestError):  # the rest of the page is not known
            client.write(part * PAGE_BYTES + 10, b"part")
        with pytest.raises(RequestError):  # said once: what was acknowledged is not there
            client.flush()
        client.flush()
    device.expected_code = ExitCode.FAILED
    assert device.stop() == ExitCode.FAILED
    assert f"{len(FRESH_PAGES) - 3} pages are lost" in device.log
    again = cluster.restart_device()
    assert f"{len(FRESH_PAGES) - 3} pages lost in an earlier failure stay unreadable" in again.log
    with again.connect() as client:
        found = [read_or_errno(client, page) for page in (written, zeroed, trimmed, part, FRESH_PAGES[10])]
        assert found == [content_of(written, 3), bytes(PAGE_BYTES), bytes(PAGE_BYTES), errno.EIO, errno.EIO]


def test_with_one_daemon_of_two(make_cluster: MakeCluster) -> None:
    """Device and one daemon killed: pages on the other one are all there, and only pages of the dead one are lost."""
    cluster = make_cluster(2, "--writeback-delay-ms", NEVER_MS)
    cluster.fill()
    slabs = cluster.device.get("/v1/slabs")
    with cluster.device.connect() as client:
        for page in FRESH_PAGES:
            client.write(page * PAGE_BYTES, content_of(page, 2))
    cluster.device.kill()
    dead = next(daemon for daemon in cluster.daemons if cluster_slabs(slabs, daemon.address))
    dead.kill()
    gone = cluster_slabs(slabs, dead.address)
    device = cluster.restart_device("--recovery-timeout-s", "1")
    pages_per_slab = PAGES // SLABS
    with device.connect() as client:
        for page in range(PAGES):
            expected: bytes | int = content_of(page, 2 if page in FRESH_PAGES else 1)
            if page in FRESH_PAGES and page // pages_per_slab in gone:
                expected = errno.EIO
            assert read_or_errno(client, page) == expected
    device.expected_code = ExitCode.FAILED  # pages are lost


def cluster_slabs(rows: list[dict[str, object]], address: str) -> set[object]:
    """Slabs that the daemon at address holds."""
    return {row["index"] for row in rows if row["peer"] == address}


def test_a_daemon_that_comes_back_late(make_cluster: MakeCluster) -> None:
    """A daemon that hangs while the device restarts is waited for, because it alone has the newest pages."""
    cluster = make_cluster(1, "--writeback-delay-ms", NEVER_MS, "--peer-timeout-ms", "300")
    cluster.fill()
    with cluster.device.connect() as client:
        client.write(100 * PAGE_BYTES, content_of(100, 2))
    cluster.device.kill()
    (daemon,) = cluster.daemons
    daemon.suspend()
    peers = [daemon.address]
    device = cluster.services.device("vol", *cluster.options, size="16MiB", peers=peers, ready=False)
    wait_for(lambda: "recovering" in device.log, 20, "the recovery having begun")
    time.sleep(1.5)  # longer than one request to the daemon may take
    assert device.running
    assert "given up" not in device.log
    daemon.resume()
    device.read_ready(20)
    with device.connect() as client:
        assert client.read(100 * PAGE_BYTES, PAGE_BYTES) == content_of(100, 2)
