"""Fixtures for all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import Services

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: 0 if item.get_closest_marker("slow") else 1)


@pytest.fixture(autouse=True)
def _marks_of_backups(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks of backups that cannot carry them stay out of this host's own folder."""
    monkeypatch.setenv("INFINISWAP_BACKUPS_DIR", str(tmp_path_factory.getbasetemp() / "marks"))


@pytest.fixture
def root() -> Path:
    """Top of the source tree."""
    return ROOT


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty folder whose path is short enough for UNIX sockets (108 bytes), which tmp_path may not be."""
    folder = Path(tempfile.mkdtemp(prefix="isw-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def services(short_path: Path) -> Iterator[Services]:
    """Starts daemons and devices; afterwards they are ended in order, and a bad end or a traceback fails the test."""
    with Services(short_path) as services:
        yield services
