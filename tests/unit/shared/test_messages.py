"""Messages of device and daemon: what one sends the other reads, and what older programs leave out is made up for."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import Any

import pytest

from infiniswap.shared.messages import (
    TEXT_CHARACTERS_MAX,
    AnswerError,
    Beat,
    Granted,
    LeaseRequest,
    Life,
    Mapped,
    Offered,
    OpenedPath,
    PathRequest,
    Standing,
    Ticket,
    incarnation,
)
from infiniswap.shared.path_messages import LinkLayer, PathEnd, QueuePair, Region

LIFE = Life("incarnation", 60.0, 60.0)
END = PathEnd(LinkLayer.ETHERNET, IPv6Address("::1"), 0, 1024, 16, (QueuePair(17, 1), QueuePair(18, 2)))
PROBE = Region(1 << 40, 7)


def sent(content: dict[str, Any]) -> dict[str, Any]:
    """As it comes out of the other end's JSON."""
    read: dict[str, Any] = json.loads(json.dumps(content))
    return read


def test_requests_come_through() -> None:
    """Every field of every request."""
    lease = LeaseRequest("swap0", "0f6a2c1e-5d5b-4a39-9a3c-6f1b7c1d2e30", 1 << 30, 1 << 20)
    assert LeaseRequest.parse(sent(lease.as_json())) == lease
    assert PathRequest.parse(sent(PathRequest(END).as_json())) == PathRequest(END)


@pytest.mark.parametrize("link_layer", [None, "Ethernet"])
def test_answers_come_through(link_layer: str | None) -> None:
    """Every field that a device reads of every answer."""
    standing = Standing("0.2.0", lending=False, draining=link_layer is not None)
    offered = Offered(1, 2, "i", link_layer=link_layer, standing=standing)
    assert Offered.parse(sent(offered.as_json())) == offered
    assert offered.rdma is (link_layer is not None)
    granted = Granted(
        "lease-1", "token", "lease-token", ("::1", 7402), link_layer, LIFE, no_rdma="" if link_layer else "no device"
    )
    assert Granted.parse(sent(granted.as_json())) == granted
    beat = Beat(frozenset({3, 1}), 5, 2, rdma=link_layer is not None, standing=standing)
    answer = sent(beat.as_json(LIFE))
    assert (Beat.parse(answer), incarnation(answer), answer["slabs"]) == (beat, "incarnation", [1, 3])
    ticket = Ticket("ticket-x", ("::1", 7402), 10.0)
    assert Ticket.parse(sent(ticket.as_json())) == ticket
    for mapped in (Mapped(5), Mapped(5, PROBE)):
        assert Mapped.parse(sent(mapped.as_json(4))) == mapped
    opened = OpenedPath(END, "rxe0/1", PROBE, {3: Region(1, 2), 4: Region(5, 6)})
    assert OpenedPath.parse(sent(opened.as_json(4096))) == opened


def test_an_older_daemon() -> None:
    """It tells neither of RDMA nor of connections."""
    assert Beat.parse({"slabs": [], "free_bytes": 1}) == Beat(frozenset(), 1, 0, rdma=True)
    offered = Offered.parse({"free_bytes": 1, "total_bytes": 1, "incarnation": "i"})
    assert (offered.rdma, offered.standing, offered.standing.word) == (False, Standing("", True, False), "lending")
    assert Mapped.parse({"free_bytes": 1}).region is None
    granted = Granted("lease-1", "token", "lease-token", ("::1", 7402), None, LIFE).as_json()
    assert Granted.parse({name: value for name, value in granted.items() if name != "no_rdma"}).no_rdma == ""
    assert Granted.parse({**granted, "no_rdma": "a\nb" + "c" * 5000}).no_rdma.isprintable()
    assert len(Granted.parse({**granted, "no_rdma": "c" * 5000}).no_rdma) <= TEXT_CHARACTERS_MAX


@pytest.mark.parametrize("version", [None, 7, ["x"], "a\nb", "x" * 65])
def test_a_version_that_is_none(version: object) -> None:
    """It is for a terminal; what is wrong with it is no reason to refuse the answer."""
    assert Standing.parse({"version": version, "lending": "no", "draining": 1}) == Standing("", True, False)


def test_secrets_are_not_shown() -> None:
    """A grant may be logged: its token and export do not stand in its text."""
    assert "secret" not in repr(Granted("l", "secret", "lease-secret", ("h", 1), None, LIFE))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"device": ""}, "device must be a name of 1 to 255 printable characters"),
        ({"device": "a\n"}, "device must be a name of 1 to 255 printable characters"),
        ({"device_id": "x"}, "device_id must be a UUID"),
        ({"size_bytes": True}, "size_bytes must be a whole number of bytes"),
        ({"slab_bytes": 1 << 64}, "slab_bytes must be a whole number of bytes"),
    ],
)
def test_requests_that_are_none(change: dict[str, Any], sentence: str) -> None:
    """The sentence goes back to who asked."""
    good = LeaseRequest("a", "0f6a2c1e-5d5b-4a39-9a3c-6f1b7c1d2e30", 1, 1).as_json()
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        LeaseRequest.parse({**good, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lease": "a/b"}, "its answer has a lease that cannot be used"),
        ({"token": ""}, "its answer lacks token"),
        ({"address": ["h", 0]}, "its answer lacks the address for page I/O"),
        ({"ttl_s": 0}, "its answer lacks a ttl_s between 0.1 and 86400"),
    ],
)
def test_answers_that_are_none(change: dict[str, Any], sentence: str) -> None:
    """The sentence names what is missing."""
    good = Granted("l", "t", "e", ("h", 1), None, LIFE).as_json()
    with pytest.raises(AnswerError) as caught:
        Granted.parse({**good, **change})
    assert str(caught.value) == sentence
