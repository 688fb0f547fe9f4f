"""The right port and GID are chosen, or one sentence says why none is; what a stranger sends is taken or refused."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.rdma import path
from infiniswap.rdma.devices import Gid, GidType, Port
from infiniswap.rdma.path import (
    RdmaUnavailableError,
    as_gid,
    choose_gid,
    choose_port,
    needs_global_route,
)
from infiniswap.shared import path_messages
from infiniswap.shared.path_messages import LinkLayer, PathEnd, QueuePair, Region, parse_end, parse_region

V1, V2 = GidType.IB_OR_ROCE_V1, GidType.ROCE_V2


def address(text: str) -> ipaddress.IPv6Address:
    """The GID of an IPv4 or IPv6 address."""
    return as_gid(ipaddress.ip_address(text))


def gids(*entries: tuple[int, str, GidType]) -> tuple[Gid, ...]:
    """A GID table."""
    return tuple(Gid(index, address(text), kind, "eth0") for index, text, kind in entries)


def port(device: str = "rxe0", number: int = 1, *, state: str = "ACTIVE", table: tuple[Gid, ...] = ()) -> Port:
    """A port of Ethernet."""
    return Port(device, number, LinkLayer.ETHERNET, state, 0, table)


# As mlx5 fills it: each address as v1 and as v2, the one made of the hardware address first.
TABLE = gids(
    (0, "fe80::1", V1),
    (1, "fe80::1", V2),
    (2, "10.0.0.1", V1),
    (3, "10.0.0.1", V2),
    (4, "2001:db8::1", V1),
    (5, "2001:db8::1", V2),
    (8, "10.0.1.1", V2),
)


# ---- choose_port ----


def test_no_port() -> None:
    """Without a device, and without the one asked for, the sentence says what there is."""
    with pytest.raises(RdmaUnavailableError, match=r"^this host has no RDMA device$"):
        choose_port([])
    there = [port("a"), port("b", 2)]
    with pytest.raises(RdmaUnavailableError, match=r"no RDMA port c/PORT; there are a/1, b/2$"):
        choose_port(there, device="c")
    with pytest.raises(RdmaUnavailableError, match=r"no RDMA port a/2; there are"):
        choose_port(there, device="a", number=2)
    with pytest.raises(RdmaUnavailableError, match=r"no RDMA port DEVICE/3; there are"):
        choose_port(there, number=3)


def test_port_down() -> None:
    """A port that is not active is named with its state; another one that is active is taken instead."""
    down = port("a", state="DOWN", table=TABLE)
    with pytest.raises(RdmaUnavailableError, match=r"^RDMA port a/1 is DOWN$"):
        choose_port([down])
    up = port("b", table=TABLE)
    assert choose_port([down, up]) is up
    with pytest.raises(RdmaUnavailableError, match=r"a/1 is DOWN"):
        choose_port([down, up], device="a")


def test_port_without_gid() -> None:
    """An active port without a GID cannot be reached; one with a GID goes before it."""
    bare, full = port("a"), port("b", table=TABLE)
    with pytest.raises(RdmaUnavailableError, match=r"a/1 has no GID: give its network interface an address"):
        choose_port([bare])
    assert choose_port([bare, full]) is full


def test_port_by_address() -> None:
    """Of several ports the one with the local address is taken, of either family; with an unknown address the first."""
    first = port("a", table=gids((1, "10.0.0.1", V2)))
    second = port("b", 1, table=gids((1, "10.0.1.1", V2)))
    third = port("b", 2, table=gids((0, "fe80::7", V2), (1, "2001:db8::7", V2)))
    every = [first, second, third]
    assert choose_port(every) is first
    assert choose_port(every, local=ipaddress.ip_address("10.0.1.1")) is second
    assert choose_port(every, local=ipaddress.ip_address("2001:db8::7")) is third
    assert choose_port(every, local=ipaddress.ip_address("192.0.2.1")) is first
    assert choose_port(every, device="b", local=ipaddress.ip_address("10.0.0.1")) is second
    assert choose_port(every, device="b", number=2) is third


# ---- choose_gid ----


@pytest.mark.parametrize(
    ("remote", "local", "index"),
    [
        pytest.param(None, None, 3, id="v2, global, IPv4 first"),
        pytest.param(None, "2001:db8::1", 5, id="the local address"),
        pytest.param(None, "10.0.1.1", 8, id="the local address, not the first"),
        pytest.param(None, "192.0.2.9", 3, id="a local address that is none of the port's"),
        pytest.param("10.0.0.9", None, 3, id="IPv4 to IPv4"),
        pytest.param("10.0.1.9", "10.0.1.1", 8, id="IPv4 by the local address"),
        pytest.param("2001:db8::9", None, 5, id="IPv6 to IPv6"),
        pytest.param("2001:db8::9", "10.0.0.1", 5, id="the family of the remote one counts more than local"),
        pytest.param("fe80::9", None, 1, id="link-local to link-local"),
        pytest.param("fe80::9", "2001:db8::1", 5, id="the local address counts more than the scope"),
        pytest.param("10.0.1.1", "10.0.0.1", 8, id="loopback: the remote one itself"),
        pytest.param("fe80::1", None, 1, id="loopback, link-local, v2"),
    ],
)
def test_gid(remote: str | None, local: str | None, index: int) -> None:
    """Of a full table the GID that reaches the other end is chosen, wherever it stands in the table."""
    options: dict[str, Any] = {
        "remote": None if remote is None else address(remote),
        "local": None if local is None else ipaddress.ip_address(local),
    }
    assert choose_gid(port(table=TABLE), **options).index == index
    assert choose_gid(port(table=TABLE[::-1]), **options).index == index


def test_gid_without_hints() -> None:
    """Nothing known of the other end: an address that is routed goes before a link-local one, and IPv4 before IPv6."""
    only_ipv6 = gids((0, "fe80::1", V2), (1, "2001:db8::1", V2))
    assert choose_gid(port(table=only_ipv6)).index == 1
    assert choose_gid(port(table=only_ipv6 + gids((2, "10.0.0.1", V2)))).index == 2


def test_gid_v1_only() -> None:
    """Without RoCE v2 (InfiniBand, an old card) the older type is taken; with it, not even for the local address."""
    table = gids((0, "fe80::1", V1), (2, "10.0.0.1", V1))
    assert choose_gid(port(table=table)).index == 2
    mixed = gids((2, "10.0.0.1", V1), (7, "10.0.9.1", V2))
    assert choose_gid(port(table=mixed), local=ipaddress.ip_address("10.0.0.1")).index == 7


def test_gid_by_index() -> None:
    """An index asked for is taken whatever it is, and one that is a hole names those there are."""
    assert choose_gid(port(table=TABLE), index=0, remote=address("10.0.0.9")).address == address("fe80::1")
    with pytest.raises(RdmaUnavailableError, match=r"rxe0/1 has no GID 6; it has 0, 1, 2, 3, 4, 5, 8$"):
        choose_gid(port(table=TABLE), index=6)
    with pytest.raises(RdmaUnavailableError, match=r"no GID 0; it has none$"):
        choose_gid(port(), index=0)


def test_gid_of_the_wrong_family() -> None:
    """Without a GID of the other end's family there is no path."""
    only_ipv6 = port(table=gids((1, "2001:db8::1", V2)))
    with pytest.raises(RdmaUnavailableError, match=r"no IPv4 GID, as the other end's is"):
        choose_gid(only_ipv6, remote=address("10.0.0.9"))
    only_ipv4 = port(table=gids((1, "10.0.0.1", V2)))
    with pytest.raises(RdmaUnavailableError, match=r"no IPv6 GID, as the other end's is"):
        choose_gid(only_ipv4, remote=address("fe80::9"))


