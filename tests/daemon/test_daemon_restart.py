"""A daemon that is killed or stopped and started again: with a holder, leases and pages are as they were."""

from __future__ import annotations

import os
import signal
import socket
import urllib.error
from pathlib import Path

import pytest

from infiniswap.shared.address import parse_host_port
from infiniswap.shared.donor_client import DonorClient
from infiniswap.shared.operator_messages import DonorState
from tests.support.holders import end_holder
from tests.support.lease import take_lease
from tests.support.services import Services

MIB = 1 << 20
NEW_LEASE = "there is no lease"


@pytest.fixture
def holder(services: Services) -> Path:
    """Where its socket is: in a folder with a short name."""
    return services.folder / "holder"


def pages(number: int) -> bytes:
    """What a test writes."""
    return bytes([number]) * MIB


def test_killed_and_started_again(services: Services, holder: Path) -> None:
    """Again and again kill -9: same incarnation, same ports, and what was written is read over new connections."""
    daemon = services.daemon("16MiB", "--keep-memory", str(holder), "--log-level", "info")
    lease = take_lease(daemon, 4 * MIB, MIB)
    other = take_lease(daemon, 2 * MIB, MIB)
    with lease.connect() as client, other.connect() as stranger:
        client.write(0, b"".join(map(pages, range(4))))
        stranger.write(0, pages(7) * 2)
    first = daemon.get("/v1/health")["incarnation"]
    address = daemon.address
    for round_ in range(3):
        daemon.kill()
        daemon = services.daemon("16MiB", "--keep-memory", str(holder), "--log-level", "info")
        assert daemon.address == address
        assert daemon.get("/v1/health")["incarnation"] == first
        assert "restarted with the memory kept: 2 leases" in daemon.log
        beat = lease.call("POST", "/heartbeat", {})
        assert beat["slabs"] == ([0, 1, 2, 3] if round_ == 0 else [0, 1, 3])
        assert beat["expires_in_s"] == pytest.approx(beat["ttl_s"], abs=5.0), "renewed, however slow the machine"
        with lease.connect() as client, other.connect() as stranger:
            for slab in beat["slabs"]:
                assert client.read(slab * MIB, MIB) == pages(slab)
            assert stranger.read(0, 2 * MIB) == pages(7) * 2
            client.write(3 * MIB, pages(3))
        if round_ == 0:
            lease.call("DELETE", "/slabs/2")
        assert daemon.get("/v1/stats")["memory"]["used_bytes"] == 5 * MIB
    lease.map(2)
    with lease.connect() as client:
        assert client.read(2 * MIB, MIB) == bytes(MIB)
    lease.release()
    other.release()
    daemon.stop()
    end_holder(holder)


def test_stopped_and_started_again(services: Services, holder: Path) -> None:
    """SIGTERM keeps leases, too, where memory is kept: an upgrade costs no copy."""
    daemon = services.daemon("16MiB", "--keep-memory", str(holder))
    lease = take_lease(daemon, MIB, MIB)
    with lease.connect() as client:
        client.write(0, pages(5))
    first = daemon.get("/v1/health")["incarnation"]
    assert daemon.stop() == 0
    daemon = services.daemon("16MiB", "--keep-memory", str(holder))
    assert daemon.get("/v1/health")["incarnation"] == first
    with lease.connect() as client:
        assert client.read(0, MIB) == pages(5)
    daemon.stop()
    end_holder(holder)


