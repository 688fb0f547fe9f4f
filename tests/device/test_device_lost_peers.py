"""Losing daemons under load: the client sees no error and no wrong byte, and daemons that come back are used again."""

from __future__ import annotations

import os
import signal
import time

from tests.device.support import PAGE_BYTES, SLAB_BYTES, Load, PageModel, mapped, pattern
from tests.support.services import Daemon, Services
from tests.support.waiting import wait_for

PAGES = 2048
SLABS = PAGES * PAGE_BYTES // SLAB_BYTES


def restart(services: Services, daemon: Daemon) -> Daemon:
    """A new daemon on the address of a dead one."""
    return services.daemon("64MiB", "--listen", daemon.address)


def test_one_of_three_killed_under_load(services: Services) -> None:
    """Its slabs are served from the backup and the pending buffers and are mapped elsewhere; every page is right."""
    daemons = [services.daemon() for _ in range(3)]
    device = services.device("vol", "--map", "eager", "--writeback-delay-ms", "500", peers=daemons)
    model = PageModel(pattern(PAGES))
    with device.connect() as client:
        client.write(0, b"".join(model.pages))
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping")
        with Load(device, model) as load:
            wait_for(lambda: load.written > 500, what="load")
            daemons[0].kill()
            at = load.written
            wait_for(lambda: load.written > at + 500, what="load after the loss")
            wait_for(lambda: len(mapped(device)) == SLABS, what="mapping elsewhere", timeout_s=20.0)
        assert load.errors == []
        assert model.verify(client) == []
        stats = device.get("/v1/stats")
        assert stats["failures"]["peers_lost"] == 1
        assert stats["failures"]["lost_pages"] == 0
        lost, *others = device.get("/v1/peers")
        assert (lost["state"], lost["slabs"]) == ("down", 0)
        assert lost["last_error"]
        assert sum(peer["slabs"] for peer in others) == SLABS
    device.stop()
    assert device.backup.read_bytes()[: PAGES * PAGE_BYTES] == b"".join(model.pages)


def test_all_killed_and_one_back(services: Services) -> None:
    """The device goes on with the backup alone, and uses a daemon again once it is there."""
    daemons = [services.daemon() for _ in range(2)]
    device = services.device("vol", "--map", "eager", peers=daemons)
    model = PageModel(pattern(PAGES))
    with device.connect() as client:
        client.write(0, b"".join(model.pages))
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping")
        with Load(device, model) as load:
            wait_for(lambda: load.written > 200, what="load")
            for daemon in daemons:
                daemon.kill()
            at = load.written
            wait_for(lambda: load.written > at + 200, what="load without daemons")
            assert mapped(device) == set()
            restart(services, daemons[1])
            wait_for(lambda: len(mapped(device)) == SLABS, what="mapping to the new daemon", timeout_s=40.0)
        assert load.errors == []
        assert model.verify(client) == []
        assert [peer["state"] for peer in device.get("/v1/peers")] == ["down", "up"]


def test_daemon_that_hangs(services: Services) -> None:
    """A stopped process answers nothing and closes nothing: requests go on after the peer's time-out."""
    daemons = [services.daemon() for _ in range(2)]
    device = services.device("vol", "--map", "eager", "--peer-timeout-ms", "300", peers=daemons)
    model = PageModel(pattern(PAGES))
    with device.connect() as client:
        client.write(0, b"".join(model.pages))
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping")
        victim = daemons[0]
        with Load(device, model) as load:
            os.kill(victim.pid, signal.SIGSTOP)
            try:
                at = load.written
                wait_for(lambda: load.written > at + 300, what="load beside a hanging daemon", timeout_s=20.0)
                peers = {peer["peer"]: peer for peer in device.get("/v1/peers")}
                wait_for(lambda: device.get("/v1/stats")["failures"]["peers_lost"] >= 1, what="loss")
                assert peers[daemons[1].address]["state"] == "up"
            finally:
                os.kill(victim.pid, signal.SIGCONT)
        assert load.errors == []
        assert model.verify(client) == []
        wait_for(lambda: all(p["state"] == "up" for p in device.get("/v1/peers")), what="its return", timeout_s=30.0)


def test_no_daemon_at_the_start(services: Services) -> None:
    """The device serves at once, says so, and uses the daemon when it comes."""
    gone = services.daemon()
    gone.stop()
    started_s = time.monotonic()
    device = services.device("vol", "--map", "eager", peers=[gone.address])
    assert time.monotonic() - started_s < 25.0
    assert f"peer {gone.address}: cannot connect" in device.log
    data = pattern(64)
    with device.connect() as client:
        client.write(0, data)
        assert client.read(0, len(data)) == data
        restart(services, gone)
        wait_for(lambda: mapped(device) == {0}, what="mapping", timeout_s=30.0)
        client.write(0, data[::-1])
        assert client.read(0, len(data)) == data[::-1]


def test_no_peers_at_all(services: Services) -> None:
    """A device without peers is a slow disk, with a warning."""
    device = services.device()
    assert "no peers are configured" in device.log
    with device.connect() as client:
        client.write(0, b"alone")
        assert client.read(0, 5) == b"alone"


def test_daemons_killed_in_turn(services: Services) -> None:
    """Each comes back on its address while the next one dies; the load never notices."""
    daemons = [services.daemon() for _ in range(3)]
    device = services.device("vol", "--map", "eager", peers=daemons)
    model = PageModel(pattern(PAGES))
    with device.connect() as client:
        client.write(0, b"".join(model.pages))
        with Load(device, model) as load:
            for number in range(3):
                wait_for(lambda: len(mapped(device)) > 0, what="mapping", timeout_s=30.0)
                at = load.written
                wait_for(lambda at=at: load.written > at + 200, what="load")  # type: ignore[misc]
                daemons[number].kill()
                daemons[number] = restart(services, daemons[number])
        assert load.errors == []
        assert model.verify(client) == []
        assert device.get("/v1/stats")["failures"]["lost_pages"] == 0
