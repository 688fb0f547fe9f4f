"""A donor that needs its memory back gets it, and the device's clients notice nothing."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.device.support import SLAB_BYTES, Load, PageModel, mapped, pattern
from tests.support.daemon_api import MIB
from tests.support.donor import Donor
from tests.support.layouts import both_layouts
from tests.support.services import Device, Services
from tests.support.tools import fio_arguments, tool
from tests.support.waiting import wait_for

SLABS = 16
SLAB_PAGES = SLAB_BYTES // 4096
PATIENT_S = 15.0  # from notice to force, where a slow machine must not make the one into the other


def filled(services: Services, name: str, *donors: Donor, slabs: int = SLABS) -> tuple[Device, bytes]:
    """A device with remote memory for all of its slabs, each of which was written; and what."""
    device = services.device(name, "--map", "eager", peers=[donor.address for donor in donors], size=f"{slabs}MiB")
    data = pattern(slabs * SLAB_PAGES, slabs)
    with device.connect() as client:
        client.write(0, data)
        wait_for(lambda: len(mapped(device)) == slabs, what="mapping of all")
        client.write(0, data)  # so that the memory is taken for real
    return device, data


def holdings(device: Device) -> dict[str, int]:
    """Slabs by donor."""
    return {peer["peer"]: peer["slabs"] for peer in device.get("/v1/peers")}


@both_layouts
def test_memory_comes_back_under_load(services: Services) -> None:
    """The host's programs take half of what is lent: headroom is there again, by notices alone, data is right."""
    with Donor(32, host_mib=64, headroom_mib=16, give_up_s=PATIENT_S) as donor:
        device, data = filled(services, "vol", donor)
        with device.connect() as client:
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


@both_layouts
def test_hot_slabs_move_to_another_donor(services: Services) -> None:
    """Whose pages are then read from its memory at once: no page comes from the backup, and no client waits for it."""
    short = Donor(32, host_mib=96, headroom_mib=32, give_up_s=PATIENT_S)
    with short as leaving, Donor(32, host_mib=96, headroom_mib=32) as taking:
        peers = [leaving.address, taking.address]
        device = services.device("vol", "--map", "eager", peers=peers, size=f"{SLABS}MiB")
        data = pattern(SLABS * SLAB_PAGES)
        with device.connect() as client:
            client.write(0, data)
            wait_for(lambda: len(mapped(device)) == SLABS, what="mapping of all")
            client.write(0, data)
            wait_for(lambda: device.get("/v1/stats")["pending_bytes"] == 0, what="all on the backup")
            gone = leaving.get("/v1/offer")["used_bytes"] // MIB
            assert gone > 0
            model = PageModel(data)
            with Load(device, model) as load:
                leaving.others_bytes = 64 * MIB  # all that may be lent, and no more than half of the headroom
                wait_for(lambda: leaving.get("/v1/offer")["used_bytes"] == 0, what="memory given back", timeout_s=20.0)
                wait_for(lambda: taking.get("/v1/offer")["used_bytes"] == SLABS * MIB, what="all at the other donor")
            assert not load.errors
            counters = device.get("/v1/stats")["counters"]
            assert counters["moves_done"] == gone
            assert counters["moves_failed"] == 0
            assert counters["moved_pages"] >= gone * SLAB_PAGES // 2
            wait_for(lambda: device.get("/v1/stats")["pending_bytes"] == 0, what="all on the backup")
            before = device.get("/v1/stats")["reads"]
            assert model.verify(client) == []
            after = device.get("/v1/stats")["reads"]
            # What was written in the moment in which a slab changed places is read from the backup, and promoted.
            assert after["backup"] - before["backup"] <= SLABS * SLAB_PAGES // 20
        assert leaving.counts()["evicted"] == gone
        assert leaving.counts()["evicted_by_force"] == 0
        assert device.get("/v1/stats")["failures"]["peers_lost"] == 0
        device.stop()


@both_layouts
def test_a_device_that_stands_still_delays_nobody(services: Services) -> None:
    """It loses its slabs by force, and the host has its memory; when it goes on, every page is right."""
    # Of the other device some, too, where it is kept from its work.
    services.expect_log(r"refuses slab \d+, which is lost there")
    with Donor(64, host_mib=96, headroom_mib=32, lease_ttl_s=300.0) as donor:
        stuck, stuck_data = filled(services, "stuck", donor)
        other, other_data = filled(services, "other", donor)
        with stuck.suspended():
            model = PageModel(other_data)
            with Load(other, model) as load:
                donor.others_bytes = 46 * MIB  # 18 of the 32 that are lent may stay
                wait_for(lambda: donor.free_bytes() >= 32 * MIB, what="headroom", timeout_s=10.0)
            assert not load.errors
            counts = donor.counts()
            assert counts["evicted_by_force"] >= 4, counts  # at least its share of the 14
            with other.connect() as client:
                assert model.verify(client) == []
        with stuck.connect() as client:
            assert client.read(0, len(stuck_data)) == stuck_data
        wait_for(lambda: stuck.get("/v1/stats")["evictions"]["taken"] >= 4, what="news of it")
        for device in (stuck, other):
            assert device.get("/v1/stats")["failures"]["peers_lost"] == 0
            device.stop()


def test_fio_verifies_throughout(services: Services, tmp_path: Path) -> None:
    """While the host takes memory and gives it back again and again, no request fails and no byte is wrong."""
    with Donor(32, host_mib=64, headroom_mib=16, give_up_s=PATIENT_S) as donor:
        device, _ = filled(services, "vol", donor)
        over = threading.Event()

        def breathe() -> None:
            while not over.wait(1.5):
                donor.others_bytes = 0 if donor.others_bytes else 40 * MIB

        thread = threading.Thread(target=breathe)
        thread.start()
        try:
            options = ["--rw=randrw", "--bs=4k", "--iodepth=16", "--verify_backlog=256", "--norandommap"]
            options += ["--time_based", "--runtime=12", "--rate_iops=2000"]
            output = tool("fio", *fio_arguments(device.uri, SLABS * MIB, *options)[1:], folder=tmp_path)
        finally:
            over.set()
            thread.join()
        assert "err= 0" in output
        assert donor.counts()["evicted"] >= 4
        device.stop()