def test_gid_of_none() -> None:
    """A port whose GIDs have all gone says so, and blames no other end."""
    with pytest.raises(RdmaUnavailableError, match=r"^RDMA port rxe0/1 has no GID$"):
        choose_gid(port())


ADDRESSES = st.ip_addresses()
KINDS = st.sampled_from([V1, V2])


@given(
    entries=st.lists(st.tuples(ADDRESSES, KINDS), min_size=1, max_size=12),
    local=st.none() | ADDRESSES,
    remote=st.none() | ADDRESSES,
)
def test_gid_of_any_table(
    entries: list[tuple[path.Address, GidType]], local: path.Address | None, remote: path.Address | None
) -> None:
    """Whatever the table: the choice is of the remote family, of v2 where any such is, and does not depend on order."""
    table = tuple(Gid(index, as_gid(entry), kind) for index, (entry, kind) in enumerate(entries))
    wanted = None if remote is None else as_gid(remote)
    fitting = [g for g in table if wanted is None or (g.address.ipv4_mapped is None) == (wanted.ipv4_mapped is None)]
    try:
        chosen = choose_gid(port(table=table), local=local, remote=wanted)
    except RdmaUnavailableError:
        assert not fitting
        return
    assert chosen in fitting
    assert chosen.kind is V2 or all(gid.kind is V1 for gid in fitting)
    assert choose_gid(port(table=table[::-1]), local=local, remote=wanted) == chosen


