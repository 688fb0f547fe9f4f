"""Adoption: leases on record find their peers under whatever name these are given now, and come before all others."""

from __future__ import annotations

import pytest

from infiniswap.device.adoption import seat
from infiniswap.device.daemon_client import HeldLease
from infiniswap.device.lease_book import RecordedLease
from infiniswap.shared.address import HostPort


def entry(host: str, port: int = 7401, control: str = "") -> RecordedLease:
    """A lease on record."""
    lease = HeldLease(
        lease_id=f"{host}{port}", token="t", export="e", address=(host, port), incarnation="i", ttl_s=1.0,
        size_bytes=1, renewal=[0.0], control=control,
    )  # fmt: skip
    return RecordedLease(HostPort(host, port), lease, frozenset({1}))


def known(host: str, *addresses: str) -> tuple[HostPort, frozenset[tuple[str, int]]]:
    """What a name resolves to."""
    return HostPort(host, 7401), frozenset((address, 7401) for address in addresses)


def test_same_spelling() -> None:
    """Needs no lookup."""
    seats = seat([HostPort("a", 7401), HostPort("b", 7401)], [entry("b")], {})
    assert seats.peers == (HostPort("a", 7401), HostPort("b", 7401))
    assert [e.peer.host for e in seats.entries] == ["b"]


def test_respelled_peers_keep_their_leases() -> None:
    """64 of them, all named otherwise than before the crash: none is left without a place."""
    named = [HostPort(f"node{i}", 7401) for i in range(64)]
    entries = [entry(f"10.0.0.{i}") for i in range(64)]
    addresses = dict(known(f"node{i}", f"10.0.0.{i}") for i in range(64))
    addresses |= dict(known(f"10.0.0.{i}", f"10.0.0.{i}") for i in range(64))
    seats = seat(named, entries, addresses)
    assert seats.peers == tuple(named)
    assert [e.peer for e in seats.entries] == named
    assert [e.lease.control for e in seats.entries] == [f"10.0.0.{i}" for i in range(64)], "asked where it was granted"


def test_name_that_has_moved() -> None:
    """What granted the lease counts, not what its name is today."""
    seats = seat(
        [HostPort("10.0.0.1", 7401)], [entry("node", control="10.0.0.1")], dict([known("10.0.0.1", "10.0.0.1")])
    )
    assert [(e.peer.host, e.lease.control) for e in seats.entries] == [("10.0.0.1", "10.0.0.1")]


def test_record_comes_first(caplog: pytest.LogCaptureFixture) -> None:
    """64 other peers leave no room: as many of them wait as leases are on record."""
    named = [HostPort(f"new{i}", 7401) for i in range(64)]
    entries = [entry("old1"), entry("old2"), entry("new5")]
    seats = seat(named, entries, {})
    assert len(seats.peers) == 62
    assert HostPort("new5", 7401) in seats.peers
    assert {e.peer.host for e in seats.entries} == {"old1", "old2", "new5"}
    assert "new62:7401, new63:7401 are not used until" in caplog.text


def test_one_lease_a_peer() -> None:
    """A daemon on record under two names is taken up once under the name given, and once under its own."""
    addresses = dict([known("n", "10.0.0.1"), known("10.0.0.1", "10.0.0.1"), known("alias", "10.0.0.1")])
    seats = seat([HostPort("n", 7401)], [entry("10.0.0.1"), entry("alias")], addresses)
    assert [e.peer.host for e in seats.entries] == ["n", "alias"]


def test_port_is_part_of_who_it_is() -> None:
    """Two daemons of one host are two."""
    addresses = dict([known("n", "10.0.0.1"), known("10.0.0.1", "10.0.0.1")])
    seats = seat([HostPort("n", 7401)], [entry("10.0.0.1", 7402)], addresses)
    assert [str(e.peer) for e in seats.entries] == ["10.0.0.1:7402"]
