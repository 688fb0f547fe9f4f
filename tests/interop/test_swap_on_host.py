"""scripts/bench --swap at native speed: a program swaps to the device (nbdfuse, loop), and nothing is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_for

DEADLINE_S = 110

pytestmark = pytest.mark.timeout(DEADLINE_S + 20)


def bench(root: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, small; its temporary files are in folder."""
    command = [sys.executable, "-m", "scripts.benchmark.swap", "--data", "32MiB", "--runtime-s", "0.5", "--no-plot"]
    return subprocess.Popen(
        [*command, "--directory", str(folder), "--output", str(folder / "out"), *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def loops_in(folder: Path) -> list[str]:
    """Loop devices whose file lies in folder."""
    listing = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True, check=True
    )
    return [line for line in listing.stdout.splitlines() if line.startswith(str(folder))]


def check_nothing_left(folder: Path, pid: int) -> None:
    """No swap area, no loop device, no mount, no control group, no file."""
    assert len(Path("/proc/swaps").read_text().splitlines()) == 1
    assert loops_in(folder) == []
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/isw-bench-{pid}"))
    assert [path.name for path in folder.iterdir() if path.name != "out"] == []


def test_page_faults_come_from_remote_memory(root: Path, short_path: Path) -> None:
    """With half of its memory a program pages in and out, every page right, and figures are written."""
    process = bench(root, short_path, "--media", "infiniswap", "--jobs", "touch,memcached", "--percent", "50")
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    sample, load = json.loads((short_path / "out" / "swap.json").read_text())["samples"]
    assert sample["pages_in"] > 50, said
    assert sample["figures"]["p50_us"] > 1, said
    assert load["figures"]["operations"] > 100, said
    assert "pages read: remote" in said
    check_nothing_left(short_path, process.pid)


def test_interrupted(root: Path, short_path: Path) -> None:
    """SIGTERM while a program swaps: everything that was set up is taken down again."""
    process = bench(root, short_path, "--media", "disk", "--jobs", "memcached", "--percent", "50", "--runtime-s", "60")
    swaps = Path("/proc/swaps")
    wait_for(lambda: process.poll() is not None or len(swaps.read_text().splitlines()) > 1, 60, "swap being used")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    check_nothing_left(short_path, process.pid)


def test_wrong_arguments(root: Path, short_path: Path) -> None:
    """One line, nothing set up."""
    for arguments, words in (
        (["--media", "tape"], "no medium 'tape'"),
        (["--jobs", "sleep"], "no job 'sleep'"),
        (["--data", "1MiB"], "--data must be at least"),
        (["--percent", "5"], "--percent"),
        (["--redraw", "/nowhere.json"], "cannot read /nowhere.json"),
    ):
        process = bench(root, short_path, *arguments)
        said, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode != 0
        assert words in said
        assert said.count("\n") <= 2, said  # one line may tell that there is no zram
        assert "Traceback" not in said
    check_nothing_left(short_path, process.pid)
