"""A limit on the daemon's cgroup, or on any above it, v1 or v2, bounds what is taken for the host's memory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from infiniswap.daemon import monitor
from infiniswap.daemon.cgroup import dies_as_a_whole, pressure_files, read_groups
from infiniswap.policy.headroom import GroupMemory

GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A process in /system/daemon of v2, and in /job of the memory controller of v1."""
    file = tmp_path / "own"
    file.write_text("4:cpu,memory:/job\n1:name=systemd:/memory\n0::/system/daemon\n")
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """v2 alone at the root."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "cgroup.controllers").write_text("memory\n")
    return folder


def group(folder: Path, maximum: str, current: int, inactive: int = 0, active: int = 0, shared: int = 0) -> None:
    """A cgroup of v2 with these numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{maximum}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\nshmem {shared}\ninactive_file {inactive}\nactive_file {active}\n",
    )


def group_v1(folder: Path, limit: int, usage: int, inactive: int = 0, shared: int = 0) -> None:
    """A cgroup of v1; its own counts are not those with the groups below."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(
        f"inactive_file 1\nshmem 1\ntotal_inactive_file {inactive}\ntotal_active_file 0\ntotal_shmem {shared}\n"
    )


def test_every_limit_counts(root: Path, own: Path) -> None:
    """The limit may stand anywhere above, the own one first; what has none is left out."""
    group(root / "system" / "daemon", "max", GIB)
    assert read_groups(own, root) == ()
    group(root / "system", str(4 * GIB), 3 * GIB, GIB, shared=7)
    assert read_groups(own, root) == (GroupMemory(4 * GIB, 2 * GIB, 7),)
    group(root / "system" / "daemon", str(8 * GIB), 7 * GIB)
    assert read_groups(own, root) == (GroupMemory(8 * GIB, GIB, 0), GroupMemory(4 * GIB, 2 * GIB, 7))


def test_the_throttling_limit_counts(root: Path, own: Path) -> None:
    """Above memory.high everybody in the group is held up: lent memory must not bring it there."""
    group(root / "system", str(4 * GIB), GIB)
    (root / "system" / "memory.high").write_text(f"{2 * GIB}\n")
    assert read_groups(own, root) == (GroupMemory(2 * GIB, GIB, 0),)
    (root / "system" / "memory.high").write_text("max\n")
    assert read_groups(own, root) == (GroupMemory(4 * GIB, 3 * GIB, 0),)


def test_v1_limits_count(tmp_path: Path, own: Path) -> None:
    """Beside a v2 without the memory controller: the counts with the groups below are those that the limit bounds."""
    root = tmp_path / "both"
    (root / "unified").mkdir(parents=True)
    (root / "unified" / "cgroup.controllers").write_text("hugetlb\n")
    group_v1(root / "memory", 9223372036854771712, GIB)
    assert read_groups(own, root) == ()
    group_v1(root / "memory" / "job", 2 * GIB, GIB, inactive=64 * MIB, shared=5 * MIB)
    assert read_groups(own, root) == (GroupMemory(2 * GIB, GIB + 64 * MIB, 5 * MIB),)


def test_a_container_on_v1_finds_its_own_group(tmp_path: Path, own: Path) -> None:
    """There the path is the host's, and the own group is mounted as the root."""
    root = tmp_path / "container"
    group_v1(root / "memory", GIB, GIB // 4)
    assert read_groups(own, root) == (GroupMemory(GIB, GIB - GIB // 4, 0),)


def test_file_pages_are_given_up_before_anything_is_killed(root: Path, own: Path) -> None:
    """All that nobody used lately, and half of the others; never more than the limit, never less than nothing."""
    group(root / "system", str(GIB), GIB, 256 * MIB, 128 * MIB)
    assert read_groups(own, root)[0].available_bytes == 320 * MIB
    group(root / "system", str(GIB), 2 * GIB)
    assert read_groups(own, root)[0].available_bytes == 0
    group(root / "system", str(GIB), GIB, 5 * GIB)
    assert read_groups(own, root)[0].available_bytes == GIB


@pytest.mark.parametrize("content", ["", "4:memory:/x\n", "0::/../../sibling\n", "0::/system/daemon\n", "garbage\n"])
def test_no_limit_where_nothing_is_to_be_read(tmp_path: Path, root: Path, content: str) -> None:
    """A foreign namespace, missing files, garbage: no limit rather than a failure."""
    own = tmp_path / "own"
    own.write_text(content)
    group(root / "system", "garbage", 1)
    group(root / "system" / "daemon", str(GIB), 1)
    (root / "system" / "daemon" / "memory.stat").write_text("what is this\n")
    assert read_groups(own, root) == ()
    assert read_groups(tmp_path / "none", root) == ()


def test_the_host_is_no_larger_than_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the monitor sees is the smallest of all."""
    groups = (GroupMemory(5 * MIB, 4 * MIB, 0), GroupMemory(6 * MIB, 3 * MIB, 0))
    monkeypatch.setattr(monitor, "read_groups", lambda **_: groups)
    memory = monitor.HostReader(keep_open=False)()
    assert (memory.total_bytes, memory.available_bytes, memory.groups) == (5 * MIB, 3 * MIB, groups)


def test_pressure_of_limited_groups(root: Path, own: Path) -> None:
    """Only groups that can be short of memory are watched, and only where the kernel has a file for it."""
    group(root / "system", str(GIB), MIB)
    group(root / "system" / "daemon", "max", MIB)
    for folder in (root, root / "system" / "daemon"):
        (folder / "memory.pressure").write_text("")
    assert pressure_files(own, root) == []
    (root / "system" / "memory.pressure").write_text("")
    assert pressure_files(own, root) == [root / "system" / "memory.pressure"]


def test_groups_that_die_as_a_whole(root: Path, own: Path) -> None:
    """memory.oom.group of the own group or any above it means that one victim takes all with it."""
    group(root / "system" / "daemon", "max", MIB)
    assert not dies_as_a_whole(own, root)
    (root / "system" / "daemon" / "memory.oom.group").write_text("0\n")
    assert not dies_as_a_whole(own, root)
    (root / "system" / "memory.oom.group").write_text("1\n")
    assert dies_as_a_whole(own, root)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_limit_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """With no descriptor free a limit is not taken for absent, which would lend what the group does not have."""

    def refuse(*_: object, **__: object) -> str:
        raise OSError(number, "too many open files")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(OSError):
        read_groups(tmp_path, tmp_path)
