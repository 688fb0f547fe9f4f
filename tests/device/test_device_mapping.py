"""Mapping on a running device: hot slabs get memory at the peers, cold ones give it back, data is always right."""

from __future__ import annotations

from tests.device.support import PAGE_BYTES, SLAB_BYTES, mapped, pattern
from tests.support.services import Services
from tests.support.waiting import wait_for

SLAB_PAGES = SLAB_BYTES // PAGE_BYTES


def test_slabs_spread_over_the_peers(services: Services) -> None:
    """Power of two choices: no peer is left out, and full peers are passed over."""
    daemons = [services.daemon("8MiB") for _ in range(3)]
    device = services.device("vol", "--map", "eager", peers=daemons)
    with device.connect() as client:
        for slab in range(24):
            client.write(slab * SLAB_BYTES, pattern(4, slab))
        wait_for(lambda: len(mapped(device)) == 24, what="mapping of all memory there is", timeout_s=30.0)
        client.write(30 * SLAB_BYTES, pattern(4, 30))
        assert client.read(30 * SLAB_BYTES, 4 * PAGE_BYTES) == pattern(4, 30)
        assert [peer["slabs"] for peer in device.get("/v1/peers")] == [8, 8, 8]
        assert 30 not in mapped(device), "a full cluster leaves a slab on the backup"
        wait_for(lambda: device.get("/v1/stats")["failures"]["mappings_without_room"] >= 1, what="count")
        for slab in range(24):
            assert client.read(slab * SLAB_BYTES, 4 * PAGE_BYTES) == pattern(4, slab)


def test_cold_slabs_give_their_memory_back(services: Services) -> None:
    """The daemon gets it, the pages are read from the backup, and a slab that becomes hot is mapped again."""
    daemon = services.daemon()
    device = services.device("vol", "--cold-page-ios", "15", peers=[daemon])
    data = pattern(SLAB_PAGES)
    with device.connect() as client:
        client.write(0, data)
        wait_for(lambda: mapped(device) == {0}, what="mapping")
        client.write(0, data)
        assert daemon.get("/v1/offer")["used_bytes"] == SLAB_BYTES
        wait_for(lambda: mapped(device) == set(), what="giving up", timeout_s=40.0)
        wait_for(lambda: daemon.get("/v1/offer")["used_bytes"] == 0, what="memory given back")
        assert device.get("/v1/stats")["releases"] == 1
        before = device.get("/v1/stats")["reads"]["backup"]
        assert client.read(0, SLAB_BYTES) == data
        assert device.get("/v1/stats")["reads"]["backup"] == before + SLAB_PAGES
        client.write(0, data[::-1])
        wait_for(lambda: mapped(device) == {0}, what="mapping again")
        assert client.read(0, SLAB_BYTES) == data[::-1]
