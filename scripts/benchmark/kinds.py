"""All contenders by name, and which of them are measured at what unless somebody chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scripts.benchmark.contenders import Contender, Disk, Floor, Nbdkit, QemuNbd, Setting
from scripts.benchmark.device_contender import (
    Device,
    DeviceWithRoom,
    LogDevice,
    LogOnSlowDisk,
    OnSlowDisk,
    SealedDevice,
    SealedDeviceWithRoom,
    SlowDisk,
)
from scripts.benchmark.wanted.rows import Source
from scripts.benchmark.workload import LARGE_BYTES, SEQUENTIAL, WORKLOADS

KINDS: dict[str, Callable[[Setting], Contender]] = {
    kind.name: kind
    for kind in (
        *(Device, LogDevice, DeviceWithRoom, Nbdkit, Floor, QemuNbd, Disk, LogOnSlowDisk, SlowDisk),
        *(OnSlowDisk, SealedDevice, SealedDeviceWithRoom),
    )
}
SEALED = (SealedDevice.name, SealedDeviceWithRoom.name)
LAYOUTS = (LogDevice.name, OnSlowDisk.name, LogOnSlowDisk.name)
_MEASURED = [workload for workload in WORKLOADS if workload is not SEQUENTIAL]
_ALL = [workload.name for workload in _MEASURED]
_ON_ANY_CORE = [workload.name for workload in _MEASURED if not workload.one_core]
_SOME_WRITES = ("randwrite-4k-qd32", "write-128k-qd8")
# Others than the device, nbdkit and the floor do what they are there for: a quarter of an hour has room for no more.
_USUAL: dict[str, Sequence[str]] = {
    Device.name: _ALL,
    LogDevice.name: [
        workload.name
        for workload in _MEASURED
        if not workload.one_core
        and workload.block_bytes != LARGE_BYTES
        and (workload.writes or (workload.rw, workload.depth) == ("randread", 1))
    ],
    DeviceWithRoom.name: _SOME_WRITES,
    Nbdkit.name: _ON_ANY_CORE,
    Floor.name: [workload.name for workload in _MEASURED if workload.block_bytes != LARGE_BYTES],
    QemuNbd.name: ("randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32"),
    Disk.name: _SOME_WRITES,
    LogOnSlowDisk.name: ("randwrite-4k-qd32",),
    SlowDisk.name: (SEQUENTIAL.name,),
}
USUAL = frozenset(Source(name, workload) for name, workloads in _USUAL.items() for workload in workloads)


def memory_needed_bytes(contenders: Sequence[Contender], size_bytes: int) -> int:
    """Roughly what all of them hold at once: each its data, a device with room its pending buffers too."""
    sizes = {"infiniswap-room": 2.3, "infiniswap-sealed-room": 3.3, "qemu-nbd": 0.1, "disk": 0.0, "disk-slow": 0.0}
    return (512 << 20) + int(sum(sizes.get(contender.name, 1.3) for contender in contenders) * size_bytes)
