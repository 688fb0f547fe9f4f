"""A backup whose disk fills up: writers wait or are told, nothing acknowledged is lost, and room made later is used."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.device.support import PAGE_BYTES, SLAB_BYTES, Load, PageModel, mapped, pattern, pending_pages, resize
from tests.support.backups import read_backup
from tests.support.layouts import both_layouts
from tests.support.services import Device, Services
from tests.support.waiting import wait_for

SLABS = 16
PAGES = SLABS * SLAB_BYTES // PAGE_BYTES
OPTIONS = ("--sparse", "--map", "eager", "--pending-limit", "4MiB", "--stop-timeout-s", "2")


def start(services: Services, disk: Path, peers: list[str]) -> Device:
    """A device on the small disk."""
    return services.device("vol", *OPTIONS, peers=peers, backup=disk / "vol.img")


@both_layouts
def test_full_disk_under_load(services: Services, disk: Path) -> None:
    """Back-pressure while it is full; once there is room all pages arrive, and FLUSH answers."""
    services.expect_log("the backup fails: No space left")
    device = start(services, disk, [services.daemon().address])
    model = PageModel(bytes(PAGES * PAGE_BYTES))
    with device.connect() as client:
        for slab in range(SLABS):
            client.write(slab * SLAB_BYTES, b"\0")
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping")
        with Load(device, model) as load:
            wait_for(lambda: device.get("/v1/stats")["failures"]["backup_errors"] > 0, what="errors", timeout_s=30.0)
            wait_for(lambda: pending_pages(device) >= 7 * 1024 // 8, what="a full pending buffer", timeout_s=30.0)
            resize(disk, "128m")  # a log takes more than its device
            at = load.written
            wait_for(lambda: load.written > at + 500, what="load with room on the disk", timeout_s=30.0)
        assert load.errors == []
        assert device.log.count("the backup fails") == 1, "told once in ten seconds"
        client.flush()
        assert model.verify(client) == []
        assert read_backup(device.backup, PAGES * PAGE_BYTES) == b"".join(model.pages)


def test_full_state_directory(services: Services, disk: Path) -> None:
    """A lease that cannot go on record gets no slabs, is told of once, and is used when there is room again."""
    services.expect_log("its lease cannot go on record", "cannot put the leases on record")
    daemon = services.daemon()
    daemon.suspend()
    options = ("--map", "eager", "--state-dir", str(disk / "state"), "--log-level", "debug")
    device = services.device("vol", *options, peers=[daemon])
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(PAGE_BYTES))
    daemon.resume()
    data = pattern(8 * SLAB_BYTES // PAGE_BYTES)
    with device.connect() as client:
        client.write(0, data)
        wait_for(lambda: device.get("/v1/peers")[0]["state"] == "up", what="the lease")
        wait_for(
            lambda: device.get("/v1/stats")["failures"]["mappings_without_room"] >= 3,
            what="tries to map",
            timeout_s=40.0,
        )
        assert mapped(device) == set()
        assert device.log.count("its lease cannot go on record") == 1
        assert daemon.get("/v1/stats")["counts"]["slabs_mapped"] == 0
        ballast.unlink()
        wait_for(lambda: len(mapped(device)) == 8, what="mapping", timeout_s=40.0)
        device.kill()
    device = services.device("vol", *options, peers=[daemon])
    with device.connect() as client:
        assert client.read(0, len(data)) == data
    assert len(mapped(device)) == 8, "adopted"
