"""Quotas by host: what a rule may look like, which one counts, and where the line is."""

from __future__ import annotations

import pytest

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.quotas import DEFAULT, Quota, Quotas, parse_rule
from infiniswap.shared.errors import UserError
from tests.support.kept_memory import make_lease

MIB = 1 << 20
QUOTAS = Quotas([parse_rule("--quota", text) for text in ("web* leases=2 memory=3MiB", "db1 connections=3")])


def leases(owner: str, count: int, host: str = "10.0.0.1") -> list[Lease]:
    """So many of a host."""
    made = [make_lease(number) for number in range(count)]
    for lease in made:
        lease.owner, lease.host = owner, host
    return made


def test_rules() -> None:
    """One syntax, which is written as it was read; the first that fits counts, and the rest is as by default."""
    for text in ("web* leases=2 memory=3MiB", "db1 connections=3"):
        assert str(parse_rule("--quota", text)) == text
    assert QUOTAS.of("web7") == Quota(leases=2, memory=3 * MIB, connections=DEFAULT.connections)
    assert QUOTAS.of("db1") == Quota(leases=DEFAULT.leases, connections=3)
    assert QUOTAS.of("other") == DEFAULT
    first = Quotas([parse_rule("q", "WEB1 leases=1"), parse_rule("q", "web* leases=9")])
    assert (first.of("web1").leases, first.of("web2").leases) == (1, 9)


@pytest.mark.parametrize(
    "text", ["", "web*", "web* leases", "web* leases=0", "web* leases=-1", "web* memory=x", "w eb leases=1",
             "web* leases=1 leases=2", "web* slabs=3", "web/1 leases=1", "web* leases=99999999", 7],
)  # fmt: skip
def test_what_is_no_rule(text: object) -> None:
    """One line that names the option."""
    with pytest.raises(UserError, match=r"^--quota") as caught:
        parse_rule("--quota", text)
    assert "\n" not in str(caught.value)


def test_leases_of_a_host() -> None:
    """As many as its rule says, whatever others have; addresses do not matter then."""
    others = leases("web2", 5)
    assert QUOTAS.lease_refusal("web1", "10.0.0.1", [*others, *leases("web1", 1)], 256) == ""
    told = QUOTAS.lease_refusal("web1", "10.0.0.9", [*others, *leases("web1", 2)], 256)
    assert told == "web1 may have 2 leases here, and has them"


def test_leases_of_an_address() -> None:
    """Without certificates half of all, of an IPv6 network as of an address; others still get theirs."""
    for mine, other in (("10.0.0.1", "10.0.0.2"), ("fe80::1%eth0", "fe80:0:0:1::1")):
        taken = leases("", 4, mine)
        assert "your address may have 4 of the 8 leases" in QUOTAS.lease_refusal("", mine, taken, 8)
        assert QUOTAS.lease_refusal("", mine, taken[1:], 8) == ""
        assert QUOTAS.lease_refusal("", other, taken, 8) == ""
    assert QUOTAS.lease_refusal("", "fe80::2", leases("", 4, "fe80::1"), 8) != ""


def test_memory_of_a_host() -> None:
    """What all its leases hold together counts."""
    one, two = leases("web1", 2)
    one.slabs, two.slabs = {0: 0, 1: MIB}, {5: 2 * MIB}
    assert QUOTAS.room_bytes("web1", [one, two, *leases("web2", 1)]) == 0
    assert QUOTAS.room_bytes("web1", [one]) == MIB
    assert QUOTAS.room_bytes("db1", [one, two]) is None
    assert QUOTAS.room_bytes("", [one, two]) is None
    assert "3MiB" in QUOTAS.memory_refusal("web1")


def test_connections_of_a_host() -> None:
    """Of all its leases together."""
    mine, other = leases("db1", 2), leases("db2", 1)
    assert QUOTAS.connection_refusal(mine[0], [*mine, *other], lambda _: 1) == ""
    assert "db1 may have 3 connections" in QUOTAS.connection_refusal(mine[0], [*mine, *other], lambda _: 2)
    assert QUOTAS.connection_refusal(leases("", 1)[0], mine, lambda _: 99) == ""
