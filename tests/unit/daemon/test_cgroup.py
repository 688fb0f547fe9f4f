"""A limit on the daemon's cgroup, or on any above it, bounds what is taken for the host's memory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from infiniswap.daemon import monitor
from infiniswap.daemon.cgroup import CgroupMemory, read_cgroup_memory

GIB = 1 << 30


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A process in /system/daemon."""
    file = tmp_path / "own"
    file.write_text("4:memory:/elsewhere\n0::/system/daemon\n")
    return file


def group(folder: Path, maximum: str, current: int, inactive_file: int = 0) -> None:
    """A cgroup with these numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{maximum}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")


def test_the_tightest_ancestor_counts(tmp_path: Path, own: Path) -> None:
    """The limit may stand anywhere above; unused file pages count as free."""
    root = tmp_path / "root"
    group(root / "system" / "daemon", "max", GIB)
    assert read_cgroup_memory(own, root) is None
    group(root / "system", str(4 * GIB), 3 * GIB, GIB)
    assert read_cgroup_memory(own, root) == CgroupMemory(4 * GIB, 2 * GIB)
    group(root / "system" / "daemon", str(8 * GIB), 7 * GIB)
    assert read_cgroup_memory(own, root) == CgroupMemory(4 * GIB, GIB)


def test_a_group_beyond_its_limit_has_nothing(tmp_path: Path, own: Path) -> None:
    """Never negative, and never more than the limit."""
    root = tmp_path / "root"
    group(root / "system", str(GIB), 2 * GIB)
    assert read_cgroup_memory(own, root) == CgroupMemory(GIB, 0)
    group(root / "system", str(GIB), GIB, 5 * GIB)
    assert read_cgroup_memory(own, root) == CgroupMemory(GIB, GIB)


@pytest.mark.parametrize("content", ["", "4:memory:/x\n", "0::/../../sibling\n", "0::/system/daemon\n"])
def test_no_limit_where_nothing_is_to_be_read(tmp_path: Path, content: str) -> None:
    """cgroup v1, a foreign namespace, missing files, garbage: no limit rather than a failure."""
    own = tmp_path / "own"
    own.write_text(content)
    root = tmp_path / "root"
    (root / "system").mkdir(parents=True)
    (root / "system" / "memory.max").write_text("garbage\n")
    assert read_cgroup_memory(own, root) is None
    assert read_cgroup_memory(tmp_path / "none", root) is None


def test_the_host_is_no_larger_than_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the monitor sees is the smaller of both."""
    monkeypatch.setattr(monitor, "read_cgroup_memory", lambda: CgroupMemory(5 << 20, 3 << 20))
    memory = monitor.read_host_memory()
    assert (memory.total_bytes, memory.available_bytes) == (5 << 20, 3 << 20)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_limit_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """With no descriptor free a limit is not taken for absent, which would lend what the group does not have."""

    def refuse(*_: object, **__: object) -> str:
        raise OSError(number, "too many open files")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(OSError):
        read_cgroup_memory(tmp_path, tmp_path)
