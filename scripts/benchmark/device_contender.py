"""This project's device over three memory daemons, with its backup on the disk that is measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from infiniswap.shared.device_client import fetch
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark import fio
from scripts.benchmark.cluster import BenchmarkCluster
from scripts.benchmark.contenders import Contender, Setting, file_target, nbd_target, prepare_file
from scripts.benchmark.processes import Program
from scripts.benchmark.throttle import Throttle
from scripts.benchmark.workload import Workload

# Writes that arrive before a slab is mapped go to the backup, so it takes more than one pass to have all pages remote.
FILL_PASSES_MAX = 5
SETTLE_TIMEOUT_S = 300.0
MAP_TIMEOUT_S = 120.0
SLOW_WRITES_PER_S, SLOW_BYTES_PER_S = 120, 100_000_000
SLOW_PENDING_BYTES = 8 << 20


class Device(Contender):
    """Device service and daemons; the pending buffer is small, so that sustained writes run at the disk's pace."""

    name = "infiniswap"
    title = "infiniswap -> 3 daemons, backup on"
    sealed = False
    options: tuple[str, ...] = ()

    def __init__(self, setting: Setting) -> None:
        """Nothing is started yet."""
        super().__init__(setting)
        self.service: Program | None = None

    def pending_limit_bytes(self) -> int:
        """How much may wait for the backup."""
        return self.setting.pending_limit_bytes

    def start(self) -> None:
        """Daemons, device, data; returns when every page is in remote memory and on the backup."""
        setting = self.setting
        options = ("--encrypt", *self.options) if self.sealed else self.options
        cluster = BenchmarkCluster(
            self.name, setting.size_bytes, setting.slab_bytes, self.pending_limit_bytes(), options
        )
        self.service = cluster.start(setting.programs, setting.folder, setting.socket(self.name), self.run)
        self._fill()

    def target(self) -> list[str]:
        """The device."""
        return nbd_target(self.setting.socket(self.name), self.name)

    def settle(self) -> None:
        """Wait until nothing is pending."""
        self._wait(lambda: self._get("/v1/stats")["pending_bytes"] == 0, "still has pending data", SETTLE_TIMEOUT_S)

    def remote_reads(self) -> tuple[int, int]:
        """From the device's own counts."""
        reads: dict[str, int] = self._get("/v1/stats")["reads"]
        return reads["remote"], sum(reads.values())

    def pending_waits(self) -> int:
        """From the device's own count."""
        waits: int = self._get("/v1/stats")["counters"]["pending_waits"]
        return waits

    def _fill(self) -> None:
        pages = self.setting.size_bytes // 4096
        remote = 0
        for _ in range(FILL_PASSES_MAX):
            fio.fill(self.target(), self.setting.size_bytes)
            self._wait(self._all_mapped, "has not mapped all slabs", MAP_TIMEOUT_S)
            self.settle()
            remote = sum(slab["remote_pages"] for slab in self._get("/v1/slabs"))
            if remote == pages:
                return
        raise UserError(
            f"{self.name}: only {remote} of {pages} pages are in remote memory after {FILL_PASSES_MAX} passes",
            ExitCode.FAILED,
        )

    def _age(self) -> None:
        fio.age(self.target(), self.setting.size_bytes)
        self.settle()

    def _all_mapped(self) -> bool:
        return all(slab["state"] == "mapped" for slab in self._get("/v1/slabs"))

    def _get(self, path: str) -> Any:
        return fetch(self.name, path, self.setting.folder / "run")

    def _wait(self, condition: Callable[[], bool], complaint: str, timeout_s: float) -> None:
        assert self.service is not None
        self.setting.programs.wait_until(condition, self.service, complaint, timeout_s)


class DeviceWithRoom(Device):
    """The same with a pending limit as large as the device: its pending buffer always has room."""

    name = "infiniswap-room"
    title = "infiniswap, pending buffer with room"

    def pending_limit_bytes(self) -> int:
        """Every page may be pending at once."""
        return self.setting.size_bytes

    def takes(self, workload: Workload) -> bool:
        """Reads are the same with either."""
        return workload.writes


class SealedDevice(Device):
    """The same as Device, and pages are sealed."""

    name = "infiniswap-sealed"
    title = "infiniswap --encrypt"
    sealed = True


class SealedDeviceWithRoom(DeviceWithRoom):
    """The same as DeviceWithRoom, and pages are sealed."""

    name = "infiniswap-sealed-room"
    title = "infiniswap --encrypt, pending buffer with room"
    sealed = True


class LogDevice(Device):
    """The same as Device, with a backup that is written in sequence."""

    name = "infiniswap-log"
    title = "infiniswap --backup-layout log"
    options = ("--backup-layout", "log")

    def start(self) -> None:
        """Filled, and written once more at random."""
        super().start()
        self._age()


class OnSlowDisk(Device):
    """The same as Device; once it is filled, its backup's disk takes 120 writes and 100 MB a second."""

    name = "infiniswap-slow"
    title = "infiniswap, 8 MiB pending, disk of 120 IOPS and 100 MB/s"
    optional = True

    def start(self) -> None:
        """Filled while the disk is fast."""
        throttle = slow_disk(self)
        super().start()
        self.before_slow()
        assert self.service is not None
        throttle.add(self.service.pid)

    def before_slow(self) -> None:
        """What else is done while the disk is fast."""

    def pending_limit_bytes(self) -> int:
        """Little: an image takes 120 pages of it a second."""
        return SLOW_PENDING_BYTES

    def takes(self, workload: Workload) -> bool:
        """Reads come from peers."""
        return workload.writes


class LogOnSlowDisk(OnSlowDisk):
    """OnSlowDisk with a backup that is written in sequence, which soon empties a buffer of the usual size."""

    name = "infiniswap-log-slow"
    title = "infiniswap --backup-layout log, disk of 120 IOPS and 100 MB/s"
    options = LogDevice.options
    patience = 2.0

    def before_slow(self) -> None:
        """As LogDevice."""
        self._age()

    def pending_limit_bytes(self) -> int:
        """As of a device on a fast disk."""
        return self.setting.pending_limit_bytes


class SlowDisk(Contender):
    """fio itself on a file of such a disk: its sequential bandwidth is what a log is measured by."""

    name = "disk-slow"
    title = "fio O_DIRECT on a disk of 120 IOPS and 100 MB/s"
    optional = True

    def start(self) -> None:
        """The file is written while the disk is fast."""
        self._throttle = slow_disk(self)
        prepare_file(self.setting.folder / f"{self.name}.img", self.setting.size_bytes)

    def target(self) -> list[str]:
        """The file."""
        return file_target(self.setting.folder / f"{self.name}.img")

    def within(self, command: list[str]) -> list[str]:
        """Fio is what is made slow."""
        return self._throttle.command(command)

    def takes(self, workload: Workload) -> bool:
        """In sequence alone."""
        return workload.rw == "write"


def slow_disk(contender: Contender) -> Throttle:
    """Such a disk, until the programs have ended. UserError where this machine cannot make one."""
    throttle = Throttle(
        f"{contender.name}-{os.getpid()}",
        contender.setting.folder,
        writes_per_s=SLOW_WRITES_PER_S,
        bytes_per_s=SLOW_BYTES_PER_S,
    )
    contender.setting.programs.at_end(throttle.remove)
    return throttle
