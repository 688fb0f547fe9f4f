"""Which slabs get remote memory: --map eager, hot and never, and giving cold slabs up."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.support.load import Ledger, Load
from tests.support.services import Daemon, Device, Services
from tests.support.waiting import wait_for

MIB = 1 << 20
PAGE = 4096
PAGES = MIB // PAGE
# A page-in that a busy machine lets wait is asked of the backup, too: one in twenty (HEDGE_COST), and the first few.
HEDGED_ONE_IN = 8


def slab(device: Device, index: int) -> dict[str, Any]:
    """One row of the slab table."""
    row = device.get("/v1/slabs")[index]
    assert isinstance(row, dict)
    return row


def used_bytes(daemon: Daemon) -> int:
    """What the daemon has lent."""
    used = daemon.get("/v1/offer?slab_bytes=1048576")["used_bytes"]
    assert isinstance(used, int)
    return used


def test_never(services: Services) -> None:
    """--map never: however busy a slab is, everything stays on the backup and no daemon lends anything."""
    daemon = services.daemon("16MiB")
    device = services.device("vol", "--map", "never", size="8MiB", peers=[daemon])
    data = os.urandom(MIB)
    with device.connect() as client:
        end_s = time.monotonic() + 2.5  # two looks of the mapper at slabs that are far above hot
        while time.monotonic() < end_s:
            client.write(0, data)
            assert client.read(0, MIB) == data
    stats = device.get("/v1/stats")
    assert stats["mappings"] == 0
    assert stats["writes"]["remote"] == 0
    assert stats["writes"]["backup"] > PAGES
    assert slab(device, 0)["activity"] > 100
    assert used_bytes(daemon) == 0


def test_eager(services: Services) -> None:
    """--map eager: one page written is enough for its slab to be mapped, and only for its slab."""
    daemon = services.daemon("16MiB")
    device = services.device("vol", "--map", "eager", size="8MiB", peers=[daemon])
    with device.connect() as client:
        client.write(3 * MIB, b"touched")
        wait_for(lambda: slab(device, 3)["state"] == "mapped", what="the slab being mapped")
        # What had gone to the backup is brought to the peer, and read from there.
        wait_for(lambda: slab(device, 3)["remote_pages"] == 1, what="the page being promoted")
        assert client.read(3 * MIB, 7) == b"touched"
    stats = device.get("/v1/stats")
    assert stats["reads"]["remote"] == 1
    assert device.get("/v1/status")["mapped_slabs"] == 1
    assert used_bytes(daemon) == MIB


def test_what_was_under_way_is_promoted(services: Services) -> None:
    """Pages on their way to the backup while their slab is mapped get a remote copy too, whoever was first."""
    daemon = services.daemon("64MiB")
    device = services.device("vol", "--map", "eager", size="64MiB", peers=[daemon])
    ledger = Ledger(64 * PAGES)
    with Load(device.uri, ledger, seed=2, depth=32, read_share=0, zero_share=0) as load:
        load.write_all()
        wait_for(
            lambda: all(row["remote_pages"] == PAGES for row in device.get("/v1/slabs")), what="all being promoted"
        )
        load.check()
    reads = device.get("/v1/stats")["reads"]
    assert reads["zero"] == 0
    assert reads["backup"] <= reads["remote"] / HEDGED_ONE_IN


def test_hot(services: Services) -> None:
    """--map hot: a busy slab is mapped and its pages promoted; one that is hardly touched stays on the backup."""
    daemon = services.daemon("16MiB")
    device = services.device("vol", size="8MiB", peers=[daemon])
    data = os.urandom(MIB)
    with device.connect() as client:
        client.write(0, data)  # 256 page-outs in one second: 0.2 · 256 = 51 > 20
        client.write(MIB, data[:PAGE])
        wait_for(lambda: slab(device, 0)["state"] == "mapped", what="the hot slab being mapped")
        wait_for(lambda: slab(device, 0)["remote_pages"] == PAGES, what="its pages being promoted")
        assert slab(device, 1)["state"] == "unmapped"
        assert slab(device, 0)["activity"] > 0
        assert client.read(0, MIB) == data
        assert client.read(MIB, PAGE) == data[:PAGE]
    reads = device.get("/v1/stats")["reads"]
    assert reads["remote"] == PAGES
    assert reads["backup"] == 1
    assert used_bytes(daemon) == MIB


def test_hot_by_reading_alone(services: Services) -> None:
    """What the backup alone has and is read again and again comes to a peer, as it is, and is read from there."""
    data = os.urandom(MIB)
    without = services.device("vol", size="8MiB")
    with without.connect() as client:
        client.write(0, data)
    assert without.stop() == 0
    device = services.device("vol", size="8MiB", peers=[services.daemon("16MiB")])
    with device.connect() as client:

        def promoted() -> bool:
            assert client.read(0, MIB) == data
            return int(slab(device, 0)["remote_pages"]) == PAGES

        wait_for(promoted, what="its pages being promoted")
        before = device.get("/v1/stats")["reads"]
        assert client.read(0, MIB) == data
        after = device.get("/v1/stats")["reads"]
    assert after["remote"] + after["backup"] - before["remote"] - before["backup"] == PAGES
    assert after["remote"] > before["remote"]


def test_cold(services: Services) -> None:
    """--cold-page-ios: a slab that nobody uses any more is drained and given back, and its pages are still right."""
    daemon = services.daemon("16MiB")
    options = ("--map", "eager", "--cold-page-ios", "5")
    device = services.device("vol", *options, size="8MiB", peers=[daemon])
    data = os.urandom(2 * MIB)
    with device.connect() as client:
        client.write(0, data)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 2, what="both slabs being mapped")

        def first_is_cold() -> bool:
            client.read(MIB, 64 * PAGE)  # the second stays in use
            return bool(slab(device, 0)["state"] == "unmapped")

        # It takes 10 s of residence and the time in which 0.8^t brings the activity below 5.
        wait_for(first_is_cold, 30, "the cold slab being given up")
        assert slab(device, 1)["state"] == "mapped"
        wait_for(lambda: used_bytes(daemon) == MIB, what="its memory being given back")
        before = device.get("/v1/stats")["reads"]["backup"]
        assert client.read(0, MIB) == data[:MIB]
        assert device.get("/v1/stats")["reads"]["backup"] == before + PAGES
        assert client.read(MIB, MIB) == data[MIB:]
        assert device.get("/v1/stats")["releases"] == 1
        client.write(100, b"again")
        wait_for(lambda: slab(device, 0)["state"] == "mapped", what="the slab being mapped anew")
        assert client.read(0, MIB) == data[:100] + b"again" + data[105:MIB]
