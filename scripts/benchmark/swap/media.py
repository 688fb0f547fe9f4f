"""What a machine can swap to; each is set up once, used as the only swap area for a while, and taken down again."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infiniswap.kernel_shim import zswap
from infiniswap.kernel_shim.swap import probe
from infiniswap.shared.device_client import fetch
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.cluster import BenchmarkCluster, beside_python
from scripts.benchmark.floor_build import build_floor
from scripts.benchmark.places import ROOT
from scripts.benchmark.processes import Programs, free_port, need
from scripts.benchmark.swap.area import Fuse, Loop, SwapArea, run

SLAB_BYTES = 16 << 20
PENDING_LIMIT_BYTES = 64 << 20
SEEK_MS = 8  # of the hard disk that is stood in for: one request at a time, so 125 a second


@dataclass(frozen=True, slots=True)
class Setting:
    """What media are built from. folder: on the disk that is measured; size_bytes: of each swap area."""

    programs: Programs
    folder: Path
    size_bytes: int


class Medium(ABC):
    """One thing to swap to."""

    name: str
    title: str

    @abstractmethod
    def start(self, setting: Setting, undo: ExitStack) -> None:
        """Set it up and swapon; what takes it down again goes to undo."""

    def sources(self) -> dict[str, int]:
        """Pages read so far, by where they came from, where it knows."""
        return {}


class Infiniswap(Medium):
    """This project's device over three daemons; its kernel device is nbdfuse's file on a loop device."""

    name = "infiniswap"
    title = "infiniswap -> 3 daemons, backup on"
    options: tuple[str, ...] = ()

    def start(self, setting: Setting, undo: ExitStack) -> None:
        """Daemons, device, nbdfuse, loop, swap."""
        socket = setting.folder / f"{self.name}.sock"
        cluster = BenchmarkCluster(self.name, setting.size_bytes, SLAB_BYTES, PENDING_LIMIT_BYTES, self.options)
        cluster.start(setting.programs, setting.folder, socket, setting.programs.start)
        self._runtime_dir = setting.folder / "run"
        swap_to_nbd(setting, undo, self.name, f"nbd+unix:///{self.name}?socket={socket}")

    def sources(self) -> dict[str, int]:
        """From the device's own counts."""
        return pages_read(self.name, self._runtime_dir)


class InfiniswapLog(Infiniswap):
    """The same with a log as backup."""

    name = "infiniswap-log"
    title = "infiniswap -> 3 daemons, a log as backup"
    options = ("--backup-layout", "log")


class Attached(Medium):
    """A device service that runs already, through the kernel's nbd: what users do."""

    name = "infiniswap"
    title = "infiniswap, kernel nbd"

    def __init__(self, device: str, runtime_dir: Path) -> None:
        """device: its name."""
        self._device = device
        self._runtime_dir = runtime_dir

    def start(self, setting: Setting, undo: ExitStack) -> None:  # noqa: ARG002 - all of it runs already
        """Attach as swap."""
        command = beside_python("infiniswap")
        undo.callback(run, [command, "device", "detach", "--if-attached", self._device])
        run([command, "device", "attach", self._device, "--swap"])

    def sources(self) -> dict[str, int]:
        """From the device's own counts."""
        return pages_read(self._device, self._runtime_dir)


class Nbdkit(Medium):
    """nbdkit's nbd plugin before nbdkit's memory on TCP: remote memory without a backup, by other people's programs."""

    name = "nbdkit"
    title = "nbdkit nbd -> nbdkit memory"

    def start(self, setting: Setting, undo: ExitStack) -> None:
        """Memory, proxy, nbdfuse, loop, swap."""
        nbdkit, port = need("nbdkit", "nbdkit"), free_port()
        behind = ["--foreground", "--ipaddr=127.0.0.1", f"--port={port}", "memory", str(setting.size_bytes)]
        memory = setting.programs.start("nbdkit-memory", [nbdkit, *behind])
        setting.programs.wait_for_socket(memory, ("127.0.0.1", port))
        swap_to_nbdkit(setting, undo, self.name, ["nbd", f"uri=nbd://127.0.0.1:{port}"])


class Floor(Medium):
    """A bare relay before a bare memory server on TCP: what two hops cost without policy, by the same way to swap."""

    name = "floor"
    title = "bare relay -> bare server (epoll)"

    def start(self, setting: Setting, undo: ExitStack) -> None:
        """Server, relay, nbdfuse, loop, swap."""
        build = ROOT / "build" / "floor"
        build_floor(build)
        socket, size = setting.folder / f"{self.name}.sock", str(setting.size_bytes)
        memory = setting.programs.start("floor-memory", [str(build / "memory_server"), size])
        port = setting.programs.ready_line(memory)
        # One stripe: what the kernel writes in one piece may cross any border but the end.
        relay = setting.programs.start("floor-relay", [str(build / "relay"), str(socket), size, port])
        setting.programs.ready_line(relay)
        swap_to_nbd(setting, undo, self.name, f"nbd+unix:///?socket={socket}")


class HardDisk(Medium):
    """A file behind a delay, one request at a time: stands in for a hard disk where there is none."""

    name = "hdd"
    title = f"hard disk (stood in for: {SEEK_MS} ms a request)"

    def start(self, setting: Setting, undo: ExitStack) -> None:
        """nbdkit, nbdfuse, loop, swap."""
        file = allocated(setting.folder / f"{self.name}.img", setting.size_bytes)
        delay = ["--filter=noparallel", "--filter=delay", "file", str(file), f"delay-read={SEEK_MS}ms"]
        delay += [f"delay-write={SEEK_MS}ms", "serialize=all-requests"]
        swap_to_nbdkit(setting, undo, self.name, delay)


