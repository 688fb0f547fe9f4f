"""A disk is made slow by whichever version of control groups the machine has, or it is said why it cannot be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infiniswap.shared.errors import UserError
from scripts.benchmark import throttle
from scripts.benchmark.machine import disk_in_words
from scripts.benchmark.throttle import Throttle


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of number 8:0 below everything, and control groups in a folder."""
    node = tmp_path / "sda"
    node.mkdir()
    (node / "dev").write_text("8:0\n")
    monkeypatch.setattr(throttle, "block_device", lambda _: node)
    monkeypatch.setattr(throttle, "_ROOT", tmp_path / "cgroup")
    (tmp_path / "cgroup").mkdir()


@pytest.mark.usefixtures("disk")
def test_version_2(tmp_path: Path) -> None:
    """One line has all limits; a command is in the group before it begins."""
    root = tmp_path / "cgroup"
    (root / "cgroup.controllers").write_text("io\n")
    group = Throttle("slow", tmp_path, writes_per_s=120, bytes_per_s=1000)
    assert (root / "slow" / "io.max").read_text() == "8:0 wiops=120 wbps=1000 rbps=1000"
    done = subprocess.run(group.command(["echo", "done"]), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "done\n"
    assert (root / "slow" / "cgroup.procs").read_text().strip().isdigit()


@pytest.mark.usefixtures("disk")
def test_version_1(tmp_path: Path) -> None:
    """A file for each limit."""
    (tmp_path / "cgroup" / "blkio").mkdir()
    group = Throttle("slow", tmp_path, writes_per_s=120, bytes_per_s=1000)
    folder = tmp_path / "cgroup" / "blkio" / "slow"
    assert (folder / "blkio.throttle.write_iops_device").read_text() == "8:0 120"
    assert (folder / "blkio.throttle.write_bps_device").read_text() == "8:0 1000"
    group.add(77)
    assert (folder / "cgroup.procs").read_text() == "77"


@pytest.mark.usefixtures("disk")
def test_without_a_controller(tmp_path: Path) -> None:
    """One line with the reason, and no group is left."""
    with pytest.raises(UserError, match="cannot make the disk slow"):
        Throttle("slow", tmp_path, writes_per_s=120, bytes_per_s=1000)
    assert list((tmp_path / "cgroup").iterdir()) == []


def test_no_disk_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlay has none."""
    monkeypatch.setattr(throttle, "block_device", lambda _: None)
    with pytest.raises(UserError, match="lies on no disk"):
        Throttle("slow", tmp_path, writes_per_s=120, bytes_per_s=1000)


def test_a_disk_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file system, its name, and what the kernel says of it; what is none is said to be none."""
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "rotational").write_text("0\n")
    monkeypatch.setattr("scripts.benchmark.machine.block_device", lambda _: tmp_path)
    assert f" on {tmp_path.name}, not rotational" in disk_in_words(tmp_path)
    (tmp_path / "queue" / "rotational").write_text("1\n")
    assert f" on {tmp_path.name}, rotational" in disk_in_words(tmp_path)
    monkeypatch.setattr("scripts.benchmark.machine.block_device", lambda _: None)
    assert "no disk of this machine" in disk_in_words(tmp_path)
