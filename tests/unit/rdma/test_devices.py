"""RDMA devices are read from sysfs as the kernel lays it out, whatever is missing or vanishes meanwhile."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from infiniswap.rdma import devices
from infiniswap.rdma.devices import (
    Gid,
    GidType,
    Port,
    list_ports,
)
from infiniswap.shared.path_messages import LinkLayer
from tests.support.fake_rdma_host import IPV4_GID, LINK_LOCAL_GID, FakeRdmaHost

SUBNET_GID = "fe80:0000:0000:0000:0002:c903:0031:7891"


@pytest.fixture
def host(tmp_path: Path) -> FakeRdmaHost:
    """A host without devices."""
    return FakeRdmaHost(tmp_path)


def test_no_rdma(tmp_path: Path) -> None:
    """A kernel without RDMA has no such folders, and no ports."""
    assert list_ports(tmp_path) == ()
    assert devices.device_names(tmp_path) == frozenset()


def test_ethernet_port(host: FakeRdmaHost) -> None:
    """A RoCE port has its GIDs with index, type and network interface; holes in the table are left out."""
    host.add_device("rxe0")
    kinds = {0: "IB/RoCE v1", 1: "RoCE v2", 4: "RoCE v2"}
    host.add_port("rxe0", gids={0: LINK_LOCAL_GID, 1: LINK_LOCAL_GID, 4: IPV4_GID}, kinds=kinds, netdev="eth0")
    link_local = ipaddress.IPv6Address("fe80::5054:ff:fe12:3456")
    assert list_ports(host.root) == (
        Port(
            device="rxe0",
            number=1,
            link_layer=LinkLayer.ETHERNET,
            state="ACTIVE",
            lid=0,
            gids=(
                Gid(0, link_local, GidType.IB_OR_ROCE_V1, "eth0"),
                Gid(1, link_local, GidType.ROCE_V2, "eth0"),
                Gid(4, ipaddress.IPv6Address("::ffff:10.99.0.1"), GidType.ROCE_V2, "eth0"),
            ),
        ),
    )
    (port,) = list_ports(host.root)
    assert port.active
    assert port.netdev == "eth0"
    assert str(port) == "rxe0/1"


def test_infiniband_ports(host: FakeRdmaHost) -> None:
    """InfiniBand ports have a LID in hexadecimal, GIDs of the older type and no network interface."""
    host.add_device("mlx5_0")
    common = {"link_layer": "InfiniBand", "gids": {0: SUBNET_GID}, "kinds": {0: "IB/RoCE v1"}}
    host.add_port("mlx5_0", 2, state="2: INIT", lid="0x0", **common)  # type: ignore[arg-type]
    host.add_port("mlx5_0", 1, state="4: ACTIVE", lid="0x1f", **common)  # type: ignore[arg-type]
    first, second = list_ports(host.root)
    assert (first.number, first.link_layer, first.lid, first.active) == (1, LinkLayer.INFINIBAND, 0x1F, True)
    assert first.gids == (Gid(0, ipaddress.IPv6Address(SUBNET_GID), GidType.IB_OR_ROCE_V1),)
    assert first.netdev is None
    assert (second.number, second.state, second.lid, second.active) == (2, "INIT", 0, False)


def test_order(host: FakeRdmaHost) -> None:
    """Devices come by name and ports by number, 2 before 10."""
    for name in ("b", "a"):
        host.add_device(name)
        for number in (10, 2):
            host.add_port(name, number)
    assert [str(port) for port in list_ports(host.root)] == ["a/2", "a/10", "b/2", "b/10"]


def test_device_that_is_being_removed(host: FakeRdmaHost) -> None:
    """A device whose node has gone is no longer there for us, though the kernel still shows its ports."""
    host.add_link("rxe0", "eth0")
    host.add_link("rxe1", "eth1")
    assert devices.verbs_names(host.root) == {"rxe0": "uverbs0", "rxe1": "uverbs1"}
    host.close("rxe0")
    assert "rxe0" in host.names()
    assert [port.device for port in list_ports(host.root)] == ["rxe1"]
    assert devices.device_names(host.root) == {"rxe1"}


def test_damaged_entries(host: FakeRdmaHost) -> None:
    """What cannot be read, or is no number or address, costs that entry and nothing else."""
    host.add_device("rxe0")
    host.add_port("rxe0", lid="none", gids={0: "nonsense", 1: IPV4_GID})
    folder = host.root / "sys/class/infiniband/rxe0/ports/1"
    (folder / "state").unlink()
    (folder / "link_layer").unlink()
    (folder / "gid_attrs/types/1").unlink()
    (folder / "gids/abc").touch()
    (host.root / "sys/class/infiniband_verbs/abi_version").write_text("6\n")
    (port,) = list_ports(host.root)
    assert (port.state, port.active, port.lid, port.link_layer) == ("unknown", False, 0, LinkLayer.ETHERNET)
    assert [(gid.index, gid.kind, gid.netdev) for gid in port.gids] == [(1, GidType.IB_OR_ROCE_V1, None)]


def test_device_vanishes(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that goes while it is being read is no error."""
    host.add_link("rxe0", "eth0")
    names = devices.device_names(host.root)
    host.remove("rxe0")
    monkeypatch.setattr(devices, "device_names", lambda _root: names)
    assert list_ports(host.root) == ()


def test_gid_table_is_bounded(host: FakeRdmaHost) -> None:
    """No more than GIDS_MAX entries are looked at, those with the lowest indexes."""
    host.add_device("rxe0")
    host.add_port("rxe0", gids={devices.GIDS_MAX - 1: LINK_LOCAL_GID, devices.GIDS_MAX: IPV4_GID})
    assert [gid.index for gid in list_ports(host.root)[0].gids] == [devices.GIDS_MAX - 1]