class Disk(Medium):
    """A file on this machine's disk, on a loop device that goes past the page cache."""

    name = "disk"
    title = "this machine's disk"

    def start(self, setting: Setting, undo: ExitStack) -> None:
        """Loop, swap."""
        swap_to_file(undo, allocated(setting.folder / f"{self.name}.img", setting.size_bytes))


class BlockDevice(Medium):
    """A block device by its path, for instance a disk that QEMU throttles. What is on it is lost."""

    def __init__(self, name: str, node: Path) -> None:
        """name: how the tables call it."""
        self.name, self.title = name, f"{name} ({node})"
        self._node = node

    def start(self, setting: Setting, undo: ExitStack) -> None:  # noqa: ARG002 - it is as large as it is
        """Swap. UserError when it is no block device, or carries anything but a swap area."""
        if not self._node.is_block_device():
            raise UserError(f"{self._node} is no block device", ExitCode.NOT_FOUND)
        found = probe(str(self._node))
        if found is not None:
            raise UserError(f"{self._node} carries {found}; it is not made swap", ExitCode.REFUSED)
        swap_to_node(undo, self._node)


class Zram(Medium):
    """Compressed memory of this machine."""

    name = "zram"
    title = "zram"

    @staticmethod
    def available() -> bool:
        """Whether this kernel has it, after loading the module where there is one."""
        if not Path("/sys/class/zram-control").exists():
            try:
                run(["modprobe", "zram", "num_devices=0"])
            except UserError:
                return False
        return Path("/sys/class/zram-control").exists()

    def start(self, setting: Setting, undo: ExitStack) -> None:
        """A new zram device, swap."""
        control = Path("/sys/class/zram-control")
        if not self.available():
            raise UserError("this kernel has no zram; leave it out with --media", ExitCode.NOT_FOUND)
        index = (control / "hot_add").read_text().strip()
        undo.callback((control / "hot_remove").write_text, index)
        Path(f"/sys/block/zram{index}/disksize").write_text(str(setting.size_bytes))
        swap_to_node(undo, Path(f"/dev/zram{index}"))


class BehindZswap(Medium):
    """Another medium with zswap in front. The pool is charged to the job's group, whose limit is as it is without."""

    def __init__(self, behind: Medium) -> None:
        """behind: where zswap's cold pages go."""
        self.name, self.title = f"zswap-{behind.name}", f"zswap + {behind.title}"
        self._behind = behind

    @staticmethod
    def available() -> bool:
        """Whether this kernel has it."""
        return zswap.parameters() is not None

    def start(self, setting: Setting, undo: ExitStack) -> None:
        """Zswap as `infiniswap device attach --zswap` sets it, then the medium; undone once that is down again."""
        before = zswap.parameters()
        if before is None:
            raise UserError("this kernel has no zswap; leave it out with --zswap", ExitCode.NOT_FOUND)
        wanted = {"enabled": "Y", "compressor": zswap.COMPRESSORS[0], "shrinker_enabled": "Y"}
        for name, value in wanted.items():
            if name in before:
                undo.callback(zswap.store, name, before[name])
                try:
                    zswap.store(name, value)
                except OSError as error:
                    raise UserError(f"zswap: {name} cannot be {value}: {error.strerror}", ExitCode.FAILED) from None
        self._behind.start(setting, undo)

    def sources(self) -> dict[str, int]:
        """Of the medium behind; what zswap gave back stands in each sample."""
        return self._behind.sources()


def pages_read(device: str, runtime_dir: Path) -> dict[str, int]:
    """Pages that a running device has read so far, by source, as it tells."""
    reads: dict[str, int] = fetch(device, "/v1/stats", runtime_dir)["reads"]
    return reads


def swap_to_nbdkit(setting: Setting, undo: ExitStack, name: str, plugin: list[str]) -> None:
    """Nbdkit with filters and plugin on a UNIX socket, and swap on that."""
    socket = setting.folder / f"{name}.sock"
    command = [need("nbdkit", "nbdkit"), "--foreground", f"--unix={socket}", *plugin]
    setting.programs.wait_for_socket(setting.programs.start(f"{name}-nbdkit", command), socket)
    swap_to_nbd(setting, undo, name, f"nbd+unix:///?socket={socket}")


def swap_to_nbd(setting: Setting, undo: ExitStack, name: str, uri: str) -> None:
    """nbdfuse, loop, swap: the way to swap to an NBD server that works without module nbd."""
    fuse = Fuse(setting.programs, setting.folder, name, uri)
    undo.callback(fuse.close)
    swap_to_file(undo, fuse.file)


def swap_to_file(undo: ExitStack, file: Path) -> None:
    """Loop, swap."""
    loop = Loop(file)
    undo.callback(loop.close)
    swap_to_node(undo, loop.open())


def swap_to_node(undo: ExitStack, node: Path) -> None:
    """Swap."""
    area = SwapArea(node)
    undo.callback(area.close)
    area.open()


def allocated(path: Path, size_bytes: int) -> Path:
    """A new file with all its blocks."""
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    return path
