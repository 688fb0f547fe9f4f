"""What /sys and /proc tell of soft-RoCE links and of who has them open is read from the kernel's own layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from infiniswap.kernel_shim import rdma_sysfs
from infiniswap.kernel_shim.rdma_sysfs import SoftLink, User
from tests.support.fake_rdma_host import FakeRdmaHost


@pytest.fixture
def host(tmp_path: Path) -> FakeRdmaHost:
    """A host without devices."""
    return FakeRdmaHost(tmp_path)


def test_links(host: FakeRdmaHost) -> None:
    """Soft-RoCE links are those with a parent; one that is being removed is there, but not present."""
    host.add_link("rxe1", "eth1")
    host.add_link("rxe0", "eth0")
    host.add_device("mlx5_0")
    host.close("rxe1")
    assert rdma_sysfs.read_links(host.root) == (
        SoftLink("rxe0", "eth0", present=True),
        SoftLink("rxe1", "eth1", present=False),
    )
    assert rdma_sysfs.rdma_names(host.root) == {"mlx5_0", "rxe0", "rxe1"}
    assert rdma_sysfs.node_of("rxe0", host.root) == "/dev/infiniband/uverbs1"
    assert rdma_sysfs.node_of("rxe1", host.root) is None


def test_users(host: FakeRdmaHost) -> None:
    """Who has a node open is found, before and after its removal; uverbs1 is not uverbs10."""
    host.add_process(9, "nine", "/dev/infiniband/uverbs1", "/dev/null")
    host.add_process(10, "ten", "socket:[1]", "/dev/infiniband/uverbs1 (deleted)")
    host.add_process(11, "eleven", "/dev/infiniband/uverbs10 (deleted)", "/tmp/x (deleted)")
    host.add_process(12, "twelve", "/dev/infiniband/rdma_cm", "/tmp/y (deleted)")
    (host.root / "proc/13").mkdir()
    (host.root / "proc/self").mkdir()
    nine, ten, eleven = User(9, "nine"), User(10, "ten"), User(11, "eleven")
    assert rdma_sysfs.users("/dev/infiniband/uverbs1", host.root) == (nine, ten)
    assert rdma_sysfs.users("/dev/infiniband/uverbs2", host.root) == ()
    assert rdma_sysfs.users(None, host.root) == (ten, eleven)
    assert str(nine) == "nine (pid 9)"


def test_links_without_rdma(tmp_path: Path) -> None:
    """Where the kernel has no RDMA at all there are no links, and nobody has one open."""
    assert rdma_sysfs.read_links(tmp_path) == ()
    assert rdma_sysfs.rdma_names(tmp_path) == frozenset()
    assert rdma_sysfs.users(None, tmp_path) == ()
    assert rdma_sysfs.node_of("rxe0", tmp_path) is None


def test_netdev_that_is_down(host: FakeRdmaHost) -> None:
    """The carrier of an interface that is down cannot be read, and counts as missing."""
    host.add_netdev("eth0", flags=0x1002)
    (host.root / "sys/class/net/eth0/carrier").unlink()
    netdev = rdma_sysfs.read_netdev("eth0", host.root)
    assert netdev == rdma_sysfs.Netdev("eth0", up=False, carrier=False, vlan=False, mtu_bytes=1500)


def test_real_host() -> None:
    """On this machine: loopback is an interface, with an address; our own open files are found."""
    lo = rdma_sysfs.read_netdev("lo")
    assert lo is not None
    assert lo.mtu_bytes > 0
    assert isinstance(rdma_sysfs.users("/dev/infiniband/uverbs0"), tuple)
