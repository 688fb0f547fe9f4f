"""A watched file is believed when it is whole; SRV records are read within limits; both say why they are of no use."""

from __future__ import annotations

import os
from pathlib import Path

import dns.rcode
import pytest

from infiniswap.device import srv
from infiniswap.device.discovery import FileLook
from infiniswap.shared.address import HostPort, parse_host_port
from tests.support.dns_server import DnsServer

A = HostPort("a", 7401)


def listing(*names: str) -> bytes:
    """A list that names these."""
    return f'[{{"targets": {list(names)}}}]'.replace("'", '"').encode()


def test_two_looks_must_agree(tmp_path: Path) -> None:
    """What changes between two looks is left for the next one, and the same content is told once."""
    file = tmp_path / "peers.json"
    look = FileLook(file)
    with pytest.raises(FileNotFoundError):
        look.look()
    file.write_bytes(b"")
    assert look.look() is None, "it may be about to be written"
    file.write_bytes(listing("a"))
    assert look.look() is None
    assert look.look() == frozenset({A})
    assert look.look() is None


def test_replaced_deleted_and_back(tmp_path: Path) -> None:
    """A file that is replaced in one step is another one; one that is back after a time is told again."""
    file = tmp_path / "peers.json"
    file.write_bytes(listing("a"))
    look = FileLook(file)
    assert [look.look(), look.look()] == [None, frozenset({A})]
    (tmp_path / "new").write_bytes(listing("b"))
    (tmp_path / "new").replace(file)
    assert [look.look(), look.look()] == [None, frozenset({HostPort("b", 7401)})]
    file.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        look.look()
    (tmp_path / "away").rename(file)
    assert look.look() == frozenset({HostPort("b", 7401)})


def test_half_written_is_said_once(tmp_path: Path) -> None:
    """It is no list until it changes again."""
    file = tmp_path / "peers.json"
    file.write_bytes(listing("a")[:-3])
    look = FileLook(file)
    assert look.look() is None
    with pytest.raises(ValueError, match="it is not JSON"):
        look.look()
    assert look.look() is None
    file.write_bytes(listing("a"))
    assert [look.look(), look.look()] == [None, frozenset({A})]


def test_no_file_at_all(tmp_path: Path) -> None:
    """A FIFO would keep the reader waiting, a folder cannot be read."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(ValueError, match="no regular file"):
            FileLook(path).look()


async def test_srv_records() -> None:
    """Hosts and ports, in lower case, and how long they hold."""
    with DnsServer("example.net", ttl_s=42) as server:
        server.records = [HostPort("Node1.example.net", 7401), HostPort("node2.example.net", 9)]
        found = await srv.look_up("example.net.", parse_host_port(server.address, "server"))
    assert found[0] == {HostPort("node1.example.net", 7401), HostPort("node2.example.net", 9)}
    assert found[1] == 42


@pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_no_records(rcode: dns.rcode.Rcode) -> None:
    """Whatever the reason, it is one and no list: not even an empty one."""
    with DnsServer("example.net") as server:
        server.rcode = rcode
        with pytest.raises(srv.NoAnswerError):
            await srv.look_up("example.net", parse_host_port(server.address, "server"))


async def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer costs the time of a lookup."""
    monkeypatch.setattr(srv, "LOOKUP_TIMEOUT_S", 0.2)
    with DnsServer("example.net") as server:
        server.silent = True
        with pytest.raises(srv.NoAnswerError):
            await srv.look_up("example.net", parse_host_port(server.address, "server"))
        assert server.asked > 0
