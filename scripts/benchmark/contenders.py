"""What is compared: each contender is set up once and filled, and then measured many times.

All but the disk itself are reached through NBD on a UNIX socket; those with a second hop have it on TCP loopback.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark import fio
from scripts.benchmark.processes import Program, Programs, free_port, need
from scripts.benchmark.workload import Workload

FLOOR_SERVERS = 3
FLOOR_STRIPE_BYTES = 80 << 20  # a multiple of nearly every block that is measured


@dataclass(frozen=True, slots=True)
class Setting:
    """What contenders are built from. folder: on the disk that is measured; build: where the floor's programs are."""

    programs: Programs
    folder: Path
    build: Path
    size_bytes: int
    slab_bytes: int
    pending_limit_bytes: int

    def socket(self, name: str) -> Path:
        """Where contender name listens."""
        return self.folder / f"{name}.sock"


class Contender(ABC):
    """One way to store blocks."""

    name: str
    title: str
    patience = 1.0  # it is measured for so much longer than others
    optional = False  # where the machine cannot have it, the others are measured without

    def __init__(self, setting: Setting) -> None:
        """Nothing is started yet."""
        self.setting = setting
        self.programs: list[Program] = []

    @abstractmethod
    def start(self) -> None:
        """Start its programs and fill it with data; ready to be measured afterwards."""

    @abstractmethod
    def target(self) -> list[str]:
        """Arguments of fio that lead to it."""

    def within(self, command: list[str]) -> list[str]:
        """What to run in the place of command: fio for it."""
        return command

    def takes(self, workload: Workload) -> bool:  # noqa: ARG002 - for those who are choosy
        """Whether workload says anything of it."""
        return True

    def settle(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until it has nothing left to do, so that the next contender has the machine to itself."""

    def remote_reads(self) -> tuple[int, int] | None:
        """(pages read from remote memory, all pages read) so far, where it knows."""
        return None

    def pending_waits(self) -> int | None:
        """How often writes have waited for room in its pending buffer so far, where it has one."""
        return None

    def pids(self) -> list[int]:
        """Its server processes."""
        return [program.pid for program in self.programs]

    def run(self, label: str, command: list[str]) -> Program:
        """Start a program that belongs to it."""
        program = self.setting.programs.start(f"{self.name}-{label}", command)
        self.programs.append(program)
        return program


def nbd_target(path: Path, export: str = "") -> list[str]:
    """Arguments of fio for an NBD server on a UNIX socket."""
    return ["--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={path}"]


class Nbdkit(Contender):
    """nbdkit's nbd plugin in front of nbdkit's memory plugin."""

    name = "nbdkit"
    title = "nbdkit nbd -> nbdkit memory"

    def start(self) -> None:
        """Memory behind on TCP, proxy in front on the UNIX socket."""
        nbdkit = need("nbdkit", "nbdkit")
        wait = self.setting.programs.wait_for_socket
        port = free_port()
        behind = ["--foreground", "--newstyle", "--ipaddr=127.0.0.1", f"--port={port}"]
        memory = self.run("memory", [nbdkit, *behind, "memory", str(self.setting.size_bytes)])
        wait(memory, ("127.0.0.1", port))
        path = self.setting.socket(self.name)
        front = ["--foreground", "--newstyle", f"--unix={path}"]
        wait(self.run("proxy", [nbdkit, *front, "nbd", f"uri=nbd://127.0.0.1:{port}"]), path)
        fio.fill(self.target(), self.setting.size_bytes)

    def target(self) -> list[str]:
        """The proxy."""
        return nbd_target(self.setting.socket(self.name))


class Floor(Contender):
    """The bare relay in front of bare memory servers, written in C: what these hops cost without any policy."""

    name = "floor"
    title = "bare relay -> 3 bare servers (epoll)"

    def start(self) -> None:
        """Three servers, one relay."""
        ports = []
        for number in range(FLOOR_SERVERS):
            command = [str(self.setting.build / "memory_server"), str(self.setting.size_bytes)]
            ports.append(self.setting.programs.ready_line(self.run(f"memory-{number}", command)))
        path = self.setting.socket(self.name)
        command = [str(self.setting.build / "relay"), str(path), str(FLOOR_STRIPE_BYTES), *ports]
        self.setting.programs.ready_line(self.run("relay", command))
        fio.fill(self.target(), self.setting.size_bytes)

    def target(self) -> list[str]:
        """The relay."""
        return nbd_target(self.setting.socket(self.name))

    def takes(self, workload: Workload) -> bool:
        """A request may not cross a stripe."""
        return FLOOR_STRIPE_BYTES % workload.block_bytes == 0


def prepare_file(path: Path, size_bytes: int) -> None:
    """A file whose every block is allocated and written, for the first write of a block costs more."""
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    fio.fill(file_target(path), size_bytes)


def file_target(path: Path) -> list[str]:
    """Arguments of fio for a file past the page cache."""
    return ["--ioengine=libaio", "--direct=1", f"--filename={path}"]


class QemuNbd(Contender):
    """A file like the backup, served alone by qemu-nbd without a cache."""

    name = "qemu-nbd"
    title = "backup file alone, qemu-nbd --cache=none"

    def start(self) -> None:
        """One server on one file."""
        path = self.setting.folder / "qemu-nbd.img"
        prepare_file(path, self.setting.size_bytes)
        command = [need("qemu-nbd", "qemu-utils"), "--cache=none", "--aio=native", "--format=raw", "--persistent"]
        command += ["--shared=4", f"--socket={self.setting.socket(self.name)}", str(path)]
        self.setting.programs.wait_for_socket(self.run("server", command), self.setting.socket(self.name))

    def target(self) -> list[str]:
        """qemu-nbd."""
        return nbd_target(self.setting.socket(self.name))


class Disk(Contender):
    """fio itself on a file beside the backup, past the page cache."""

    name = "disk"
    title = "fio O_DIRECT on the backup's disk"

    def start(self) -> None:
        """Nothing runs; the file is written once."""
        prepare_file(self.setting.folder / "disk.img", self.setting.size_bytes)

    def target(self) -> list[str]:
        """The file."""
        return file_target(self.setting.folder / "disk.img")

    def takes(self, workload: Workload) -> bool:
        """It is there as the measure of write-behind."""
        return workload.writes