# ---- addressing ----


def test_as_gid() -> None:
    """IPv4 addresses are mapped as RFC 4291 says; IPv6 addresses are GIDs as they are."""
    assert as_gid(ipaddress.ip_address("10.99.0.1")).packed == bytes(10) + b"\xff\xff\x0a\x63\x00\x01"
    assert as_gid(ipaddress.ip_address("fe80::1")) == ipaddress.ip_address("fe80::1")


def test_needs_global_route() -> None:
    """On Ethernet always; on InfiniBand only to another subnet, which is the upper half of a GID."""
    here, there, far = address("fe80::1"), address("fe80::2"), address("fec0::2")
    assert needs_global_route(LinkLayer.ETHERNET, here, there)
    assert not needs_global_route(LinkLayer.INFINIBAND, here, there)
    assert needs_global_route(LinkLayer.INFINIBAND, here, far)


@given(st.floats(min_value=0, max_value=1e9))
def test_ack_timeout(limit_ms: float) -> None:
    """The exponent is one that hardware knows: all tries end within the limit, and with the next one they would not."""
    exponent = path.ack_timeout(limit_ms)
    assert 1 <= exponent <= path.ACK_TIMEOUT_MAX
    tries = 1 + path.RETRIES

    def length_ms(value: int) -> float:
        return tries * path.ACK_UNIT_MS * (1 << value)

    assert exponent == 1 or length_ms(exponent) <= limit_ms
    assert exponent == path.ACK_TIMEOUT_MAX or length_ms(exponent + 1) > limit_ms * (1 - 1e-9)


def test_ack_timeout_values() -> None:
    """As the specification counts: 4.096 µs * 2^16 = 268 ms, seven of which are 1 879.1 ms."""
    assert path.ack_timeout(10000) == 16
    assert path.ack_timeout(1880) == 16
    assert path.ack_timeout(1879) == 15
    assert path.ack_timeout(0) == 1


# ---- what the ends tell each other ----

PAIRS = st.builds(QueuePair, number=st.integers(0, 0xFFFFFF), psn=st.integers(0, 0xFFFFFF))
ENDS = st.builds(
    PathEnd,
    link_layer=st.sampled_from(LinkLayer),
    gid=st.ip_addresses(v=6),
    lid=st.integers(0, 0xFFFF),
    mtu_bytes=st.sampled_from(sorted(path_messages.MTU_CODES)),
    reads_max=st.integers(0, 255),
    queue_pairs=st.tuples(*[PAIRS] * path_messages.QUEUE_PAIRS),
)
GOOD = PathEnd(LinkLayer.ETHERNET, address("10.0.0.1"), 0, 1024, 16, (QueuePair(17, 5), QueuePair(18, 6))).as_json()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(ENDS)
def test_end_there_and_back(end: PathEnd) -> None:
    """What one end says is what the other understands, through JSON text."""
    assert parse_end(json.loads(json.dumps(end.as_json()))) == end


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_region_there_and_back(start: int, rkey: int) -> None:
    """Addresses of 64 bits and keys of 32 survive the way."""
    region = Region(start, rkey)
    assert parse_region(json.loads(json.dumps(region.as_json()))) == region


