"""infiniswap demo from end to end, small: its verdict, its tidiness, and what --keep leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode
from tests.support.services import INFINISWAP
from tests.support.waiting import wait_for

TIMEOUT_S = 90.0


def processes(folder: Path) -> list[int]:
    """Processes with folder in their environment: those that a demo in it has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                inside = str(folder).encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if inside:
                found.append(int(entry.name))
    return found


@pytest.fixture
def folder(short_path: Path) -> Iterator[Path]:
    """Where the demo makes its folder; nothing of it may be left afterwards, neither files nor processes."""
    yield short_path
    wait_for(lambda: not processes(short_path), what="the end of all processes of the demo")
    assert list(short_path.iterdir()) == []


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A demo with little data, unless arguments say otherwise."""
    command = [*INFINISWAP, "demo", "--size", "16MiB", "--dir", str(folder), *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_everything_is_right(folder: Path) -> None:
    """The demo kills a daemon, finds every byte, prints slab table, sources, throughput; exit code 0."""
    with start(folder) as demo:
        out, error = demo.communicate(timeout=TIMEOUT_S)
    assert (demo.returncode, error) == (ExitCode.OK, ""), out
    assert re.search(r"^Killed daemon-\d \(127\.0\.0\.1:\d+\) with SIGKILL; it held [1-9]\d* slabs$", out, re.MULTILINE)
    assert len(re.findall(r"SHA-256 \w+… is right", out)) == 4
    assert re.search(r"^INDEX  STATE .*PENDING$", out, re.MULTILINE)
    assert re.search(r"^ +15  (un)?mapped ", out, re.MULTILINE)
    assert re.search(r"^Pages read, all in all: .*remote \d+ \(", out, re.MULTILINE)
    assert re.search(r"\d MiB/s", out)
    assert re.search(r"^SOURCE +COUNT +P50-US", out, re.MULTILINE)
    assert "Everything was right" in out
    assert "WRONG" not in out


def test_own_path(folder: Path, tmp_path: Path) -> None:
    """PATH is packed instead of Python's library."""
    (tmp_path / "mine").write_bytes(os.urandom(3 << 20))
    with start(folder, str(tmp_path / "mine")) as demo:
        out, error = demo.communicate(timeout=TIMEOUT_S)
    assert (demo.returncode, error) == (ExitCode.OK, ""), out
    assert f"1 files of {tmp_path}/mine: 3.0MiB" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM in the middle ends all processes, removes the folder and prints no traceback."""
    with start(folder, "--size", "256MiB") as demo:  # not over before this process gets its turn
        assert demo.stdout is not None
        assert demo.stderr is not None
        while not demo.stdout.readline().startswith("Started"):
            assert demo.poll() is None
        demo.send_signal(number)
        assert demo.wait(TIMEOUT_S) == 130
        assert demo.stderr.read().strip() == ""  # click ends the line that ^C stands on


def test_keep(folder: Path) -> None:
    """--keep leaves the cluster running, prints how to go on, and its stop script ends and removes all of it."""
    with start(folder, "--keep") as demo:
        out, error = demo.communicate(timeout=TIMEOUT_S)
    assert (demo.returncode, error) == (ExitCode.OK, ""), out
    runtime_dir = re.search(r"export INFINISWAP_RUNTIME_DIR=(\S+)", out)
    uri = re.search(r"nbdinfo '(\S+)'", out)
    stop = re.search(r"End it all with: (\S+)", out)
    assert runtime_dir
    assert uri
    assert stop
    try:
        listed = subprocess.run(
            [*INFINISWAP, "device", "list", "-n", "-o", "name,state", "--runtime-dir", runtime_dir[1]],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert listed.stdout == "demo  serving\n"
        size = subprocess.run(["nbdinfo", "--size", uri[1]], capture_output=True, text=True, timeout=30, check=True)
        assert int(size.stdout) == 16 << 20
    finally:
        subprocess.run([stop[1]], timeout=TIMEOUT_S, check=True)
