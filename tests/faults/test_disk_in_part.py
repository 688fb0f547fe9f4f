"""The backup fails in part, or somebody else lays hands on it: it is shown, and a device that shall stop then stops."""

from __future__ import annotations

import os

import pytest

from infiniswap.nbd.client import RequestError
from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import PAGES, SIZE_BYTES, MakeCluster
from tests.faults.harm import LIMIT_BYTES, BrokenDisk
from tests.support.load import PAGE_BYTES, content_of
from tests.support.places import places
from tests.support.waiting import wait_for


def test_degraded_is_shown(make_cluster: MakeCluster, layout: str) -> None:
    """While pages cannot be written /v1/status and device list say so; then it is well again, and all is there."""
    cluster = make_cluster(1)
    cluster.fill()
    page = PAGES - 1
    assert cluster.device.get("/v1/status")["backup_state"] == "good"
    with cluster.device.connect() as client:
        with BrokenDisk(cluster.device):
            client.write(page * PAGE_BYTES, content_of(page, 2))
            wait_for(lambda: cluster.stats()["counters"]["backup_resting_pages"] == 1, what="the page resting")
            if layout == "raw":
                client.write(0, content_of(0, 2), fua=True)  # others go on
            status = cluster.device.get("/v1/status")
            assert status["backup_state"] == "degraded"
            assert "1 pages" in status["backup_problems"][0]
            listed = cluster.services.command("device", "list", "--json")
            assert "degraded" in listed.stdout
            with pytest.raises(RequestError):
                client.flush()
        client.flush()
    wait_for(lambda: cluster.device.get("/v1/status")["backup_state"] == "good", timeout_s=30.0, what="being well")
    assert cluster.device.log.count("the backup fails") == 1
    assert cluster.device.stop() == ExitCode.OK


def test_stop_when_the_backup_fails(make_cluster: MakeCluster) -> None:
    """With --on-backup-error stop the device ends by itself, in order, with an error, and nothing is lost."""
    cluster = make_cluster(1, "--on-backup-error", "stop")
    cluster.fill()
    device, page = cluster.device, LIMIT_BYTES // PAGE_BYTES + 10
    device.expected_code = ExitCode.FAILED
    with device.connect() as client, BrokenDisk(device):
        client.write(page * PAGE_BYTES, content_of(page, 2))
        wait_for(lambda: "stopping: the backup fails: File too large" in device.log, what="the stop")
    assert device.process.wait(30) == ExitCode.FAILED
    with cluster.restart_device().connect() as client:
        assert client.read(page * PAGE_BYTES, PAGE_BYTES) == content_of(page, 2)


def test_cut_short_by_somebody_else(make_cluster: MakeCluster) -> None:
    """What only the lost part had is EIO until it is written; what a peer has is written again; a stop says it."""
    cluster = make_cluster(0)
    with cluster.load(read_share=0, zero_share=0) as load:
        load.write_all()
        load.flush()
    device = cluster.device
    there = places(device.backup, SIZE_BYTES)
    assert len(there) == PAGES
    cut = sorted(there.values())[PAGES // 2]  # in a log that is not its last page: so its end is gone, too
    lost = [page for page in range(PAGES) if there[page] >= cut]
    kept = [page for page in range(PAGES) if there[page] < cut]
    written = lost[-2:]
    os.truncate(device.backup, cut)
    with device.connect() as client:
        client.write(written[0] * PAGE_BYTES, content_of(written[0], 2))  # makes it grow
        wait_for(lambda: "was cut short" in device.log, what="it being noticed")
        for page in lost[:-2:50]:
            with pytest.raises(RequestError):
                client.read(page * PAGE_BYTES, PAGE_BYTES)
        for page in kept[::50]:
            assert client.read(page * PAGE_BYTES, PAGE_BYTES) == content_of(page, 1)
        assert client.read(written[0] * PAGE_BYTES, PAGE_BYTES) == content_of(written[0], 2)
        client.write(written[1] * PAGE_BYTES, content_of(written[1], 2))
        assert client.read(written[1] * PAGE_BYTES, PAGE_BYTES) == content_of(written[1], 2)
    device.expected_code = ExitCode.FAILED
    assert device.stop() == ExitCode.FAILED
    assert f"{len(lost) - 2} pages are lost" in device.log


def test_removed_by_somebody_else(make_cluster: MakeCluster) -> None:
    """Nobody would find what is written to a file without a name: shown, and said at the stop."""
    cluster = make_cluster(0)
    device = cluster.device
    device.backup.unlink()
    wait_for(lambda: device.get("/v1/status")["backup_state"] == "degraded", what="it being noticed")
    device.expected_code = ExitCode.FAILED
    assert device.stop() == ExitCode.FAILED
    assert "to a file that was removed" in device.log