def test_a_cordon_lives_on(services: Services, holder: Path) -> None:
    """Who took a host out of service finds it so after an upgrade or a crash, with a word in the log."""
    options = ("--keep-memory", str(holder))
    daemon = services.daemon("16MiB", *options)
    lease = take_lease(daemon, 4 * MIB, MIB)
    lease.call("DELETE", "/slabs/3")
    with DonorClient(parse_host_port(daemon.address, "the daemon")) as donor:
        assert donor.cordon().state is DonorState.CORDONED
    services.expect_log("503 this daemon lends nothing more now")
    services.expect_log("cordoned since before the restart: nothing new is lent until 'infiniswap donor uncordon'")
    daemon.kill()
    daemon = services.daemon("16MiB", *options)
    assert daemon.get("/v1/status")["state"] == "cordoned"
    assert daemon.get("/v1/offer")["free_bytes"] == 0
    with pytest.raises(urllib.error.HTTPError, match="503"):
        lease.map(3)
    assert lease.call("POST", "/heartbeat", {})["slabs"] == [0, 1, 2], "what is lent stays"
    with DonorClient(parse_host_port(daemon.address, "the daemon")) as donor:
        assert donor.uncordon().state is DonorState.LENDING
    assert daemon.stop() == 0
    daemon = services.daemon("16MiB", *options)
    assert daemon.get("/v1/status")["state"] == "lending"
    assert daemon.get("/v1/offer")["free_bytes"] > 0
    lease.release()
    daemon.stop()
    end_holder(holder)


def test_without_a_holder_there_is_nothing(services: Services) -> None:
    """A daemon that keeps nothing starts with a new incarnation, and knows nobody."""
    services.expect_log(NEW_LEASE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    daemon = services.daemon("16MiB", "--listen", listen)
    lease = take_lease(daemon, MIB, MIB)
    first = daemon.get("/v1/health")["incarnation"]
    daemon.kill()
    daemon = services.daemon("16MiB", "--listen", listen)
    assert daemon.get("/v1/health")["incarnation"] != first
    with pytest.raises(urllib.error.HTTPError, match="404"):
        lease.call("POST", "/heartbeat", {})


def test_another_size_is_another_memory(services: Services, holder: Path) -> None:
    """A start with other --memory says in a line that what is kept does not fit, and serves with new memory."""
    services.expect_log("the memory kept is 16MiB and --memory asks for 32MiB: starting without it", NEW_LEASE)
    daemon = services.daemon("16MiB", "--keep-memory", str(holder))
    lease = take_lease(daemon, MIB, MIB)
    first = daemon.get("/v1/health")["incarnation"]
    daemon.kill()
    services.daemon("32MiB", "--keep-memory", str(holder)).kill()
    daemon = services.daemon("32MiB", "--keep-memory", str(holder), "--listen", lease.daemon)
    assert daemon.get("/v1/health")["incarnation"] != first
    with pytest.raises(urllib.error.HTTPError, match="404"):
        lease.call("POST", "/heartbeat", {})
    daemon.stop()
    end_holder(holder)


def test_two_daemons_and_one_holder(services: Services, holder: Path) -> None:
    """The second one does not start, and says why; the first keeps what it has."""
    services.expect_log(NEW_LEASE)
    daemon = services.daemon("16MiB", "--keep-memory", str(holder))
    second = services.daemon("16MiB", "--keep-memory", str(holder), ready=False)
    second.expected_code = 4
    assert second.wait() == 4
    assert second.log == f"infiniswapd: --keep-memory {holder}: another daemon has the memory that is kept there\n"
    lease = take_lease(daemon, MIB, MIB)
    with lease.connect() as client:
        client.write(0, pages(1))
    daemon.stop()
    end_holder(holder)


def test_a_service_manager_is_told(services: Services) -> None:
    """READY=1 when it serves, the two descriptors for the fd store before that, STOPPING=1 at its end."""
    path = services.folder / "notify"
    received: list[list[str]] = []
    given: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        os.environ["NOTIFY_SOCKET"] = str(path)
        try:
            daemon = services.daemon("16MiB")
        finally:
            del os.environ["NOTIFY_SOCKET"]

        def until(word: str) -> None:
            while not received or word not in received[-1]:
                text, fds, _, _ = socket.recv_fds(manager, 4096, 4)
                received.append(text.decode().split("\n"))
                given.extend(fds)

        until("READY=1")
        assert [words[1] for words in received if words[0] == "FDSTORE=1"] == [
            "FDNAME=infiniswap-slabs",
            "FDNAME=infiniswap-leases",
        ]
        assert received[-1][1] == f"STATUS=lending at {daemon.url}"
        daemon.process.send_signal(signal.SIGTERM)
        until("STOPPING=1")
        assert daemon.wait() == 0
    assert os.fstat(given[0]).st_size == 16 * MIB
    for fd in given:
        os.close(fd)
