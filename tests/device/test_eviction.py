"""A donor that needs its memory back gets it, and the device's clients notice nothing."""

from __future__ import annotations

from tests.device.support import SLAB_BYTES, Load, PageModel, mapped, pattern
from tests.support.daemon_api import MIB
from tests.support.donor import Donor
from tests.support.services import Services
from tests.support.waiting import wait_for

SLABS = 16
SLAB_PAGES = SLAB_BYTES // 4096


def test_memory_comes_back_under_load(services: Services) -> None:
    """The host's programs take half of what is lent: headroom is there again, by notices alone, data is right."""
    with Donor(32, host_mib=64, headroom_mib=16) as donor:
        device = services.device("vol", "--map", "eager", peers=[donor.address], size=f"{SLABS}MiB")
        data = pattern(SLABS * SLAB_PAGES)
        with device.connect() as client:
            client.write(0, data)
            wait_for(lambda: len(mapped(device)) == SLABS, what="mapping of all")
            client.write(0, data)  # so that the memory is taken for real
            assert donor.get("/v1/offer")["used_bytes"] == SLABS * MIB
            model = PageModel(data)
            with Load(device, model) as load:
                donor.others_bytes = 40 * MIB  # of 64, with 16 to be kept free: 8 may be lent
                wait_for(lambda: donor.free_bytes() >= 16 * MIB, what="headroom", timeout_s=10.0)
                wait_for(lambda: donor.get("/v1/offer")["used_bytes"] <= 8 * MIB, what="memory given back")
            assert not load.errors
            assert load.written > 0
            assert model.verify(client) == []
        assert donor.counts()["evicted"] >= 8
        assert donor.counts()["evicted_by_force"] == 0
        assert len(mapped(device)) <= 8
        assert device.get("/v1/stats")["failures"]["peers_lost"] == 0
        device.stop()
