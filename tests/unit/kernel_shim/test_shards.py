"""A device with shards is attached whole or not at all, and disconnected only when swap is off on all of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infiniswap.cli.device_list import of_shards
from infiniswap.kernel_shim import attach, device_mapper, journal, kernel_call, shards, swap
from infiniswap.kernel_shim.attach import AttachRequest, KernelConnections
from infiniswap.kernel_shim.journal import Note
from infiniswap.kernel_shim.kernel_call import KernelError
from infiniswap.kernel_shim.sysfs import NbdDevice
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_kernel import NBD_MAJOR, FakeKernel

SIZE_BYTES = 4 << 20


class FakeHost:
    """The kernel, with swap and device mapper; said: what was done to both, in order."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.kernel = FakeKernel(root)
        self.kernel.install(patch)
        self.root = root
        self.said: list[str] = []
        self.stuck: set[int] = set()  # whose swapoff fails
        self.refuses: KernelError | None = None  # device mapper
        patch.setattr(kernel_call, "call", self._call)
        patch.setattr(swap, "check_empty", lambda _device: None)
        patch.setattr(swap, "start", self._swapon)
        patch.setattr(swap, "stop", self._swapoff)
        patch.setattr(attach, "_negotiate_now", self._negotiate)
        disconnect = self.kernel.disconnect

        def noted(index: int, *, exclusive: bool, timeout_s: float = 1.0) -> None:
            self.said.append(f"disconnect {index}")
            disconnect(index, exclusive=exclusive, timeout_s=timeout_s)

        patch.setattr("infiniswap.kernel_shim.kernel_nbd.disconnect", noted)
        patch.setattr("infiniswap.kernel_shim.kernel_nbd.require_root", lambda _what: None)

    def _negotiate(self, request: AttachRequest) -> KernelConnections:
        del request
        ours, theirs = socket.socketpair()
        theirs.close()
        return KernelConnections((ours,), SIZE_BYTES, 0)

    def _swapon(self, device: NbdDevice, *, priority: int | None, discard: bool) -> None:
        del discard
        self.said.append(f"swapon {device.index} {priority}")
        self.kernel.swap(device.index, 0)

    def _swapoff(self, device: NbdDevice, *, timeout_s: float, progress: Any, root: Path) -> None:
        del timeout_s, progress
        self.said.append(f"swapoff {device.index}")
        if device.index in self.stuck:
            raise UserError(f"swapoff {device.path} failed")
        path = root / "proc/swaps"
        lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{device.path} ")]
        path.write_text("\n".join(lines) + "\n")

    def _call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        del timeout_s
        if self.refuses is not None:
            raise self.refuses
        self.said.append(request["operation"])
        entry = self.root / "sys/block/dm-5"
        if request["operation"] == "stripe-remove":
            (entry / "dm/name").unlink()
            for index in (0, 1):
                (self.root / f"sys/block/nbd{index}/holders/dm-5").unlink()
            return {}
        assert request["parameters"] == f"2 512 {NBD_MAJOR}:0 0 {NBD_MAJOR}:1 0"
        assert request["sectors"] == 2 * SIZE_BYTES // 512
        (entry / "dm").mkdir(parents=True, exist_ok=True)
        (entry / "dm/name").write_text(request["name"] + "\n")
        (entry / "dev").write_text("253:5\n")
        for index in (0, 1):
            (self.root / f"sys/block/nbd{index}/holders/dm-5").touch()
        return {"minor": 5}

    def parts(self, **options: Any) -> list[shards.Part]:
        """Requests for the two shards of device a."""
        made = [
            AttachRequest(
                name=f"a~{n}", socket_path=Path(f"/s{n}"), runtime_dir=self.root / "run", connections=1, **options
            )
            for n in range(2)
        ]
        return [shards.Part(shards.with_options(each, n)) for n, each in enumerate(made)]

    def attach(self, **options: Any) -> list[str]:
        """Attach device a."""
        return shards.attach_all("a", self.parts(**options), root=self.root)

    def detach(self, served: Callable[[str], bool] = lambda _name: True) -> list[int]:
        """Detach device a."""
        return shards.detach_all("a", self.root / "run", served=served, root=self.root)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A machine without devices."""
    (tmp_path / "sys/module/dm_mod").mkdir(parents=True)
    return FakeHost(tmp_path, monkeypatch)


def test_swap(host: FakeHost) -> None:
    """Areas of equal priority; detach swaps off all of them before it disconnects any."""
    assert host.attach(swap=True) == ["/dev/nbd0", "/dev/nbd1"]
    assert host.said == ["swapon 0 0", "swapon 1 0"]
    with pytest.raises(UserError, match="attached already, as /dev/nbd0 /dev/nbd1") as caught:
        host.attach(swap=True)
    assert caught.value.code == ExitCode.IN_USE
    host.said.clear()
    assert host.detach() == [0, 1]
    assert host.said == ["swapoff 0", "swapoff 1", "disconnect 1", "disconnect 0"]
    assert shards.attached_names("a", host.root / "run", host.root) == []


@pytest.mark.parametrize("use", [{"swap": True}, {}])
def test_attached_already(host: FakeHost, use: dict[str, bool]) -> None:
    """What is there as it is asked for is found, all of it; a part is not, and another use is refused."""
    parts = host.parts(**use)
    assert shards.attached_nodes("a", parts, host.root) == []
    attach.attach(parts[0].request, root=host.root)
    assert shards.attached_nodes("a", parts, host.root) == []
    assert shards.attached_nodes("a", parts[:1], host.root) == ["/dev/nbd0"], "as one without shards"
    nodes = host.attach(**use)
    assert shards.attached_nodes("a", parts, host.root) == nodes
    with pytest.raises(UserError, match="for another use"):
        shards.attached_nodes("a", host.parts(swap=not use), host.root)


def test_priority_and_index(host: FakeHost) -> None:
    """What is asked for is for all of them; kernel devices follow each other."""
    assert host.attach(swap=True, priority=7, index=3) == ["/dev/nbd3", "/dev/nbd4"]
    assert host.said == ["swapon 3 7", "swapon 4 7"]


def test_stripe(host: FakeHost) -> None:
    """Without swap one device stands on both; it goes first, and not while it is mounted."""
    assert host.attach() == ["/dev/dm-5"]
    mounts = host.root / "proc/self/mountinfo"
    mounts.write_text("30 1 253:5 / /mnt rw - ext4 /dev/dm-5 rw\n")
    with pytest.raises(UserError, match="/dev/dm-5 is mounted on /mnt"):
        host.detach()
    mounts.write_text("")
    host.said.clear()

    assert host.detach() == [0, 1]
    assert host.said == ["stripe-remove", "disconnect 1", "disconnect 0"]


def test_swapoff_fails(host: FakeHost) -> None:
    """Then nothing is disconnected; the next detach goes on where this one stopped."""
    host.attach(swap=True)
    host.stuck = {1}
    host.said.clear()
    with pytest.raises(UserError, match="swapoff /dev/nbd1 failed"):
        host.detach()
    assert host.said == ["swapoff 0", "swapoff 1"]
    host.stuck, host.said = set(), []
    assert host.detach() == [0, 1]
    assert host.said == ["swapoff 1", "disconnect 1", "disconnect 0"]


def test_shard_that_does_not_serve(host: FakeHost) -> None:
    """Pages that are out to one that is dead keep all of them on: nothing is begun."""
    host.attach(swap=True)
    host.kernel.swapoff()
    host.kernel.swap(0, 0)
    host.kernel.swap(1, 1 << 20)
    host.said.clear()
    with pytest.raises(UserError, match="are swapped out to /dev/nbd1, and device 'a~1' does not run"):
        host.detach(served=lambda name: name != "a~1")
    assert host.said == []


def test_no_device_mapper(host: FakeHost) -> None:
    """What was attached before the failure is taken away again."""
    host.refuses = KernelError(2, "No such file or directory")
    with pytest.raises(UserError, match="no device mapper") as caught:
        host.attach()
    assert caught.value.code == ExitCode.NOT_FOUND
    assert host.said == ["disconnect 1", "disconnect 0"]
    assert shards.attached_names("a", host.root / "run", host.root) == []


def test_killed_between_two(host: FakeHost) -> None:
    """An attach that was cut short behind the first shard is completed by the next one."""
    for part in host.parts(swap=True)[:1]:
        attach.attach(part.request, root=host.root)
    with pytest.raises(UserError, match="'a~0' is attached already, as /dev/nbd0, and for another use"):
        host.attach()
    assert host.attach(swap=True) == ["/dev/nbd0", "/dev/nbd1"]
    assert host.said == ["swapon 0 0", "swapon 1 0"]


def test_killed_within_one(host: FakeHost) -> None:
    """Detach takes away what an attach has only begun, too."""
    backend = "infiniswap:a~0:1:/s0"
    host.kernel.add(0, size_bytes=SIZE_BYTES, backend=backend)
    (host.root / "run").mkdir(mode=0o700)
    journal.write(host.root / "run", "a~0", Note("connecting", backend))
    assert host.detach() == [0]
    assert host.said == ["disconnect 0"]


def test_what_lists_show(host: FakeHost) -> None:
    """The stripe, or all areas with what is out on them together; dead connections are counted over all."""
    rows = [{"name": f"a~{n}", "socket": f"/s{n}", "connections": 0} for n in range(2)]
    nothing = {"nbd": None, "nbd_connections": None, "nbd_dead": None, "swap_used_bytes": None}
    assert of_shards(rows, "a", host.root) == nothing
    host.attach()
    assert of_shards(rows, "a", host.root) == {**nothing, "nbd": "/dev/dm-5", "nbd_connections": 2, "nbd_dead": 2}
    host.detach()
    host.attach(swap=True, index=4)
    host.kernel.swapoff()
    host.kernel.swap(4, 1 << 20)
    host.kernel.swap(5, 2 << 20)
    found = of_shards(rows, "a", host.root)
    assert (found["nbd"], found["swap_used_bytes"]) == ("/dev/nbd4 /dev/nbd5", 3 << 20)


def test_requests_of_device_mapper() -> None:
    """The structures are as long as the kernel's, and the numbers of the calls those of linux/dm-ioctl.h."""
    assert (device_mapper._HEADER.size, device_mapper._TARGET.size) == (312, 40)
    assert device_mapper._request(device_mapper._CREATE) == 0xC138FD03
