"""What a service prints goes where it is taken, and never ends, delays or confuses the service."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.shared import output
from infiniswap.shared.output import ServiceLog


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def record(message: str, *arguments: object) -> logging.LogRecord:
    """As a logger makes it."""
    return logging.LogRecord("n", logging.INFO, "f", 1, message, arguments, None)


def test_log_of_a_reader_that_stands_still(pipe: tuple[int, int]) -> None:
    """Lines beyond what the pipe takes are counted and told of when it takes some again; nobody waits."""
    handler = ServiceLog(pipe[1])
    for number in range(5000):
        handler.emit(record("line %06d of a long log that nobody reads", number))
    taken = os.read(pipe[0], 1 << 20).decode().splitlines()
    assert 1000 < len(taken) < 5000
    handler.emit(record("there again"))
    lost, last = os.read(pipe[0], 1 << 20).decode().splitlines()[-2:]
    assert last == "there again"
    assert int(lost.removeprefix("(").split()[0]) >= 5000 - len(taken)


def test_log_without_a_reader(pipe: tuple[int, int]) -> None:
    """A broken pipe and a closed descriptor are no errors."""
    handler = ServiceLog(pipe[1])
    os.close(pipe[0])
    handler.emit(record("nobody"))
    os.close(pipe[1])
    handler.emit(record("nothing"))


def test_log_of_what_cannot_be_formatted(pipe: tuple[int, int]) -> None:
    """A message with wrong arguments and one with half a character are logged as far as they go."""
    handler = ServiceLog(pipe[1])
    handler.emit(record("%d pages", "three"))
    handler.emit(record("name %s", "\udc80"))
    assert os.read(pipe[0], 1 << 16) == b"INFO n: %d pages\nname \\udc80\n"


def test_a_record_is_one_line(pipe: tuple[int, int]) -> None:
    """A name with a line end or an escape sequence stays within its record's line; a traceback has lines of its own."""
    handler = ServiceLog(pipe[1])
    handler.emit(record("backup %s", "/a\nERROR forged\x1b[2J"))
    assert os.read(pipe[0], 1 << 16) == b"backup /a\\nERROR forged\\x1b[2J\n"
    try:
        raise ValueError("v")
    except ValueError:
        traced = logging.LogRecord("n", logging.ERROR, "f", 1, "it failed", (), sys.exc_info())
    handler.emit(traced)
    assert os.read(pipe[0], 1 << 16).startswith(b"it failed\nTraceback")


def test_an_announcement_is_one_line(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """`ready URI` is what scripts read: a socket's path with a line end does not make two of it."""
    monkeypatch.setattr(output, "STDOUT_FD", pipe[1])
    output.announce("ready nbd+unix:///v?socket=/a\nb")
    assert os.read(pipe[0], 1 << 16) == b"ready nbd+unix:///v?socket=/a\\nb\n"


@pytest.mark.parametrize("program", ["infiniswap.cli.main", "infiniswap.daemon.main"])
@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_usage_error_keeps_its_code(program: str, redirect: str) -> None:
    """The exit code says what is wrong also where no text can."""
    script = f"exec {sys.executable} -c 'from {program} import main; main()' --nosuch {redirect}"
    done = subprocess.run(["sh", "-c", script], timeout=30, check=False, capture_output=True)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_closed_streams_are_held(tmp_path: Path) -> None:
    """The next file opened does not take the number of a stream that was closed."""
    script = (
        "from infiniswap.shared.output import hold_standard_streams, announce; import os; hold_standard_streams();"
        f"fd = os.open({str(tmp_path / 'backup')!r}, os.O_WRONLY | os.O_CREAT);"
        "announce('ready'); print('more', flush=True); os._exit(0 if fd > 2 else 1)"
    )
    command = f'exec {sys.executable} -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", script], timeout=30, check=False)
    assert done.returncode == 0
    assert (tmp_path / "backup").read_bytes() == b""
