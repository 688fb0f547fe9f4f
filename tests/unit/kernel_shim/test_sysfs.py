"""What /proc and /sys say of swap and nbd is read right, odd paths and vanishing entries included."""

from __future__ import annotations

from pathlib import Path

import pytest

from infiniswap.cli.device_list import with_kernel_devices
from infiniswap.cli.device_stop import check_unused
from infiniswap.kernel_shim import sysfs, users
from infiniswap.kernel_shim.sysfs import Identifier, NbdDevice, SwapArea
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_kernel import FakeKernel

SWAPS = """Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/nbd0                               partition\t262140\t\t1024\t\t5
/a\\040b/swap                            file\t\t1023996\t\t0\t\t-2
a torn line
"""


@pytest.fixture(autouse=True)
def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that do not end are not waited for so long."""
    monkeypatch.setattr(users, "SETTLE_TIMEOUT_S", 0.2)


def test_parse_swaps() -> None:
    """Sizes come out in bytes, blanks in paths are restored, lines that make no sense are left out."""
    assert sysfs.parse_swaps(SWAPS) == (
        SwapArea("/dev/nbd0", "partition", 262140 << 10, 1024 << 10, 5),
        SwapArea("/a b/swap", "file", 1023996 << 10, 0, -2),
    )
    assert sysfs.parse_swaps("") == ()


def test_parse_mounts() -> None:
    """Mount points are found by device number, escapes undone."""
    text = (
        "22 1 43:0 / /mnt/a\\040b rw - ext4 /dev/nbd0 rw\n"
        "23 1 0:5 / /proc rw - proc proc rw\n"
        "24 1 43:0 / /c rw - x y z\n"
    )
    assert sysfs.parse_mounts(text) == {"43:0": ["/mnt/a b", "/c"], "0:5": ["/proc"]}


def test_identifier_round_trip() -> None:
    """An identifier survives the kernel's attribute, colons in the path included; others' are not taken for ours."""
    identifier = Identifier("swap0", 4, "/run/x:y/swap0.sock")
    assert Identifier.parse(str(identifier)) == identifier
    for other in (
        None,
        "",
        "bar",
        "infiniswap:",
        "infiniswap:a",
        "infiniswap:a:0:/x",
        "infiniswap:a:-1:/x",
        "infiniswap:a:1:",
    ):
        assert Identifier.parse(other) is None


def test_read_devices(tmp_path: Path) -> None:
    """Connected means that the pid file is there; devices are sorted by number, other block devices ignored."""
    kernel = FakeKernel(tmp_path)
    kernel.add(10, size_bytes=1 << 20, backend=None)
    kernel.add(2, size_bytes=4096, backend="infiniswap:a:2:/s")
    (tmp_path / "sys/block/nbd10/pid").unlink()
    (tmp_path / "sys/block/sda").mkdir()
    (tmp_path / "sys/block/nbdx").mkdir()
    assert sysfs.read_nbd_devices(tmp_path) == (
        NbdDevice(2, 4096, True, "infiniswap:a:2:/s", pid=77),
        NbdDevice(10, 1 << 20, False, None),
    )
    assert sysfs.read_nbd_devices(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(("socket", "found"), [(None, True), ("/s", True), ("/other", False)])
def test_attached(tmp_path: Path, socket: str | None, found: bool) -> None:
    """A device of the same name that is served on another socket is another device."""
    FakeKernel(tmp_path).add(0, size_bytes=4096, backend="infiniswap:a:2:/s")
    assert (sysfs.attached("a", tmp_path, socket) is not None) is found
    assert sysfs.attached("b", tmp_path) is None


def test_attached_needs_a_connection(tmp_path: Path) -> None:
    """A device that is not connected is nobody's."""
    FakeKernel(tmp_path).add(0, size_bytes=4096, backend="infiniswap:a:2:/s")
    (tmp_path / "sys/block/nbd0/pid").unlink()
    assert sysfs.attached("a", tmp_path) is None


