"""`infiniswap device scrub` under a running device: copies that rotted are found, and made anew from the other."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from typing import Any

import pytest

from infiniswap.nbd.client import RequestError
from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import PAGES, SIZE_BYTES, Cluster, MakeCluster
from tests.faults.harm import rot_at_peer, rot_on_backup
from tests.support.load import PAGE_BYTES, content_of
from tests.support.services import INFINISWAP
from tests.support.waiting import wait_for

DEADLINE_S = 60


def run_scrub(cluster: Cluster, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of the command."""
    command = [*INFINISWAP, "device", "scrub", "vol", "--json", *options]
    environment = {**os.environ, "INFINISWAP_RUNTIME_DIR": str(cluster.services.runtime_dir)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_rot_is_found_and_mended(make_cluster: MakeCluster) -> None:
    """One page rots at the daemon and another on the disk: both are counted, and afterwards every copy is right."""
    cluster = make_cluster(1)
    cluster.fill()
    wait_for(lambda: cluster.stats()["pending_bytes"] == 0, what="nothing pending")
    rot_at_peer(cluster.daemons[0], content_of(10, 1))
    rot_on_backup(cluster.device.backup, SIZE_BYTES, 2000, content_of(2000, 1))
    code, found = run_scrub(cluster, "--rate", "1GiB")
    assert code == ExitCode.OK, found
    assert (found["state"], found["checked_pages"]) == ("done", PAGES)
    assert (found["remote_repairs"], found["backup_repairs"], found["lost_pages"]) == (1, 1, 0)

    def clean() -> bool:
        return all(not run_scrub(cluster, "--rate", "1GiB")[1][name] for name in ("remote_repairs", "backup_repairs"))

    wait_for(clean, what="a scrub that finds nothing")
    with cluster.load() as load:
        load.check()
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_a_page_that_rotted_twice(make_cluster: MakeCluster) -> None:
    """Both copies of a page are wrong: exit code 1, and reading it fails instead of giving what is wrong."""
    cluster = make_cluster(1)
    cluster.fill()
    wait_for(lambda: cluster.stats()["pending_bytes"] == 0, what="nothing pending")
    rot_at_peer(cluster.daemons[0], content_of(7, 1))
    rot_on_backup(cluster.device.backup, SIZE_BYTES, 7, content_of(7, 1), b"another rot")
    code, found = run_scrub(cluster, "--rate", "1GiB")
    assert (code, found["lost_pages"]) == (ExitCode.FAILED, 1)
    with cluster.device.connect() as client:
        with pytest.raises(RequestError) as failed:
            client.read(7 * PAGE_BYTES, PAGE_BYTES)
        assert failed.value.errno == errno.EIO
        client.write(7 * PAGE_BYTES, content_of(7, 1))
        assert client.read(7 * PAGE_BYTES, PAGE_BYTES) == content_of(7, 1)
