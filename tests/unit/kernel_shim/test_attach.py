"""Attach leaves a whole device or none, whatever goes wrong and wherever it is killed; detach swaps off first."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infiniswap.kernel_shim import attach, detach, journal, swap, users
from infiniswap.kernel_shim.attach import AttachRequest, KernelConnections
from infiniswap.kernel_shim.journal import Note
from infiniswap.kernel_shim.sysfs import Identifier, read_nbd_device
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_kernel import FakeKernel

SIZE_BYTES = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """A machine with module nbd and no devices."""
    fake = FakeKernel(tmp_path)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def connections() -> Iterator[KernelConnections]:
    """Two connections, as a service gives them."""
    pairs = [socket.socketpair() for _ in range(2)]
    yield KernelConnections(tuple(pair[0] for pair in pairs), SIZE_BYTES, 0x1ED)
    for pair in pairs:
        for sock in pair:
            sock.close()


def request(kernel: FakeKernel, **options: Any) -> AttachRequest:
    """A request for device a."""
    options.setdefault("connections", 2)
    return AttachRequest(name="a", socket_path=Path("/s"), runtime_dir=kernel.root / "run", **options)


def run(kernel: FakeKernel, given: KernelConnections, /, **options: Any) -> attach.Attached:
    """Attach device a."""
    return attach.attach(request(kernel, **options), negotiated=lambda _: given, root=kernel.root)


def connected(kernel: FakeKernel, index: int = 0) -> bool:
    """Whether nbd{index} is connected."""
    device = read_nbd_device(kernel.root / f"sys/block/nbd{index}")
    return device is not None and device.connected


def test_attach(kernel: FakeKernel, connections: KernelConnections) -> None:
    """The kernel gets all sockets, size, flags, time-outs and the identifier; our side of the sockets is closed."""
    done = run(kernel, connections, index=3, timeout_s=7, dead_conn_timeout_s=70)
    assert done.device.path == "/dev/nbd3"
    assert kernel.connects == [
        {
            "sockets": 2,
            "index": 3,
            "size_bytes": SIZE_BYTES,
            "server_flags": 0x1ED,
            "timeout_s": 7,
            "dead_conn_timeout_s": 70,
            "identifier": "infiniswap:a:2:/s",
        }
    ]
    assert all(sock.fileno() == -1 for sock in connections.sockets)
    assert journal.read(kernel.root / "run", "a") == Note("attached", "infiniswap:a:2:/s", 3)


def test_attached_twice(kernel: FakeKernel, connections: KernelConnections) -> None:
    """A second attach is refused, and does not touch the first."""
    run(kernel, connections)
    with pytest.raises(UserError, match="attached already, as /dev/nbd0") as caught:
        run(kernel, connections)
    assert caught.value.code == ExitCode.IN_USE
    assert connected(kernel)


def test_used_by_others(kernel: FakeKernel, connections: KernelConnections, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another client is connected to is not attached, unless its connections just end."""
    monkeypatch.setattr(users, "SETTLE_TIMEOUT_S", 0.1)
    kernel.add(7, size_bytes=SIZE_BYTES, backend=None)

    def run_beside(open_connections: Callable[[], int]) -> attach.Attached:
        given = request(kernel, swap=False)
        return attach.attach(
            given, negotiated=lambda _: connections, open_connections=open_connections, root=kernel.root
        )

    with pytest.raises(UserError, match=r"4 NBD connections are open \(/dev/nbd7 attached by others") as caught:
        run_beside(lambda: 4)
    assert caught.value.code == ExitCode.IN_USE
    assert not kernel.connects
    monkeypatch.setattr(users, "SETTLE_TIMEOUT_S", 60)
    left = [4, 1, 0]
    assert run_beside(lambda: left.pop(0)).device.path == "/dev/nbd0"


def test_swap_on_what_may_be_held_already(kernel: FakeKernel, connections: KernelConnections) -> None:
    """Where the service cannot be asked, a kernel device of others with the same size keeps swap from being made."""
    kernel.add(7, size_bytes=SIZE_BYTES, backend=None)
    with pytest.raises(UserError, match="nbd-client -d /dev/nbd7"):
        run(kernel, connections, swap=True)
    assert not kernel.connects


