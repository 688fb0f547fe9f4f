"""One QEMU machine: its command line, its process, its output."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.kernel import Kernel, run_command, which
from harness.scenario import Scenario
from harness.tsc import tsc_khz

GUEST_START = Path("scripts/vm/guest/start")
_PR_SET_PDEATHSIG = 1
_END_GRACE_S = 5.0
LINE_BYTES_MAX = 64 << 10
STANDSTILL_S = 300.0
STANDSTILL_PROCESSOR_S = 0.05
_BEGUN = "init: begins"  # said by scripts/vm/guest/init
_PANIC = re.compile(r"\[ *\d+\.\d+\] Kernel panic - not syncing")


@dataclass(frozen=True, slots=True)
class Plan:
    """What all machines of one run share: folder holds their sockets, scratch disks and results."""

    scenario: Scenario
    kernel: Kernel
    initrd: Path
    checkout: Path
    folder: Path
    ports: tuple[int, int]


def free_udp_ports() -> tuple[int, int]:
    """Two loopback UDP ports that nobody holds now: what the two machines' network is made of."""
    with socket.socket(type=socket.SOCK_DGRAM) as first, socket.socket(type=socket.SOCK_DGRAM) as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def command_line(plan: Plan, number: int) -> list[str]:
    """QEMU's arguments for machine `number` (1 or 2). Emulation only: hardware virtualization is never asked for."""
    scenario = plan.scenario
    khz = tsc_khz()
    words = [
        "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off random.trust_cpu=on",
        "norandmaps nokaslr",  # code that lies at the same address in every process is translated once
        "tsc=reliable",  # on a busy host the kernel would doubt it, and every look at the clock leave the machine
        "no_timer_check",  # nor does it get the ticks in time by which the kernel tries its wiring: it panicked
        *(() if khz is None else (f"tsc_early_khz={khz}",)),
        f"vm.start={plan.checkout / GUEST_START} vm.number={number} vm.checkout={plan.checkout}",
        f"vm.scenario={scenario.path} vm.modules={plan.kernel.base / 'lib/modules'}",
        *(("vm.keep=/dev/vda",) if scenario.keep else ()),
    ]
    out = plan.folder / f"out{number}"
    command = [
        which("qemu-system-x86_64") or "qemu-system-x86_64",
        # Newer processors' wide registers are slower to emulate than what they save.
        *("-accel", "tcg,thread=multi", "-cpu", "Nehalem,+rdrand"),
        *("-smp", str(scenario.cores), "-m", str(scenario.memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *(() if scenario.keep else ("-no-reboot",)),
        *("-serial", "stdio", "-serial", f"file:{plan.folder / f'code{number}'}"),
        *("-kernel", str(plan.kernel.image), "-initrd", str(plan.initrd), "-append", " ".join(words)),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=hostroot"),
        *("-fsdev", f"local,id=out,path={out},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=out,mount_tag=out"),
    ]
    for index, disk in enumerate(scenario.disks):
        file = plan.folder / f"disk{number}-{index}"
        throttling = "".join(f",throttling.{name}={value}" for name, value in disk.throttling)
        # The host's page cache would make a throttled disk fast and a swap test's memory figures meaningless.
        command += ["-drive", f"file={file},format=raw,if=none,id=d{index},cache=unsafe,discard=unmap{throttling}"]
        command += ["-device", f"virtio-blk-pci,drive=d{index}"]
    if scenario.machines == 2:
        mine, other = plan.ports[number - 1], plan.ports[2 - number]
        local = f"local.type=inet,local.host=127.0.0.1,local.port={mine}"
        remote = f"remote.type=inet,remote.host=127.0.0.1,remote.port={other}"
        command += ["-netdev", f"dgram,id=net,{local},{remote}"]
        command += ["-device", f"virtio-net-pci,netdev=net,mac=52:54:00:00:00:0{number}"]
    return command


def make_root(disk: Path) -> None:
    """An empty file system on a disk that keeps over a reboot what the machine writes."""
    options = "lazy_itable_init=1,lazy_journal_init=1"
    run_command([which("mkfs.ext4") or "mkfs.ext4", "-q", "-F", "-E", options, str(disk)])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Machine:
    """A running machine; its output is read line by line, its exit code comes through a file of its own."""

    def __init__(self, plan: Plan, number: int) -> None:
        """Start QEMU. It dies with this process, however that ends."""
        self.number = number
        self._code_file = plan.folder / f"code{number}"
        (plan.folder / f"out{number}").mkdir(parents=True, exist_ok=True)
        for index, disk in enumerate(plan.scenario.disks):
            with (plan.folder / f"disk{number}-{index}").open("wb") as file:
                file.truncate(disk.size_bytes)
        if plan.scenario.keep:
            make_root(plan.folder / f"disk{number}-0")
        for path in (plan.checkout, plan.scenario.path, plan.kernel.base):
            if any(c.isspace() for c in str(path)):
                raise HarnessError(f"{path} has a space in it, which a kernel command line cannot carry")
        self._process = subprocess.Popen(
            command_line(plan, number),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  (this process has one thread)
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self._partial = b""
        self.closed = False
        self.panicked = False
        self.begun = False  # the kernel has come up
        self._still_since_s = time.monotonic()
        self._still_at_processor_s = 0.0

    def read(self, line: Callable[[str], None]) -> None:
        """Hand complete lines that have arrived to line(); sets closed at the end of the output."""
        try:
            data = os.read(self.output, 65536)
        except BlockingIOError:
            return
        self.closed = not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        if self._partial and (self.closed or len(self._partial) > LINE_BYTES_MAX):
            lines, self._partial = [*lines, self._partial], b""
        for raw in lines:
            text = raw.decode(errors="replace").rstrip("\r")
            self.panicked = self.panicked or _PANIC.match(text) is not None
            self.begun = self.begun or text == _BEGUN
            line(text)

    def stands_still(self) -> bool:
        """Whether it has used no processor time for STANDSTILL_S: no kernel does that, however little its programs do.

        Both processors sleep and no timer is left to wake them, which the emulator has lost. What hangs in the machine
        still has timers, and what is merely slow computes.
        """
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False  # it has ended
        used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        now_s = time.monotonic()
        if used_s - self._still_at_processor_s > STANDSTILL_PROCESSOR_S:
            self._still_since_s, self._still_at_processor_s = now_s, used_s
        return now_s - self._still_since_s > STANDSTILL_S

    def exit_code(self) -> int | None:
        """What the scenario returned, or None when the machine ended before it could say."""
        try:
            return int(self._code_file.read_text().strip() or "-1") if self._code_file.exists() else None
        except ValueError:
            return None

    def end(self) -> None:
        """Make sure that QEMU is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            limit = time.monotonic() + _END_GRACE_S
            while self._process.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