def test_swap_and_mounts_of_a_device(tmp_path: Path) -> None:
    """Use of a device is found by its node's name for swap and by its number for mounts."""
    kernel = FakeKernel(tmp_path)
    device = kernel.add(0, size_bytes=4096, backend=None)
    assert sysfs.swap_on(device, tmp_path) is None
    assert sysfs.mounts_of(device, tmp_path) == ()
    kernel.swap(0, used_bytes=8192)
    kernel.mount(0, "/mnt")
    area = sysfs.swap_on(device, tmp_path)
    assert area is not None
    assert area.used_bytes == 8192
    assert sysfs.mounts_of(device, tmp_path) == ("/mnt",)


@pytest.mark.parametrize(
    ("line", "found"), [("/nbd0 partition", True), ("/dev/nbd01 partition", False), ("/swap/nbd0 file", False)]
)
def test_swapped_on_in_another_mount_namespace(tmp_path: Path, line: str, found: bool) -> None:
    """The kernel then shows a path that is none here; a device that holds pages must be known as swap all the same."""
    device = FakeKernel(tmp_path).add(0, size_bytes=4096, backend=None)
    (tmp_path / "proc/swaps").write_text(f"Filename Type Size Used Priority\n{line} 1024 8 5\n")
    assert (sysfs.swap_on(device, tmp_path) is not None) == found


def test_device_list_shows_the_kernel_device(tmp_path: Path) -> None:
    """`device list` tells node, connections and swap use of the right device, dead ones (without a socket) included."""
    kernel = FakeKernel(tmp_path)
    kernel.add(2, size_bytes=4096, backend="infiniswap:a:3:/s")
    kernel.swap(2, used_bytes=8192)
    rows = with_kernel_devices([{"name": "a", "socket": "/s"}, {"name": "b", "socket": "/t"}, {"name": "a"}], tmp_path)
    shown = [(row["nbd"], row["nbd_connections"], row["swap_used_bytes"]) for row in rows]
    assert shown == [("/dev/nbd2", 3, 8192), (None, None, None), ("/dev/nbd2", 3, 8192)]


def test_device_list_shows_dead_connections_and_others(tmp_path: Path) -> None:
    """Connections that the kernel gave up are counted; a kernel device that nbd-client made has a row of its own."""
    kernel = FakeKernel(tmp_path)
    kernel.add(2, size_bytes=4096, backend="infiniswap:a:3:/s")
    kernel.add(5, size_bytes=8192, backend=None)
    kernel.swap(5, used_bytes=4096)
    ours, other = with_kernel_devices([{"name": "a", "socket": "/s", "connections": 1}], tmp_path)
    assert ours["nbd_dead"] == 2
    assert other == {
        "name": None,
        "state": "foreign",
        "size_bytes": 8192,
        "nbd": "/dev/nbd5",
        "swap_used_bytes": 4096,
        "pid": 77,
    }


@pytest.mark.parametrize("use", ["idle", "swap", "mount"])
def test_device_stop_refuses_under_use(tmp_path: Path, use: str) -> None:
    """`device stop` leaves a device alone that is attached, says what detaches it and how many connections are open."""
    kernel = FakeKernel(tmp_path)
    kernel.add(2, size_bytes=4096, backend="infiniswap:a:3:/s")
    if use == "swap":
        kernel.swap(2, used_bytes=0)
    elif use == "mount":
        kernel.mount(2, "/mnt")
    with pytest.raises(UserError, match=r"3 NBD connections are open; 'infiniswap device detach a' first") as caught:
        check_unused("a", "/s", lambda: 3, tmp_path)
    assert caught.value.code == ExitCode.REFUSED
    check_unused("b", "/s", lambda: 0, tmp_path)


def test_device_stop_refuses_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of others are use too, those that just end excepted; kernel devices that they may be are named."""
    kernel = FakeKernel(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(users, "SETTLE_TIMEOUT_S", 60)
        left = [2, 1, 0]
        check_unused("a", "/s", lambda: left.pop(0), tmp_path)
        assert left == []
    with pytest.raises(UserError, match="1 NBD connection is open; disconnect first"):
        check_unused("a", "/s", lambda: 1, tmp_path)
    kernel.add(5, size_bytes=8192, backend=None)
    with pytest.raises(UserError, match=r"2 NBD connections are open \(/dev/nbd5 attached by others"):
        check_unused("a", "/s", lambda: 2, tmp_path)