@given(JSON)
def test_hostile_content(content: Any) -> None:
    """Whatever comes in place of an end or a region is refused with ValueError, and with nothing else."""
    for parse in (parse_end, parse_region):
        with pytest.raises(ValueError, match=r"\w+ must be "):
            parse(content)


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_hostile_field(name: str, value: Any) -> None:
    """One field that is something else: refused, unless it is a value that this field may have."""
    try:
        end = parse_end(GOOD | {name: value})
    except ValueError:
        return
    assert end.as_json()[name] == value or name == "gid"
    assert type(end.as_json()[name]) is type(value)


@given(st.integers(0, path_messages.QUEUE_PAIRS - 1), st.sampled_from(["number", "psn"]), JSON)
def test_hostile_queue_pair(which: int, name: str, value: Any) -> None:
    """A queue pair takes nothing but numbers of 24 bits; true is not 1."""
    pairs: list[dict[str, Any]] = [dict(pair) for pair in GOOD["queue_pairs"]]
    pairs[which][name] = value
    try:
        end = parse_end(GOOD | {"queue_pairs": pairs})
    except ValueError:
        assert type(value) is not int or not 0 <= value <= 0xFFFFFF
        return
    assert type(value) is int
    assert end.as_json()["queue_pairs"][which][name] == value


@pytest.mark.parametrize("name", sorted(GOOD))
def test_missing_field(name: str) -> None:
    """No field may be missing."""
    with pytest.raises(ValueError, match="must be"):
        parse_end({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    "change",
    [
        {"link_layer": "Token Ring"},
        {"link_layer": 1},
        {"gid": "10.0.0.1"},
        {"gid": 1},
        {"gid": "fe80::1%eth0"},
        {"lid": -1},
        {"lid": 0x10000},
        {"lid": 1.0},
        {"mtu_bytes": 1500},
        {"mtu_bytes": 1024.0},
        {"mtu_bytes": [1024]},
        {"reads_max": True},
        {"reads_max": 256},
        {"reads_max": 10**400},
        {"queue_pairs": []},
        {"queue_pairs": [{"number": 1, "psn": 1}] * 3},
        {"queue_pairs": [None, None]},
        {"queue_pairs": {"0": {}, "1": {}}},
        {"queue_pairs": [{"number": 1 << 24, "psn": 1}, {"number": 1, "psn": 1}]},
        {"queue_pairs": [{"number": 1, "psn": 1}, {"number": 1}]},
    ],
)
def test_refused_ends(change: dict[str, Any]) -> None:
    """The nearest wrong values, one by one."""
    assert parse_end(GOOD).as_json() == GOOD
    with pytest.raises(ValueError, match="must be"):
        parse_end(GOOD | change)


@pytest.mark.parametrize(
    "content",
    [
        {"address": 1 << 64, "rkey": 1},
        {"address": -1, "rkey": 1},
        {"address": 1, "rkey": 1 << 32},
        {"address": True, "rkey": 1},
        {"address": "4096", "rkey": 1},
        {"address": 4096},
        [4096, 1],
    ],
)
def test_refused_regions(content: Any) -> None:
    """A region outside 64 bits, or a key outside 32, never reaches the hardware."""
    with pytest.raises(ValueError, match="must be a whole number"):
        parse_region(content)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("trip_ms", [0.001, 0.02, 0.3, 1.0, 5.0, 50.0])
def test_retry_time_follows_the_round_trip(trip_ms: float, soft: bool) -> None:
    """A try leaves room for many round trips; counted ones span half a second and end within the limit."""
    exponent = path.ack_timeout(3000, trip_ms, soft=soft)
    try_ms = path.ACK_UNIT_MS * 2**exponent
    assert exponent <= path.ack_timeout(3000)
    assert exponent == path.ACK_TIMEOUT_MAX or try_ms >= path.ROUND_TRIPS * trip_ms
    if soft:
        assert exponent == path.ACK_TIMEOUT_MAX or try_ms < 68 or try_ms < 3 * path.ROUND_TRIPS * trip_ms
    else:
        assert 500 < try_ms * (1 + path.RETRIES) <= 3000
