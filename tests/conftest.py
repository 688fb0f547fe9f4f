"""Fixtures for all tests."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from infiniswap.shared.output import ServiceLog
from tests.support.services import Services

EARLY_LENGTH_MAX = 5000  # characters of a failure that is told at once
ROOT = Path(__file__).resolve().parents[1]

# How long an example takes says nothing about it where other work shares the processor. The same tree is tested with
# the same examples each time; new ones are looked for by scripts/soak, where a failure is what is wanted.
_EXPLORING = "INFINISWAP_TEST_EXPLORE" in os.environ
settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not _EXPLORING,
    print_blob=_EXPLORING,
)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: 0 if item.get_closest_marker("slow") else 1)


class _Early:
    """Tells of a failure at once: a run that is cut off before its end has said what failed until then."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write what the end of the run writes once more, in order."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"FAILED {report.nodeid} ({report.when}, after {report.duration:.1f} s)", red=True)
            terminal.write_line(report.longreprtext[-EARLY_LENGTH_MAX:])


def pytest_configure(config: pytest.Config) -> None:
    """Failures are told at once by the process that has the terminal, not by the workers."""
    # A shell ignores it for what it starts in the background, and so would all that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Early(config))


@pytest.fixture(autouse=True)
def _marks_of_backups(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks of backups that cannot carry them stay out of this host's own folder."""
    monkeypatch.setenv("INFINISWAP_BACKUPS_DIR", str(tmp_path_factory.getbasetemp() / "marks"))


@pytest.fixture(autouse=True)
def _no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of this host is not used but where a test says so."""
    monkeypatch.setenv("INFINISWAP_TLS_DIR", "none")


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Levels and handlers are as they were: a command that a test calls sets up its log for all of the process."""
    before = {logger: logger.level for logger in _loggers()}
    yield
    for logger in _loggers():
        logger.setLevel(before.get(logger, logging.NOTSET))
    everything = logging.getLogger()
    for handler in [handler for handler in everything.handlers if isinstance(handler, ServiceLog)]:
        everything.removeHandler(handler)


def _loggers() -> list[logging.Logger]:
    """All of this process."""
    known = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]


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
def layout() -> str:
    """How devices keep their backups; tests/support/layouts.py: both_layouts gives a test each way."""
    return "raw"


@pytest.fixture
def services(short_path: Path, layout: str) -> Iterator[Services]:
    """Starts daemons and devices; afterwards they are ended in order, and a bad end or a traceback fails the test."""
    with Services(short_path, layout=layout) as services:
        yield services
