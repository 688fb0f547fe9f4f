"""A donor's restart: with its memory kept it costs no copy; without it is a loss, as quickly noticed as may be.

Either way clients see no error and wait for nothing that the backup has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import MEMORY, PAGES, SIZE, SLABS, Cluster
from tests.support.holders import end_holder
from tests.support.load import Ledger
from tests.support.services import Daemon, Services
from tests.support.waiting import wait_for

LONG_GRACE_MS = 120_000  # longer than any test waits: what ends before did not wait for it
SHORT_GRACE_MS = 7000  # longer than a machine may stand still, so that what comes before its end is seen
PROMPT_S = 5.0  # a request's deadline is 2 s when nothing else is said; shorter than any grace time


@pytest.fixture
def holder(services: Services) -> Iterator[Path]:
    """Where a daemon's memory is kept; nothing is left of it afterwards."""
    path = services.folder / "holder"
    yield path
    end_holder(path)


def make_cluster(services: Services, daemon: Daemon, grace_ms: int) -> Cluster:
    """One daemon, which holds every page, and a device on it."""
    options = ("--map", "eager", "--peer-grace-ms", str(grace_ms))
    device = services.device("vol", *options, size=SIZE, peers=[daemon])
    cluster = Cluster(services, [daemon], device, Ledger(PAGES), options)
    cluster.fill()
    return cluster


def wait_state(cluster: Cluster, state: str) -> None:
    """Until the device says so of the only peer."""
    wait_for(lambda: cluster.device.get("/v1/peers")[0]["state"] == state, what=f"the peer being {state}")


def read_all(cluster: Cluster) -> None:
    """Every page once, against what was written; no request takes longer than its deadline, or waits for a peer."""
    with cluster.device.connect() as client:
        longest_s = 0.0

        def read(offset: int, length: int) -> bytes:
            nonlocal longest_s
            began_s = time.monotonic()
            data = client.read(offset, length)
            longest_s = max(longest_s, time.monotonic() - began_s)
            return data

        cluster.ledger.check(read)
        began_s = time.monotonic()
        client.flush()
        longest_s = max(longest_s, time.monotonic() - began_s)
    assert longest_s < PROMPT_S


def until(count: Callable[[], int], more: int) -> Callable[[], bool]:
    """Whether so many more have come."""
    wanted = count() + more
    return lambda: count() >= wanted


def test_memory_is_kept(services: Services, holder: Path) -> None:
    """kill -9 under load, again and again: pages are read from the same memory afterwards, not one copied anew."""
    daemon = services.daemon(MEMORY, "--keep-memory", str(holder))
    cluster = make_cluster(services, daemon, LONG_GRACE_MS)
    with cluster.load(seed=51) as load:
        for _ in range(2):
            load.run(until(lambda: load.counts.written_pages, 500))
            daemon.kill()
            wait_state(cluster, "held")
            load.run(until(lambda: load.counts.written_pages, 500))  # goes on, on the backup
            daemon = services.daemon(MEMORY, "--keep-memory", str(holder))
            wait_state(cluster, "up")
        load.run(until(lambda: load.counts.written_pages, 500))
        load.flush()
        load.check()
    failures = cluster.failures()
    assert failures["peers_lost"] == failures["slabs_lost"] == failures["lost_pages"] == 0
    assert failures["request_errors"] == failures["checksum_mismatches"] == 0
    assert cluster.device.get("/v1/status")["mapped_slabs"] == SLABS
    before = cluster.stats()["reads"]
    read_all(cluster)
    after = cluster.stats()["reads"]
    assert after["remote"] - before["remote"] > PAGES // 2, "copies that nobody wrote meanwhile count again"
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()
    daemon.stop()


def test_memory_is_gone(services: Services) -> None:
    """A daemon that is back without it is lost at once, and gets a new lease: nobody waits for the grace time."""
    daemon = services.daemon(MEMORY)
    cluster = make_cluster(services, daemon, LONG_GRACE_MS)
    daemon.kill()
    wait_state(cluster, "held")
    read_all(cluster)
    cluster.restart(daemon)
    wait_for(lambda: cluster.failures()["peers_lost"] == 1, what="the loss")
    wait_state(cluster, "up")
    read_all(cluster)
    failures = cluster.failures()
    assert failures["request_errors"] == failures["lost_pages"] == failures["checksum_mismatches"] == 0
    assert cluster.device.stop() == ExitCode.OK


@pytest.mark.parametrize("grace_ms", [0, SHORT_GRACE_MS])
def test_never_comes_back(services: Services, grace_ms: int) -> None:
    """It is lost when the grace time is over, and at once without one; clients wait for it in neither case."""
    daemon = services.daemon(MEMORY)
    cluster = make_cluster(services, daemon, grace_ms)
    daemon.kill()
    if grace_ms:
        wait_state(cluster, "held")
        assert cluster.failures()["peers_lost"] == 0
    read_all(cluster)
    wait_for(lambda: cluster.failures()["peers_lost"] == 1, what="the loss")
    assert cluster.device.get("/v1/status")["mapped_slabs"] == 0
    read_all(cluster)
    assert cluster.failures()["request_errors"] == 0
    assert cluster.device.stop() == ExitCode.OK
