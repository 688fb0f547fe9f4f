"""The doctor judges RDMA: silent where there is none, and with a command where there is some that cannot be used."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Any

import pytest

from infiniswap.kernel_shim import doctor, doctor_facts, doctor_rdma
from infiniswap.kernel_shim.doctor_model import Check, DeviceFacts, HostFacts, Level, PeerFacts, RdmaFacts
from infiniswap.rdma.devices import Gid, GidType, Port
from infiniswap.shared.path_messages import LinkLayer
from tests.support.fake_rdma_host import FakeRdmaHost

GID = Gid(1, ipaddress.IPv6Address("::ffff:10.0.0.1"), GidType.ROCE_V2, "eth0")
ETHERNET = Port("rxe0", 1, LinkLayer.ETHERNET, "ACTIVE", 0, (GID,))
INFINIBAND = Port(
    "mlx5_0", 1, LinkLayer.INFINIBAND, "ACTIVE", 7, (Gid(0, ipaddress.IPv6Address("fe80::1"), GidType.IB_OR_ROCE_V1),)
)
FACTS = RdmaFacts(libibverbs=True, pyverbs=True, ports=(ETHERNET,), netdevs={"rxe0": "eth0"}, mtu_bytes={"eth0": 9000})
BARE = dataclasses.replace(ETHERNET, gids=())


def checks(**changes: Any) -> dict[str, Check]:
    """The host's checks by name, with facts changed."""
    return {check.name: check for check in doctor_rdma.examine_rdma(dataclasses.replace(FACTS, **changes))}


def test_all_well() -> None:
    """Ports as they should be, of either kind: no complaint and no command."""
    for port in (ETHERNET, INFINIBAND):
        found = checks(ports=(port,))
        assert set(found) == {"rdma ports", "rdma addresses", "rdma mtu", "libibverbs", "pyverbs"}
        assert all(check.level is Level.OK and check.command is None for check in found.values())


def test_no_rdma() -> None:
    """A host without RDMA is told how pages travel and how to get a port, and that is no complaint."""
    (check,) = doctor_rdma.examine_rdma(RdmaFacts())
    assert check.level is Level.OK
    assert "pages travel over TCP" in check.found
    assert "infiniswap rdma setup --netdev" in check.found
    host = HostFacts(root=True, kernel_release="6.12.0", nbd_loaded=True)
    assert check in doctor.examine(host)


@pytest.mark.parametrize(
    ("changes", "name", "command"),
    [
        ({"libibverbs": False}, "libibverbs", "apt-get install libibverbs1 ibverbs-providers"),
        ({"pyverbs": False}, "pyverbs", "apt-get install python3-pyverbs"),
        ({"ports": (dataclasses.replace(ETHERNET, state="DOWN"),)}, "rdma ports", "ip link set eth0 up"),
        ({"ports": (dataclasses.replace(BARE, state="DOWN"),)}, "rdma ports", "ip link set eth0 up"),
        ({"ports": (dataclasses.replace(INFINIBAND, state="INIT"),)}, "rdma ports", "systemctl start opensm"),
        ({"ports": (BARE,)}, "rdma addresses", "ip address add ADDRESS/PREFIX dev eth0"),
        (
            {"ports": (dataclasses.replace(ETHERNET, gids=(dataclasses.replace(GID, kind=GidType.IB_OR_ROCE_V1),)),)},
            "rdma addresses",
            "ip address add ADDRESS/PREFIX dev eth0",
        ),
    ],
)
def test_complaints(changes: dict[str, Any], name: str, command: str) -> None:
    """One fact changed: that check, and no other, warns and names the command."""
    found = checks(**changes)
    assert {check.name for check in found.values() if check.level is not Level.OK} == {name}
    assert found[name].level is Level.WARNING
    assert (found[name].command or "").startswith(command)


def test_spare_port() -> None:
    """A port that is down beside an active one is shown, and is no fault: many cards have one without a cable."""
    spare = dataclasses.replace(ETHERNET, number=2, state="DOWN")
    check = checks(ports=(ETHERNET, spare))["rdma ports"]
    assert check.level is Level.OK
    assert check.found == "rxe0/1 is ACTIVE, rxe0/2 is DOWN"


@pytest.mark.parametrize(
    ("mtu_bytes", "text"),
    [
        (1500, "eth0 has 1500, 4 packets a page"),
        (2200, "eth0 has 2200, 2 packets a page"),
        (4191, "eth0 has 4191, 2 packets a page"),
        (4192, "a page travels in one packet"),
        (300, "eth0 has 300, 16 packets a page"),
    ],
)
def test_mtu(mtu_bytes: int, text: str) -> None:
    """Small packets are told with the command that makes them larger, and are never a complaint."""
    check = checks(mtu_bytes={"eth0": mtu_bytes})["rdma mtu"]
    assert check.level is Level.OK
    assert check.found.startswith(text)
    assert ("ip link set eth0 mtu 4200" in check.found) == (mtu_bytes < 4192)


