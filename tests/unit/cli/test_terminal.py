"""What is printed fits the terminal that reads it: its width, its colours, and whether it is one at all."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infiniswap.cli import doctor, terminal
from infiniswap.cli.device_list import COLUMNS as DEVICE_COLUMNS
from infiniswap.cli.peers import COLUMNS as PEER_COLUMNS
from infiniswap.cli.table import Column, Output, choose, fit, lines
from infiniswap.kernel_shim.doctor_model import Check, Level
from infiniswap.shared.errors import ExitCode
from tests.support.fake_control import FakeControl
from tests.support.waiting import TIMEOUT_S

ESCAPE = "\x1b"


def on_a_terminal(
    arguments: list[str], columns: int = 80, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Exit code and output of infiniswap on a terminal that wide."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    command = [sys.executable, "-m", "infiniswap.cli.main", *arguments]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**kept, "TERM": "xterm", **(environment or {})}
    ) as process:
        os.close(slave)
        said = b""
        try:
            while piece := os.read(master, 1 << 16):
                said += piece
        except OSError:  # EIO: the other end is closed
            pass
        finally:
            os.close(master)
        return process.wait(TIMEOUT_S), said.decode().replace("\r\n", "\n")


@pytest.fixture
def control(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """Device vol answers."""
    monkeypatch.setenv("INFINISWAP_RUNTIME_DIR", str(short_path))
    with FakeControl(short_path, "vol") as control:
        yield control


@pytest.mark.parametrize("arguments", [["device", "list"], ["peers", "vol"], ["slabs", "vol"], ["stats", "vol"]])
def test_tables_fit_80_columns(control: FakeControl, arguments: list[str]) -> None:
    """No line of a listing is wider than the terminal, so nothing wraps in the middle of a word."""
    code, said = on_a_terminal(arguments)
    assert code == ExitCode.OK
    assert len(said.splitlines()) >= 2
    assert max(map(len, said.splitlines())) <= 80, said
    assert "vol" in said or "127.0.0.1:7401" in said or "mapped" in said or "remote" in said


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (
            DEVICE_COLUMNS,
            {
                "name": "swap0",
                "state": "serving",
                "size_bytes": 1000 << 30,
                "slab_bytes": 64 << 20,
                "mapped_slabs": 12345,
                "peers": 16,
                "nbd": "/dev/nbd10",
                "nbd_dead": 0,
                "swap_used_bytes": 123 << 20,
                "pid": 1234567,
                "backup_state": "degraded",
                "uri": "nbd+unix:///swap0?socket=/run/infiniswap/swap0.sock",
            },
        ),
        (
            PEER_COLUMNS,
            {
                "peer": "192.168.100.101:7401",
                "state": "connecting",
                "lending": "cordoned",
                "transport": "rdma",
                "slabs": 1024,
                "free_bytes": 1000 << 20,
                "total_bytes": 1023 << 20,
                "reads": 10**9,
                "writes": 10**9,
                "latency_mean_us": 123456.7,
                "failures": 1000,
                "version": "0.2.0",
                "incarnation": "0123456789",
            },
        ),
    ],
)
def test_large_values_fit_too(columns: tuple[Column, ...], row: dict[str, Any]) -> None:
    """With the widest usual values a default table fits 80 columns; on a wide screen nothing is missing."""
    kept = fit([row], choose(columns, None), Output(), 80)
    assert max(map(len, lines([row], kept))) <= 80
    assert kept[0] is columns[0]
    assert [column for column in kept if not column.spare] == [c for c in choose(columns, None) if not c.spare]
    assert fit([row], choose(columns, None), Output(), 400) == choose(columns, None)


def test_a_pipe_gets_everything(control: FakeControl) -> None:
    """What scripts read does not depend on the terminal: every default column is there."""
    command = [sys.executable, "-m", "infiniswap.cli.main", "peers", "vol"]
    environment = {**os.environ, "COLUMNS": "40"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout.splitlines()[0].split() == [c.heading for c in choose(PEER_COLUMNS, None)]


def test_a_column_asked_for_is_shown(control: FakeControl) -> None:
    """-o is what the user wants, however narrow the terminal; a line that is too long is cut, and shown so."""
    code, said = on_a_terminal(["device", "list", "-o", "name,uri,backup"], columns=50)
    assert code == ExitCode.OK
    head, row = said.splitlines()[:2]
    assert head.split()[:2] == ["NAME", "URI"]
    assert len(row) <= 50
    assert row.endswith("…")


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_doctor_colours(short_path: Path, environment: dict[str, str], coloured: bool) -> None:
    """The doctor colours on a terminal unless NO_COLOR or TERM=dumb says otherwise."""
    _, said = on_a_terminal(["doctor", "--runtime-dir", str(short_path)], environment=environment)
    assert (ESCAPE in said) is coloured, said
    assert "kernel" in said


def test_doctor_wraps_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 80 columns a sentence goes on below its beginning; the command that mends stays in one piece."""
    monkeypatch.setattr(terminal, "width", lambda: 80)
    check = Check("name", Level.WARNING, "found " * 20, "why " * 30, "command " * 15)
    *told, mend = "\n".join(doctor.lines(check)).splitlines()
    assert all(len(line) <= 80 for line in told), told
    assert all(line.startswith("         ") for line in told[1:])
    assert mend == "         mend it: " + "command " * 15


def test_watch_on_a_dumb_terminal(control: FakeControl) -> None:
    """slabs --watch prints picture after picture where nothing can be drawn over, without an escape sequence."""
    control.answers["GET", "/v1/slabs"] = iter_then_gone(control)
    code, said = on_a_terminal(["slabs", "vol", "--watch", "--interval", "0.1"], environment={"TERM": "dumb"})
    assert code != ExitCode.OK  # the device is gone in the end
    assert said.count("2 slabs: 1 mapped") == 2, said
    assert ESCAPE not in said


def iter_then_gone(control: FakeControl) -> Any:
    """The slabs twice, then an error."""
    from aiohttp import web

    from tests.support.fake_control import SLABS

    left = [SLABS, SLABS]
    return lambda: web.json_response(left.pop()) if left else web.json_response({"error": "it ends"}, status=503)
