"""A device that was killed before its pages reached the backup."""

from __future__ import annotations

from tests.support.services import Services
from tests.support.waiting import wait_for

MIB = 1 << 20


def only_in_memory(services: Services) -> None:
    """Device vol, killed while a MiB of it is in its one peer's memory alone; its next start says so."""
    device = services.device(
        "vol", "--map", "eager", "--writeback-delay-ms", "60000", size="8MiB", peers=[services.daemon()]
    )
    with device.connect() as client:
        client.write(0, b"m" * MIB)
        wait_for(lambda: device.get("/v1/slabs")[0]["state"] == "mapped", what="a mapped slab")
        client.write(0, b"n" * MIB)
        assert device.get("/v1/stats")["pending_bytes"] > 0
        device.kill()
    services.expect_log("NBD connections are open")