def test_mtu_unknown() -> None:
    """An interface that cannot be read, or has none to its port, is left out."""
    assert checks(mtu_bytes={})["rdma mtu"].level is Level.OK
    assert checks(ports=(INFINIBAND,), netdevs={})["rdma mtu"].level is Level.OK


# ---- a device's peers ----


def transport(*peers: PeerFacts, facts: RdmaFacts = FACTS, configured: str | None = None) -> Check:
    """The check of a device with those peers, out of a whole examination."""
    device = DeviceFacts(
        name="a", pid=1, size_bytes=1, mapped_bytes=0, backup="/b", transport=configured, peers=tuple(peers)
    )
    host = HostFacts(root=True, kernel_release="6.12.0", nbd_loaded=True, rdma=facts)
    (check,) = (check for check in doctor.examine(host, (device,)) if check.name == "transport")
    assert check.device == "a"
    return check


FAST = PeerFacts("p:1", True, 1, "rdma")
SLOW = PeerFacts("p:2", True, 1, "tcp", "the donor has no RDMA device")
SILENT = PeerFacts("p:3", True, 1, "tcp")


def test_peer_on_tcp() -> None:
    """With RDMA here, a peer that is up and on TCP is a warning that names it and the reason, where there is one."""
    check = transport(FAST, SLOW, SILENT, dataclasses.replace(SLOW, peer="p:4", up=False))
    assert check.level is Level.WARNING
    assert check.found == "over TCP: p:2 (the donor has no RDMA device), p:3 (no reason given)"
    assert check.command is not None


@pytest.mark.parametrize(
    ("peers", "found"),
    [
        ((), "0 of 0 peers over RDMA"),
        ((FAST, FAST), "2 of 2 peers over RDMA"),
        ((FAST, PeerFacts("p:5", True, 1)), "1 of 2 peers over RDMA"),
        ((FAST, dataclasses.replace(SLOW, up=False)), "1 of 1 peers over RDMA"),
    ],
)
def test_peers_that_are_well(peers: tuple[PeerFacts, ...], found: str) -> None:
    """Peers on RDMA, down, or of a device that does not tell: no complaint."""
    check = transport(*peers)
    assert (check.level, check.found) == (Level.OK, found)


@pytest.mark.parametrize(
    "changes",
    [
        {"ports": ()},
        {"libibverbs": False},
        {"ports": (dataclasses.replace(ETHERNET, state="DOWN"),)},
        {"ports": (BARE,)},
    ],
)
def test_tcp_where_rdma_cannot_be_used(changes: dict[str, Any]) -> None:
    """Where this host itself cannot use RDMA, the peers are not to blame."""
    assert transport(SLOW, facts=dataclasses.replace(FACTS, **changes)).level is Level.OK


def test_tcp_as_configured() -> None:
    """A device that was told to use TCP is taken at its word."""
    assert transport(SLOW, configured="tcp").level is Level.OK
    assert transport(SLOW, configured="auto").level is Level.WARNING


# ---- facts ----


def test_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports, the interfaces under them and their MTU come from the same tree."""
    host = FakeRdmaHost(tmp_path)
    host.add_netdev("eth0", mtu=4200)
    host.add_link("rxe0", "eth0")
    facts = doctor_facts.rdma_facts(tmp_path)
    assert [str(port) for port in facts.ports] == ["rxe0/1"]
    assert facts.netdev_of(facts.ports[0]) == "eth0"
    assert facts.mtu_bytes == {"eth0": 4200}
    assert doctor_facts.host_facts(tmp_path).rdma == facts
    monkeypatch.setattr(doctor_facts, "find_spec", lambda _name: None)
    monkeypatch.setattr(doctor_facts, "loadable", lambda library: library == "libibverbs.so.1")
    facts = doctor_facts.rdma_facts(tmp_path)
    assert (facts.libibverbs, facts.pyverbs) == (True, False)


def test_loadable() -> None:
    """A library that is there is found, one that is not is no error."""
    assert doctor_facts.loadable("libc.so.6")
    assert not doctor_facts.loadable("libnosuch.so.1")


def test_peer_facts() -> None:
    """Transport and error come from the peer's row; a device of before has neither, and a null is no error."""
    assert doctor_facts.peer_facts({"peer": "p:1", "state": "up"}) == PeerFacts("p:1", True, 0)
    row = {"peer": "p:1", "state": "up", "free_bytes": 5, "transport": "tcp", "rdma_error": "no"}
    assert doctor_facts.peer_facts(row) == PeerFacts("p:1", True, 5, "tcp", "no")
    assert doctor_facts.peer_facts(row | {"rdma_error": None}).rdma_error is None