@pytest.mark.parametrize(
    ("deadline_ms", "timeout_s"), [(None, 10), (1000, 10), (5000, 10), (5001, 11), (600_000, 1200)]
)
def test_timeout_for(deadline_ms: int | None, timeout_s: int) -> None:
    """The default leaves the service twice its deadline; one that leaves it less than once is refused."""
    assert attach.timeout_for(deadline_ms) == timeout_s
    given = AttachRequest("a", Path("/s"), Path("/r"), timeout_s=timeout_s, dead_conn_timeout_s=9999)
    attach.check(dataclasses.replace(given, deadline_ms=deadline_ms))
    if deadline_ms is not None:
        with pytest.raises(UserError, match=f"{timeout_s} is right"):
            attach.check(dataclasses.replace(given, deadline_ms=deadline_ms, timeout_s=deadline_ms // 1000))


def test_one_at_a_time(kernel: FakeKernel, connections: KernelConnections) -> None:
    """While one attach is under way another one of the name is turned away."""
    with journal.locked(kernel.root / "run", "a"), pytest.raises(UserError, match="under way"):
        run(kernel, connections)


@pytest.mark.parametrize("failure", [UserError("no"), KeyboardInterrupt()])
def test_failure_after_connect(kernel: FakeKernel, connections: KernelConnections, failure: BaseException) -> None:
    """An error or Ctrl-C after CONNECT leaves no device and no note."""
    kernel.fail_with = failure
    with pytest.raises(type(failure)):
        run(kernel, connections)
    assert not connected(kernel)
    assert journal.read(kernel.root / "run", "a") is None


def test_foreign_data(kernel: FakeKernel, connections: KernelConnections, monkeypatch: pytest.MonkeyPatch) -> None:
    """Foreign data on the device: refused, disconnected, mkswap never run."""

    def refuse(_device: object) -> None:
        raise UserError("carries ext4", ExitCode.REFUSED)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("mkswap was run")

    monkeypatch.setattr(swap, "check_empty", refuse)
    monkeypatch.setattr(swap, "start", never)
    with pytest.raises(UserError, match="carries ext4"):
        run(kernel, connections, swap=True)
    assert not connected(kernel)


def test_killed_half_way(kernel: FakeKernel, connections: KernelConnections) -> None:
    """What an attach that was killed after CONNECT left is removed by the next one, which says so."""
    identifier = str(Identifier("a", 2, "/s"))
    with journal.locked(kernel.root / "run", "a"):
        journal.write(kernel.root / "run", "a", Note("connecting", identifier))
    kernel.add(5, size_bytes=SIZE_BYTES, backend=identifier)
    kernel.add(6, size_bytes=SIZE_BYTES, backend=str(Identifier("a", 2, "/elsewhere")))
    said: list[str] = []
    attach.attach(request(kernel), say=said.append, negotiated=lambda _: connections, root=kernel.root)
    assert kernel.disconnects == [5]
    assert "nbd5" in said[0]
    assert connected(kernel, 0)
    assert connected(kernel, 6)


def test_killed_after_swapon(kernel: FakeKernel) -> None:
    """An attach that was killed when swap was on already is not undone: pages may be out."""
    identifier = str(Identifier("a", 2, "/s"))
    with journal.locked(kernel.root / "run", "a"):
        journal.write(kernel.root / "run", "a", Note("connecting", identifier))
    kernel.add(5, size_bytes=SIZE_BYTES, backend=identifier)
    kernel.swap(5, used_bytes=0)
    assert attach.clean_up("a", kernel.root / "run", kernel.root) is None
    assert kernel.disconnects == []
    assert journal.read(kernel.root / "run", "a") == Note("attached", identifier, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"connections": 0},
        {"connections": 17},
        {"timeout_s": 0},
        {"timeout_s": 10, "dead_conn_timeout_s": 10},
        {"priority": 5},
        {"swap": True, "priority": 40000},
    ],
)
def test_bad_options(kernel: FakeKernel, connections: KernelConnections, options: dict[str, Any]) -> None:
    """Values out of range are refused before anything is done."""
    with pytest.raises(UserError):
        run(kernel, connections, **options)
    assert not (kernel.root / "run").exists()


