"""Fixtures: each test runs against each server, and leaves it whole and without connections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.servers import KINDS, Keeper, Server
from tests.support.services import Services


@pytest.fixture
def services(short_path: Path) -> Iterator[Services]:
    """As everywhere, but a log may say anything: what strangers do to the services is the test."""
    with Services(short_path, any_log=True) as services:
        yield services


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """One server for the tests of a module; its end must be orderly."""
    keeper = Keeper(request.param, lambda: tmp_path_factory.mktemp("hostile"))
    yield keeper
    keeper.close()


@pytest.fixture
def server(running: Keeper) -> Iterator[Server]:
    """The server under attack. Afterwards it must still serve others, and have let go of every connection."""
    with running.lend() as server:
        yield server
        assert server.process.poll() is None, f"the server has died: {server.process.returncode}"
        server.settle()  # a test may have left as many connections as there can be
        server.settle()  # a test may have left as many connections as there can be
        with server.connect() as client:
            pattern = b"alive" * 1000
            client.write(12345, pattern)
            assert client.read(12345, len(pattern)) == pattern
        server.settle()
