"""A device killed with -9 and started again: what was acknowledged is there, from remote memory where it lives on."""

from __future__ import annotations

import json

from tests.device.support import PAGE_BYTES, SLAB_BYTES, PageModel, mapped, pattern, pending_pages
from tests.support.layouts import both_layouts
from tests.support.lease import leases_on_record
from tests.support.services import Device, Services
from tests.support.waiting import wait_for

PAGES = 2048
SLABS = PAGES * PAGE_BYTES // SLAB_BYTES
# Pages stay pending for so long that the kill finds them in remote memory only.
OPTIONS = ("--map", "eager", "--writeback-delay-ms", "30000")


def fill(device: Device, model: PageModel) -> None:
    """Map all slabs and write every page to them."""
    with device.connect() as client:
        client.write(0, b"".join(model.pages))
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping")
        client.write(0, b"".join(model.pages))


@both_layouts
def test_recovered_pages_reach_the_backup(services: Services) -> None:
    """What only remote memory had after the kill is written behind, so that losing the daemon then loses nothing."""
    daemon = services.daemon()
    model = PageModel(pattern(PAGES))
    device = services.device("vol", *OPTIONS, peers=[daemon])
    fill(device, model)
    device.kill()
    device = services.device("vol", "--map", "eager", peers=[daemon])
    wait_for(lambda: pending_pages(device) == 0, what="write-behind", timeout_s=20.0)
    daemon.kill()
    with device.connect() as client:
        assert model.verify(client) == []


@both_layouts
def test_daemon_restarted_meanwhile(services: Services) -> None:
    """Its new incarnation has none of our pages: they come from the backup."""
    services.expect_log("its lease is gone: it does not know the lease", r"refused a \w+ of .*: 404 there is no lease")
    daemon = services.daemon()
    model = PageModel(pattern(PAGES))
    device = services.device("vol", *OPTIONS, peers=[daemon])
    fill(device, model)
    with device.connect() as client:
        client.flush()
    device.kill()
    daemon.kill()
    daemon = services.daemon("64MiB", "--listen", daemon.address)
    device = services.device("vol", *OPTIONS, peers=[daemon])
    assert "its lease is gone" in device.log
    with device.connect() as client:
        assert model.verify(client) == []


@both_layouts
def test_peer_no_longer_configured(services: Services) -> None:
    """Its pages are taken up, brought to safety, and its lease is given back."""
    old, new = services.daemon(), services.daemon()
    model = PageModel(pattern(PAGES))
    device = services.device("vol", *OPTIONS, peers=[old])
    fill(device, model)
    device.kill()
    device = services.device("vol", "--map", "eager", peers=[new])
    with device.connect() as client:
        wait_for(lambda: old.get("/v1/offer")["leases"] == 0, what="the old lease given back", timeout_s=30.0)
        assert model.verify(client) == []
        assert device.get("/v1/stats")["failures"]["lost_pages"] == 0


@both_layouts
def test_clean_after_recovery(services: Services) -> None:
    """A recovered device that stops in order starts without recovery."""
    daemon = services.daemon()
    device = services.device("vol", *OPTIONS, peers=[daemon])
    model = PageModel(pattern(PAGES))
    fill(device, model)
    device.kill()
    services.device("vol", *OPTIONS, peers=[daemon]).stop()
    device = services.device("vol", *OPTIONS, peers=[daemon])
    assert "recovering" not in device.log
    with device.connect() as client:
        assert model.verify(client) == []


def test_record_of_leases_is_private_and_complete(services: Services) -> None:
    """The record names every mapped slab, for the owner's eyes only; no token is in any log."""
    daemon = services.daemon()
    device = services.device("vol", *OPTIONS, "--log-level", "debug", peers=[daemon])
    fill(device, PageModel(pattern(PAGES)))
    path = services.folder / "state" / "vol" / "leases.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_suffix(".slabs").stat().st_mode & 0o777 == 0o600
    (lease,) = leases_on_record(services, "vol").values()
    assert set(lease.slabs) == mapped(device)
    assert lease.token not in device.log
    assert lease.token not in json.dumps([device.get(f"/v1/{name}") for name in ("status", "peers", "stats")])