def test_service_not_running(kernel: FakeKernel) -> None:
    """Nobody behind the socket: one line that says how to start it; no device."""
    with pytest.raises(UserError, match="infiniswap device serve a") as caught:
        attach.attach(request(kernel), root=kernel.root)
    assert caught.value.code == ExitCode.NOT_FOUND
    assert kernel.connects == []


def swapoff(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, *, works: bool) -> list[int]:
    """Let swapoff work or fail; returns the list that records the disconnects seen at its time."""
    seen: list[int] = []

    def stop(*_: object, **__: object) -> None:
        seen.append(len(kernel.disconnects))
        if not works:
            raise UserError("swapoff failed", ExitCode.FAILED)
        kernel.swapoff()

    monkeypatch.setattr(swap, "stop", stop)
    return seen


def leave(kernel: FakeKernel, *, served: bool = True) -> detach.Detached:
    """Detach device a."""
    return detach.detach("a", kernel.root / "run", served=served, root=kernel.root)


def test_detach(kernel: FakeKernel, connections: KernelConnections, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swapoff comes before the disconnect; afterwards neither device nor note are left."""
    run(kernel, connections)
    kernel.swap(0, used_bytes=1 << 20)
    seen = swapoff(kernel, monkeypatch, works=True)
    assert leave(kernel) == detach.Detached(0, swapped_off=True)
    assert seen == [0]
    assert not connected(kernel)
    assert journal.read(kernel.root / "run", "a") is None
    with pytest.raises(UserError, match="not attached"):
        leave(kernel)


def test_detach_when_swapoff_fails(
    kernel: FakeKernel, connections: KernelConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapoff failed: nothing is disconnected."""
    run(kernel, connections)
    kernel.swap(0, used_bytes=1 << 20)
    swapoff(kernel, monkeypatch, works=False)
    with pytest.raises(UserError, match="swapoff failed"):
        leave(kernel)
    assert connected(kernel)
    assert kernel.disconnects == []


def test_detach_without_service(
    kernel: FakeKernel, connections: KernelConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are out and nobody serves: swapoff is not even begun, for it would hang."""
    run(kernel, connections)
    kernel.swap(0, used_bytes=1 << 20)
    seen = swapoff(kernel, monkeypatch, works=True)
    with pytest.raises(UserError, match="does not run, or does not answer: start it") as caught:
        leave(kernel, served=False)
    assert caught.value.code == ExitCode.REFUSED
    assert seen == []


@pytest.mark.parametrize("use", ["mount", "holder"])
def test_detach_in_use(kernel: FakeKernel, connections: KernelConnections, use: str) -> None:
    """A mounted device, or one below another, stays."""
    run(kernel, connections)
    if use == "mount":
        kernel.mount(0, "/mnt")
    else:
        (kernel.root / "sys/block/nbd0/holders/dm-0").mkdir()
    with pytest.raises(UserError) as caught:
        leave(kernel)
    assert caught.value.code == ExitCode.IN_USE
    assert connected(kernel)


def test_detach_cleans_up(kernel: FakeKernel) -> None:
    """Detach after an attach that was killed in the middle takes the left-over away."""
    identifier = str(Identifier("a", 2, "/s"))
    with journal.locked(kernel.root / "run", "a"):
        journal.write(kernel.root / "run", "a", Note("connecting", identifier))
    assert detach.is_attached("a", kernel.root / "run", kernel.root)
    kernel.add(1, size_bytes=SIZE_BYTES, backend=identifier)
    assert leave(kernel) == detach.Detached(1, swapped_off=False)
    assert not detach.is_attached("a", kernel.root / "run", kernel.root)
