"""A restarted service replaces all dead connections of its kernel device and no others, and gives up in time."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infiniswap.kernel_shim import reattach as module
from infiniswap.kernel_shim.attach import KernelConnections
from infiniswap.kernel_shim.reattach import (
    Reattached,
    ReattachError,
    ReconfigureError,
    kernel_timeout_s,
    reattach,
)
from infiniswap.kernel_shim.sysfs import Identifier
from infiniswap.shared.errors import UserError
from tests.support.fake_kernel import FakeKernel

SIZE_BYTES = 1 << 20
IDENTIFIER = Identifier("a", 3, "/s")


class Service:
    """Hands out connections; the kernel's RECONFIGURE takes as many of them as there are dead ones."""

    def __init__(self, dead: int) -> None:
        self.dead = dead
        self.appear_later: list[int] = []
        self.offers: list[int] = []
        self.identifiers: set[str] = set()
        self.size_bytes = SIZE_BYTES
        self.failure: Exception | None = None
        self._pairs: list[socket.socket] = []

    async def negotiate(self, path: Path, name: str, connections: int, _timeout_s: float = 1) -> KernelConnections:
        """Stands in for attach.negotiate."""
        assert (str(path), name) == ("/s", "a")
        self.offers.append(connections)
        pairs = [socket.socketpair() for _ in range(connections)]
        self._pairs += [sock for pair in pairs for sock in pair]
        return KernelConnections(tuple(pair[0] for pair in pairs), self.size_bytes, 0)

    def reconfigure(self, index: int, sockets: Sequence[socket.socket], identifier: str) -> None:
        """Stands in for the kernel, which sets the send time-out of those it takes."""
        assert index == 0
        self.identifiers.add(identifier)
        if self.failure is not None:
            raise self.failure
        for sock in sockets[: self.dead]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
        self.dead -= min(self.dead, len(sockets))
        if self.appear_later:
            self.dead += self.appear_later.pop(0)

    def close(self) -> None:
        """Close all ends."""
        for sock in self._pairs:
            sock.close()

    def open_ends(self) -> int:
        """Our ends that are still open: the kernel holds its own references."""
        return sum(sock.fileno() != -1 for sock in self._pairs[::2])


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A kernel with the device attached by three connections."""
    fake = FakeKernel(tmp_path)
    fake.add(0, size_bytes=SIZE_BYTES, backend=str(IDENTIFIER))
    return fake


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A restarted service whose three old connections are dead."""
    fake = Service(dead=3)
    monkeypatch.setattr(module, "negotiate", fake.negotiate)
    yield fake
    fake.close()


async def again(kernel: FakeKernel, service: Service, timeout_s: float = 60.0, some_expected: bool = True) -> object:
    """Reattach device a."""
    return await reattach(
        "a",
        "/s",
        timeout_s=timeout_s,
        some_expected=some_expected,
        root=kernel.root,
        reconfigure=service.reconfigure,
    )


def test_kernel_timeout() -> None:
    """A send time-out is what tells a socket that nbd took from one that it let go, and it is the device's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert kernel_timeout_s(ours) is None
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 500_000))
        assert kernel_timeout_s(ours) == 0.5


async def test_all_dead(kernel: FakeKernel, service: Service) -> None:
    """All three are replaced in one go, with the identifier repeated, and our ends closed."""
    assert await again(kernel, service) == Reattached(0, 3, 10)
    assert service.offers == [3]
    assert service.identifiers == {str(IDENTIFIER)}
    assert service.open_ends() == 0


async def test_deaths_noticed_late(kernel: FakeKernel, service: Service) -> None:
    """Connections that the kernel finds dead only after a while are replaced too; none is offered twice."""
    service.dead, service.appear_later = 0, [1, 2]
    assert await again(kernel, service) == Reattached(0, 3, 10)
    assert service.offers == [3, 3, 2]


async def test_some_alive(kernel: FakeKernel, service: Service) -> None:
    """When only one was dead, offering ends once nothing more is taken."""
    service.dead = 1
    assert await again(kernel, service) == Reattached(0, 1, 10)
    service.offers.clear()
    assert await again(kernel, service, some_expected=False) == Reattached(0, 0)
    assert 1 <= len(service.offers) <= 5


async def test_none_taken(kernel: FakeKernel, service: Service) -> None:
    """If the kernel takes none although some must be dead, that is told at the deadline."""
    service.dead = 0
    with pytest.raises(ReattachError, match=r"within 0\.5 s"):
        await again(kernel, service, timeout_s=0.5)


async def test_not_attached(kernel: FakeKernel, service: Service) -> None:
    """Another device's kernel device, or one of another socket, is left alone."""
    assert await reattach("b", "/s", root=kernel.root, reconfigure=service.reconfigure) is None
    assert await reattach("a", "/t", root=kernel.root, reconfigure=service.reconfigure) is None
    assert service.offers == []


async def test_other_size(kernel: FakeKernel, service: Service) -> None:
    """A service of another size is never put under the kernel device."""
    service.size_bytes *= 2
    with pytest.raises(ReattachError, match="not reattached"):
        await again(kernel, service)
    assert service.identifiers == set()


@pytest.mark.parametrize("failure", [ReconfigureError("Invalid argument"), UserError("device 'a' is not running")])
async def test_refused(kernel: FakeKernel, service: Service, failure: Exception) -> None:
    """What the kernel or the service refuses becomes one error of our own, and no connection is left open."""
    service.failure = failure
    with pytest.raises(ReattachError, match="/dev/nbd0"):
        await again(kernel, service)
    assert service.open_ends() == 0


async def test_kernel_hangs(kernel: FakeKernel, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A RECONFIGURE that does not return holds neither the event loop nor the caller."""
    monkeypatch.setattr(module, "CALL_TIMEOUT_S", 0.3)
    returns = threading.Event()

    def hang(*_: object) -> None:
        returns.wait(60)

    with pytest.raises(ReattachError, match=r"within 0\.3 s"):
        await reattach("a", "/s", root=kernel.root, timeout_s=60, reconfigure=hang)
    assert service.open_ends() == 0
    returns.set()
