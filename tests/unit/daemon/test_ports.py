"""Pages have the port above control's, so that a firewall can name both; what devices know from before comes first."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from infiniswap.daemon.ports import Ports
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError

HOST = "127.0.0.1"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, int]]:
    """A port whose neighbour above is taken, by the socket given."""
    for _ in range(100):
        with socket.socket() as low, socket.socket() as high:
            low.bind((HOST, 0))
            port = low.getsockname()[1]
            try:
                high.bind((HOST, port + 1))
            except (OSError, OverflowError):
                continue
            low.close()
            high.listen()
            yield high, port
            return
    raise AssertionError("no two free ports beside each other in 100 tries")


def close(http: socket.socket, pages: list[socket.socket]) -> None:
    """All of a daemon's sockets."""
    for sock in (http, *pages):
        sock.close()


def test_pages_have_the_port_above(pair: tuple[socket.socket, int]) -> None:
    """7402 where control has 7401."""
    taken, port = pair
    taken.close()
    ports = Ports(HostPort(HOST, port), None, [])
    close(*ports.open())
    assert (ports.http_address, ports.data_address) == (HostPort(HOST, port), HostPort(HOST, port + 1))


def test_the_port_above_is_taken(pair: tuple[socket.socket, int]) -> None:
    """One line with the address, what it is for and the way out; the code for a port in use; nothing stays open."""
    _, port = pair
    with pytest.raises(UserError) as caught:
        Ports(HostPort(HOST, port), None, []).open()
    assert caught.value.code == ExitCode.IN_USE
    assert str(caught.value).startswith(f"{HOST}:{port + 1}: cannot listen there: Address already in use; page I/O has")
    assert "--data-listen" in str(caught.value)
    with socket.socket() as again:
        again.bind((HOST, port))


def test_the_port_of_before_comes_first(pair: tuple[socket.socket, int]) -> None:
    """A daemon that comes back with its memory serves pages where devices know them, unless another is asked for."""
    _, port = pair
    with socket.socket() as free:
        free.bind((HOST, 0))
        before = free.getsockname()[1]
    ports = Ports(HostPort(HOST, port), None, [])
    assert ports.left_to_chance
    close(*ports.open(0, before))
    assert ports.data_address.port == before
    assert not Ports(HostPort(HOST, port), HostPort(HOST, before), []).left_to_chance


def test_no_port_above() -> None:
    """65535 has none."""
    with pytest.raises(UserError, match="no port above"):
        Ports(HostPort(HOST, 65535), None, []).open()


def test_any_port_means_any_port() -> None:
    """--listen HOST:0 is for several daemons on one host."""
    ports = Ports(HostPort(HOST, 0), None, [])
    close(*ports.open())
    assert ports.data_address.port not in (0, ports.http_address.port)
