"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.device.limits import BACKUP_LAYOUTS
from tests.faults.cluster import MEMORY, PAGES, SIZE, Cluster, MakeCluster
from tests.support.load import Ledger
from tests.support.services import READY_TIMEOUT_S, Services


@pytest.fixture(params=BACKUP_LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    """How devices keep their backups: each way, for every test that starts something and does not say raw_alone."""
    return str(request.param)


@pytest.fixture
def services(short_path: Path, layout: str) -> Iterator[Services]:
    """As everywhere, but a log may say anything: the harm that is done is the test."""
    with Services(short_path, any_log=True, layout=layout) as services:
        yield services


@pytest.fixture
def make_cluster(services: Services) -> MakeCluster:
    """Starts a cluster: the number of daemons, options of the device, and daemon_options, those of each daemon."""

    def make(daemons: int, *options: str, daemon_options: tuple[str, ...] = (), backup: Path | None = None) -> Cluster:
        # All at once, because most of a start is Python's.
        started = [services.daemon(MEMORY, *daemon_options, ready=False) for _ in range(daemons)]
        for daemon in started:
            daemon.read_ready(READY_TIMEOUT_S)
        all_options = ("--map", "eager", *options)
        device = services.device("vol", *all_options, size=SIZE, peers=started, backup=backup)
        return Cluster(services, started, device, Ledger(PAGES), all_options)

    return make
