"""A cluster of daemons and a device that tests do harm to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.backups import read_backup
from tests.support.load import PAGE_BYTES, Ledger, Load
from tests.support.services import Daemon, Device, Services
from tests.support.waiting import wait_for

MIB = 1 << 20
SLAB_BYTES = MIB
SLABS = 16
SIZE_BYTES = SLABS * SLAB_BYTES
PAGES = SIZE_BYTES // PAGE_BYTES
SIZE = f"{SIZE_BYTES // MIB}MiB"
MEMORY = SIZE  # of one daemon: enough for all slabs


@dataclass
class Cluster:
    """Daemons, one device of SIZE_BYTES that maps at the first touch, and what its clients know."""

    services: Services
    daemons: list[Daemon]
    device: Device
    ledger: Ledger
    options: tuple[str, ...]

    def load(self, seed: int = 1, **options: object) -> Load:
        """A load on the device."""
        return Load(self.device.uri, self.ledger, seed=seed, **options)  # type: ignore[arg-type]

    def map_all(self) -> None:
        """Touch every slab and wait until all are mapped."""
        with self.device.connect() as client:
            for slab in range(SLABS):
                client.write_zeroes(slab * SLAB_BYTES + 1, 1)
        self.wait_mapped()

    def fill(self) -> None:
        """Map every slab and write every page once: all is remote, and on the backup."""
        if self.daemons:
            self.map_all()
        with self.load(read_share=0, zero_share=0) as load:
            load.write_all()
            load.flush()

    def wait_mapped(self, slabs: int = SLABS, timeout_s: float = 20.0) -> None:
        """Until so many slabs are mapped."""
        wait_for(
            lambda: self.device.get("/v1/status")["mapped_slabs"] >= slabs, timeout_s, f"{slabs} slabs being mapped"
        )

    def stats(self) -> dict[str, Any]:
        """GET /v1/stats."""
        answer = self.device.get("/v1/stats")
        assert isinstance(answer, dict)
        return answer

    def failures(self) -> dict[str, int]:
        """Failure counts of the device."""
        answer = self.stats()["failures"]
        assert isinstance(answer, dict)
        return answer

    def peer(self, daemon: Daemon) -> dict[str, object]:
        """What the device says of daemon."""
        rows = self.device.get("/v1/peers")
        (row,) = [row for row in rows if row["peer"] == daemon.address]
        assert isinstance(row, dict)
        return row

    def restart(self, daemon: Daemon) -> Daemon:
        """Start a killed daemon anew, on the port it had."""
        fresh = self.services.daemon(MEMORY, "--listen", daemon.address)
        self.daemons[self.daemons.index(daemon)] = fresh
        return fresh

    def restart_device(self, *options: str) -> Device:
        """Start the device anew as it was, after its end; options are further ones."""
        peers = [daemon.address for daemon in self.daemons]
        backup = self.device.backup
        self.device = self.services.device("vol", *self.options, *options, size=SIZE, peers=peers, backup=backup)
        return self.device

    def kill_in_the_middle(self, seed: int, pages: int) -> None:
        """Kill the device once so many pages were written, with requests in flight."""
        with self.load(seed=seed, zero_share=0.1) as load:

            def kill() -> bool:
                if load.counts.written_pages > pages and self.device.running:
                    self.device.kill()
                return False

            load.run(kill)
            assert load.lost

    def check_image(self) -> None:
        """The backup holds what was acknowledged or newer; for a device that has ended."""
        found = read_backup(self.device.backup, SIZE_BYTES)
        self.ledger.check(lambda offset, length: found[offset : offset + length])


MakeCluster = Callable[..., Cluster]
