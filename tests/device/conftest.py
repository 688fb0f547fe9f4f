"""Fixtures of the tests of the device service."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import Services
from tests.support.shards import shard_pids


@pytest.fixture
def disk(short_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    folder = short_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(folder)], timeout=30, check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], timeout=30, check=True)


@pytest.fixture
def no_shard_stays(services: Services) -> Iterator[None]:
    """A test that fails may leave shards without a parent."""
    yield
    for service in services.started:
        if service.running:
            service.stop()
    for pid in shard_pids(services).values():
        os.kill(pid, signal.SIGKILL)
