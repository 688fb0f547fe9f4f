"""zswap is switched on for a swap area, told from what, and put back as it was, wherever an attach is killed."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from infiniswap.cli import device_attach
from infiniswap.kernel_shim import attach, detach, swap, zswap
from infiniswap.kernel_shim.attach import AttachRequest, KernelConnections
from infiniswap.kernel_shim.zswap import Change, Note, Wanted
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_kernel import FakeKernel

DEBIAN = {
    "enabled": "N",
    "compressor": "lzo",
    "zpool": "zsmalloc",
    "max_pool_percent": "20",
    "accept_threshold_percent": "90",
    "shrinker_enabled": "N",
}
A, B = "infiniswap:a:1:/s", "infiniswap:b:1:/t"


class Killed(BaseException):
    """The process ends here."""


class FakeZswap:
    """The parameters, and how the kernel takes what is written. die_after: writes that a process lives to make."""

    def __init__(self, kernel: FakeKernel, values: dict[str, str]) -> None:
        self.root = kernel.root
        self.folder = kernel.root / "sys/module/zswap/parameters"
        self.folder.mkdir(parents=True)
        self.compressors = {"zstd", "lz4", "lzo", "lzo-rle"}
        self.die_after: int | None = None
        self.refuses: set[str] = set()
        for name, value in values.items():
            (self.folder / name).write_text(value + "\n")

    def store(self, name: str, value: str, root: Path) -> None:
        """Stands in for zswap.store."""
        assert root == self.root
        if self.die_after is not None:
            if self.die_after == 0:
                raise Killed
            self.die_after -= 1
        if name in self.refuses or (name == "compressor" and self.on and value not in self.compressors):
            raise OSError(errno.ENOENT, "No such file or directory")
        (self.folder / name).write_text(value + "\n")

    @property
    def on(self) -> bool:
        """Whether it is on: before, the kernel does not look at a compressor's name."""
        return (self.folder / "enabled").read_text() == "Y\n"

    def values(self) -> dict[str, str]:
        """As they are."""
        found = zswap.parameters(self.root)
        assert found is not None
        return found


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """A machine with module nbd; mkswap and swapon do nothing but what the kernel shows of them."""
    fake = FakeKernel(tmp_path)
    fake.install(monkeypatch)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(swap, "check_empty", lambda _device: None)
    monkeypatch.setattr(swap, "start", lambda device, **_: fake.swap(device.index, 0))
    monkeypatch.setattr(swap, "stop", lambda *_, **__: fake.swapoff())
    return fake


