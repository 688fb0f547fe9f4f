"""Fixtures: each test runs against each server, and leaves it whole and without connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.servers import KINDS, Server, launch


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module; its end must be orderly."""
    with launch(request.param, tmp_path_factory.mktemp("hostile")) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The server under attack. Afterwards it must still serve others, and have let go of every connection."""
    running.kept = running.open_now()[0] if running.ours else 0
    yield running
    assert running.process.poll() is None, f"the server has died: {running.process.returncode}"
    with running.connect() as client:
        pattern = b"alive" * 1000
        client.write(12345, pattern)
        assert client.read(12345, len(pattern)) == pattern
    running.settle()
