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
from tests.faults.cluster import PAGES, Cluster, MakeCluster
from tests.faults.harm import memory_of
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


def overwrite(cluster: Cluster, page: int, *, remote: bool) -> None:
    """Change a page behind everybody's back."""
    path = memory_of(cluster.daemons[0]) if remote else cluster.device.backup
    with path.open("r+b") as file:
        where = page * PAGE_BYTES
        if remote:
            content = file.read()
            where = content.index(content_of(page, 1))
        file.seek(where)
        file.write(b"rotten" * 8)


def test_rot_is_found_and_mended(make_cluster: MakeCluster) -> None:
    """One page rots at the daemon and another on the disk: both are counted, and afterwards every copy is right."""
    cluster = make_cluster(1)
    cluster.fill()
    wait_for(lambda: cluster.stats()["pending_bytes"] == 0, what="nothing pending")
    overwrite(cluster, 10, remote=True)
    overwrite(cluster, 2000, remote=False)
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
    overwrite(cluster, 7, remote=True)
    overwrite(cluster, 7, remote=False)
    with cluster.device.backup.open("r+b") as file:
        file.seek(7 * PAGE_BYTES)
        file.write(b"another rot")
    code, found = run_scrub(cluster, "--rate", "1GiB")
    assert (code, found["lost_pages"]) == (ExitCode.FAILED, 1)
    with cluster.device.connect() as client:
        with pytest.raises(RequestError) as failed:
            client.read(7 * PAGE_BYTES, PAGE_BYTES)
        assert failed.value.errno == errno.EIO
        client.write(7 * PAGE_BYTES, content_of(7, 1))
        assert client.read(7 * PAGE_BYTES, PAGE_BYTES) == content_of(7, 1)