@pytest.fixture
def host(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> FakeZswap:
    """The same with zswap as Debian's kernel has it."""
    fake = FakeZswap(kernel, DEBIAN)
    monkeypatch.setattr(zswap, "store", fake.store)
    return fake


@pytest.fixture
def connections() -> Iterator[KernelConnections]:
    """A connection, as a service gives it."""
    ours, theirs = socket.socketpair()
    yield KernelConnections((ours,), 1 << 20, 0x1ED)
    ours.close()
    theirs.close()


def request(kernel: FakeKernel, wanted: Wanted | None = None) -> AttachRequest:
    """Device a as swap behind zswap."""
    return AttachRequest("a", Path("/s"), kernel.root / "run", connections=1, swap=True, zswap=wanted or Wanted())


def run(kernel: FakeKernel, given: KernelConnections, wanted: Wanted | None = None) -> str:
    """Attach it; what was said."""
    said: list[str] = []
    attach.attach(request(kernel, wanted), negotiated=lambda _: given, say=said.append, root=kernel.root)
    return "\n".join(said)


def take_away(kernel: FakeKernel) -> str:
    """Detach it; what was said."""
    said: list[str] = []
    detach.detach("a", kernel.root / "run", served=True, say=said.append, root=kernel.root)
    return "\n".join(said)


def test_there_and_back(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """Attach tells each change and what it was; detach leaves all as before, and no note."""
    assert run(kernel, connections) == (
        "zswap: compressor zstd (was lzo), enabled Y (was N), shrinker_enabled Y (was N); "
        "as it was: max_pool_percent 20"
    )
    assert host.values() == DEBIAN | {"enabled": "Y", "compressor": "zstd", "shrinker_enabled": "Y"}
    assert take_away(kernel) == (
        "zswap: shrinker_enabled N again (was Y), compressor lzo again (was zstd), enabled N again (was Y)"
    )
    assert host.values() == DEBIAN
    assert not (kernel.root / "run" / zswap.NOTE_NAME).exists()


def test_what_the_kernel_lacks(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """The next compressor is taken; a parameter that this kernel does not have is not missed."""
    host.compressors = {"lzo", "lzo-rle"}
    (host.folder / "shrinker_enabled").unlink()
    (host.folder / "zpool").unlink()
    assert "compressor lzo-rle (was lzo)" in run(kernel, connections)
    take_away(kernel)
    assert host.values()["compressor"] == "lzo"
    assert host.values()["enabled"] == "N"


def test_no_compressor_of_ours(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """Where the kernel takes none of them it keeps its own, and nothing of the attempts is put back later."""
    host.compressors = {"lzo"}
    assert "as it was: compressor lzo" in run(kernel, connections)
    assert "compressor" not in zswap.read_note(kernel.root / "run").changes


def test_asked_for(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """A compressor and a share of memory of the user's own."""
    said = run(kernel, connections, Wanted("lz4", 35))
    assert "compressor lz4 (was lzo)" in said
    assert "max_pool_percent 35 (was 20)" in said
    take_away(kernel)
    assert host.values() == DEBIAN


def test_a_compressor_that_is_not_there(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """Refused in one line; the device is taken away again, and zswap is as it was."""
    with pytest.raises(UserError, match="no compressor 'snappy'") as caught:
        run(kernel, connections, Wanted("snappy"))
    assert caught.value.code == ExitCode.REFUSED
    assert kernel.disconnects == [0]
    assert host.values() == DEBIAN
    assert not (kernel.root / "run" / zswap.NOTE_NAME).exists()


def test_cannot_be_written(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """A container with /sys read-only: one line, and nothing is left."""
    host.refuses = set(DEBIAN)
    with pytest.raises(UserError, match="zswap cannot be set up"):
        run(kernel, connections)
    assert kernel.disconnects == [0]
    assert not (kernel.root / "run" / zswap.NOTE_NAME).exists()


def test_no_zswap(kernel: FakeKernel, connections: KernelConnections) -> None:
    """A kernel without it: refused before anything is touched."""
    with pytest.raises(UserError, match="has no zswap: boot one that has") as caught:
        run(kernel, connections)
    assert caught.value.code == ExitCode.REFUSED
    assert not kernel.connects


def test_somebody_elses_choice(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """Zswap that is on keeps its compressor; only the shrinker, without which nothing reaches the device, is added."""
    for name, value in (("enabled", "Y"), ("compressor", "lz4")):
        (host.folder / name).write_text(value + "\n")
    assert run(kernel, connections).startswith("zswap: shrinker_enabled Y (was N); as it was: compressor lz4")
    assert take_away(kernel) == "zswap: shrinker_enabled N again (was Y)"
    assert host.values()["enabled"] == "Y"


def test_changed_since(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """What somebody has set meanwhile stays, and is said to."""
    run(kernel, connections)
    (host.folder / "compressor").write_text("lz4\n")
    assert "compressor stays lz4, which somebody has set since" in take_away(kernel)
    assert host.values() == DEBIAN | {"compressor": "lz4"}


def test_two_devices(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """The first to go leaves zswap on for the other; the last puts it back as it was before both."""
    run(kernel, connections)
    kernel.add(5, size_bytes=1 << 20, backend=B)
    assert zswap.join(B, Wanted("lz4"), kernel.root / "run", kernel.root).startswith("zswap: compressor lz4 (was zstd)")
    assert take_away(kernel) == ""
    assert host.values() == DEBIAN | {"enabled": "Y", "compressor": "lz4", "shrinker_enabled": "Y"}
    told = zswap.leave(kernel.root / "run", B, kernel.root)
    assert told is not None
    assert "compressor lzo again (was lz4)" in told
    assert host.values() == DEBIAN


def test_gone_without_detach(kernel: FakeKernel, host: FakeZswap, connections: KernelConnections) -> None:
    """A device that nbd-client -d took away is not waited for: the next detach finds nothing, and puts zswap back."""
    run(kernel, connections)
    kernel.swapoff()
    kernel.disconnect(0, exclusive=True)
    with pytest.raises(UserError, match="not attached"):
        take_away(kernel)
    assert host.values() == DEBIAN


@pytest.mark.parametrize("writes", range(3))
def test_killed_while_switching_on(
    kernel: FakeKernel, host: FakeZswap, connections: KernelConnections, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Killed before any of the writes: the next detach of the same name leaves no device and zswap as it was."""
    monkeypatch.setattr(attach, "_undo", lambda *_: None)  # a killed process undoes nothing
    host.die_after = writes
    with pytest.raises(Killed):
        run(kernel, connections)
    host.die_after = None
    take_away(kernel)
    assert kernel.disconnects == [0]
    assert host.values() == DEBIAN
    assert not (kernel.root / "run" / zswap.NOTE_NAME).exists()


@pytest.mark.parametrize("writes", range(3))
def test_killed_while_putting_back(
    kernel: FakeKernel, host: FakeZswap, connections: KernelConnections, writes: int
) -> None:
    """Killed in the middle of a detach: the next attach knows how zswap was at first, and its detach puts that back."""
    run(kernel, connections)
    host.die_after = writes
    with pytest.raises(Killed):
        take_away(kernel)
    host.die_after = None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kernel.connects.clear()
        attach.attach(
            AttachRequest("a", Path("/s"), kernel.root / "run", index=3, connections=1, swap=True, zswap=Wanted()),
            negotiated=lambda _: KernelConnections((ours,), 1 << 20, 0x1ED),
            root=kernel.root,
        )
    assert zswap.read_note(kernel.root / "run").changes["enabled"] == Change("N", "Y")
    take_away(kernel)
    assert host.values() == DEBIAN


def test_a_torn_note(kernel: FakeKernel, host: FakeZswap) -> None:
    """A note that cannot be read counts as none, and is no traceback."""
    del host
    for text in ("", "[]", '{"users": 3, "changes": {}}', '{"users": [], "changes": {"enabled": "Y"}}'):
        (kernel.root / "run" / zswap.NOTE_NAME).write_text(text)
        assert zswap.read_note(kernel.root / "run") == Note()
        assert zswap.leave(kernel.root / "run", None, kernel.root) is None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--zswap-compressor", "lz4"], "are for --zswap only"),
        (["--zswap"], "--zswap is for --swap only"),
        (["--swap", "--zswap", "--zswap-max-pool-percent", "0"], "between 1 and 100"),
    ],
)
def test_options(tmp_path: Path, options: list[str], line: str) -> None:
    """What does not go together is one line."""
    words = ["a", "--socket", "/nowhere", "--runtime-dir", str(tmp_path), *options]
    result = CliRunner().invoke(device_attach.command, words)
    assert isinstance(result.exception, UserError)
    assert line in str(result.exception)
