"""The world of one schedule: daemons behind a fault proxy, a device on a disk that can fail, and its clients."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from infiniswap.shared.errors import ExitCode
from tests.faults.lives.clients import Clients
from tests.faults.lives.disk import Disk
from tests.faults.lives.oracle import Oracle, WrongError
from tests.faults.lives.programs import (
    READY_TIMEOUT_S,
    Program,
    infiniswap,
    infiniswapd,
)
from tests.faults.lives.schedule import DAEMON_STEPS, Schedule
from tests.support.backups import read_backup
from tests.support.fault_proxy import FaultProxy, Faults
from tests.support.load import PAGE_BYTES
from tests.support.pace import paced
from tests.support.services import FORBIDDEN_IN_LOGS

SLABS = 8
SIZE_BYTES = SLABS << 20
PAGES = SIZE_BYTES // PAGE_BYTES
# Where daemons are harmed a loss shall come soon; where none is, none may come because the machine is busy.
PEER_TIMEOUT_MS, PATIENT_PEER_TIMEOUT_MS = int(paced(300)), int(paced(8000))
LOG_TIMEOUT_S = paced(10.0)  # waited for only where else the lives would have failed
PEER_IS_LOST = " is lost with "  # what a device logs then
LEASE_TTL_S = paced(20.0)
HEAL_TIMEOUT_S = paced(20.0)
START_TRIES = 4
END_TIMEOUT_S = paced(10.0)
REFUSALS = (ExitCode.REFUSED, ExitCode.IN_USE)
ACCEPT_IMAGE = "--accept-backup"
UNREADABLE_PAGE = b"EIO " * (PAGE_BYTES // 4)  # no version of any page


class World:
    """Everything of one run. Use it as a context manager."""

    def __init__(self, schedule: Schedule, folder: Path, proxy: FaultProxy) -> None:
        """Nothing runs yet. folder: empty, of a short path."""
        self.schedule = schedule
        self.folder = folder
        self.proxy = proxy
        self.oracle = Oracle(PAGES, self.note_losses)
        self.harming = any(step.kind in DAEMON_STEPS for step in schedule.steps)
        self.disk = Disk(folder, schedule.seed)
        self.faults = [Faults() for _ in range(schedule.daemons)]
        self.daemons: list[Program | None] = [None] * schedule.daemons
        self.addresses = [""] * schedule.daemons
        self.device: Program | None = None
        self.clients: Clients | None = None
        self.state_dir = folder / "state"
        self.happened: Counter[str] = Counter()
        self.programs: list[Program] = []
        self.answers = 0
        self.sync_failed = False  # since the disk worked
        self.state_fails = False  # a FLUSH after a recovery wants it on its disk first
        self._died_s = 0.0
        self._losses_noted: dict[int, int] = {}  # by the device's process

    def __enter__(self) -> Self:
        self.happened[f"backup {self.schedule.backup_layout}"] += 1
        for who in range(self.schedule.daemons):
            self.start_daemon(who, wait=False)
        for who in range(self.schedule.daemons):
            self.wait_daemon(who)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        for program in self.programs:
            program.close()
        for who in range(self.schedule.daemons):
            with contextlib.suppress(OSError):
                self.proxy.remove(self._link(who))
        self.happened["disk faults"] += self.disk.control.faults
        self.disk.close()

    # ---- daemons ----

    def _link(self, who: int) -> str:
        return f"{self.folder.name}-{who}"

    def start_daemon(self, who: int, *, wait: bool = True) -> None:
        """Start daemon `who` where it does not run, without the memory it had."""
        old = self.daemons[who]
        if old is not None and old.running:
            return
        arguments = ["--memory", f"{SLABS}MiB", "--headroom", "0", "--listen", "127.0.0.1:0", "--threads", "1"]
        arguments += ["--lease-ttl-s", f"{LEASE_TTL_S:g}", "--rdma", "never", "--stop-timeout-s", "2"]
        label = f"daemon-{who}"
        self.daemons[who] = self._program(label, infiniswapd, arguments, None)
        if wait:
            self.wait_daemon(who)

    def wait_daemon(self, who: int) -> None:
        """Until it serves."""
        daemon = self.daemons[who]
        assert daemon is not None
        if not daemon.is_ready(READY_TIMEOUT_S):
            raise WrongError(f"daemon {who} does not start; its log:\n{daemon.log}")
        address = daemon.ready.removeprefix("http://")
        self.addresses[who] = self.proxy.link(self._link(who), address, self.schedule.seed)

    def daemon(self, who: int) -> Program | None:
        """The running daemon, None when it is away or the schedule has none."""
        daemon = self.daemons[who] if who < len(self.daemons) else None
        return daemon if daemon is not None and daemon.running else None

    def set_faults(self, who: int, **fields: object) -> None:
        """Change what the network does to daemon `who`; that harms it."""
        self.faults[who] = replace(self.faults[who], **fields)  # type: ignore[arg-type]
        self.proxy.set(self._link(who), self.faults[who])
        self.oracle.harming = self.is_harming()
        self.oracle.donor_harmed()

    def cut(self, who: int) -> None:
        """End all connections of daemon `who`; new ones are taken."""
        self.oracle.donor_harmed()
        self.proxy.cut(self._link(who))

    def is_harming(self) -> bool:
        """Whether a donor may do wrong now; one that is away does no more harm."""
        return any(faults != Faults() for faults in self.faults)

    @property
    def peer_timeout_ms(self) -> int:
        """Of the device."""
        return PEER_TIMEOUT_MS if self.harming else PATIENT_PEER_TIMEOUT_MS

    def note_losses(self) -> None:
        """Where time-outs are short, a busy machine alone costs peers: the oracle hears what the device has logged.

        A request may fail before the log tells why.
        """
        device = self.device
        if not self.harming or device is None:
            return
        end_s = time.monotonic() + LOG_TIMEOUT_S
        while device.log.count(PEER_IS_LOST) <= self._losses_noted.get(device.pid, 0):
            if self.oracle.harmed or time.monotonic() > end_s or not device.running:
                return
            time.sleep(0.02)
        self._losses_noted[device.pid] = device.log.count(PEER_IS_LOST)
        self.oracle.donor_harmed()

    def heal_daemons(self) -> None:
        """All run, and nothing is between them and the device."""
        for who in range(self.schedule.daemons):
            if self.faults[who] != Faults():
                self.faults[who] = Faults()
                for name, count in self.proxy.set(self._link(who), Faults()).items():
                    self.happened[f"proxy {name}"] += count
            daemon = self.daemon(who)
            if daemon is None:
                self.start_daemon(who)
            else:
                daemon.signal(signal.SIGCONT)
        self.oracle.harming = False

    # ---- the device ----

    def _program(self, label: str, run: Callable[..., int], arguments: list[str], control: Path | None) -> Program:
        program = Program(label, run, arguments, self.folder / f"{label}-{len(self.programs)}.log", control)
        self.programs.append(program)
        return program

    def spawn(self, *options: str, state_dir: Path | None = None, name: str = "vol") -> Program:
        """A device service, not waited for."""
        schedule = self.schedule
        arguments = ["device", "serve", name, "--size", str(SIZE_BYTES), "--slab-size", "1MiB"]
        arguments += ["--backup", str(self.disk.image), "--socket", str(self.folder / f"{name}.sock")]
        arguments += ["--state-dir", str(state_dir or self.state_dir), "--runtime-dir", str(self.folder / "run")]
        arguments += ["--map", "eager", "--backup-engine", schedule.backup_engine, "--sparse", "--transport", "tcp"]
        # At the limit writers wait for the disk; where it fails for long, there is no limit to meet.
        limit = "16MiB" if any(step.kind == "disk_fails" for step in schedule.steps) else "2MiB"
        arguments += ["--backup-layout", schedule.backup_layout]
        arguments += ["--writeback-delay-ms", str(schedule.writeback_delay_ms), "--pending-limit", limit]
        arguments += ["--peer-timeout-ms", str(self.peer_timeout_ms), "--recovery-timeout-s", f"{paced(2.0):g}"]
        arguments += ["--stop-timeout-s", f"{paced(10.0):g}"]
        for address in self.addresses:
            arguments += ["--peer", address]
        return self._program(f"device-{name}", infiniswap, [*arguments, *options], self.disk.control_path)

    def start(self, *options: str, state_dir: Path | None = None) -> None:
        """Start the device and connect its clients. WrongError when it does not start."""
        code = self.try_start(*options, state_dir=state_dir)
        if code is not None:
            device = self.running_device()
            raise WrongError(f"the device ends with exit code {code} at its start; its log:\n{device.log}")
        self.connect()

    def try_start(self, *options: str, state_dir: Path | None = None) -> int | None:
        """Start the device; None once it serves, else its exit code.

        A peer that alone has pages and is lost while they are taken up ends the start, for the next one may find it:
        so while a daemon is harmed some starts may fail, and none once all are well. Likewise with a disk that fails.
        """
        tries = START_TRIES
        while True:
            self.device = self.spawn(*options, state_dir=state_dir)
            if self.device.is_ready(READY_TIMEOUT_S):
                break
            code = self.device.wait(END_TIMEOUT_S)  # AssertionError where it goes on without being ready
            disk_fails = self.oracle.disk_fails_reads or self.oracle.disk_fails_writes
            excused = (code == ExitCode.FAILED and self.harming) or (code == ExitCode.RESOURCES and disk_fails)
            if not excused or not tries:
                return code
            tries -= 1
            if not tries:
                self.heal_daemons()
                self.disk.heal()
        if self._died_s and time.monotonic() - self._died_s > LEASE_TTL_S / 2:
            self.oracle.donor_harmed()  # its leases may have run out
        self._died_s = 0.0
        return None

    def connect(self) -> None:
        """New clients."""
        uri = f"nbd+unix:///vol?socket={self.folder / 'vol.sock'}"
        connections = self.schedule.connections
        self.clients = Clients(uri, self.oracle, connections=connections, errors_allowed=self.error_allowed)

    def disconnect(self) -> None:
        """Close the clients' connections."""
        if self.clients is not None:
            self.answers += self.clients.answers
            self.clients.close()
            self.clients = None

    def running_device(self) -> Program:
        """The device service."""
        assert self.device is not None
        return self.device

    def connected(self) -> Clients:
        """The clients."""
        assert self.clients is not None
        return self.clients

    def error_allowed(self, kind: str) -> bool:
        """Whether a request that changes something may fail now."""
        oracle = self.oracle
        if oracle.disk_fails_writes or oracle.disk_fails_reads:
            return True
        told = kind in ("flush", "fua")
        if told and (self.state_fails or self._may_have_lost()):
            return True
        self.note_losses()
        return told and self._may_have_lost()

    def _may_have_lost(self) -> bool:
        """What a FLUSH has to tell of."""
        return self.oracle.untold or any(page.lossy for page in self.oracle.pages)

    def kill_device(self) -> None:
        """SIGKILL; what its clients had in flight is theirs to report."""
        self.running_device().kill()
        self._died_s = time.monotonic()

    def bury_device(self) -> None:
        """After a kill: no client is left, and the oracle knows."""
        if self.clients is not None:
            self.clients.finish()
        self.disconnect()
        self.note_losses()
        self.oracle.device_died()

    def stop_device(self) -> int:
        """SIGTERM and wait; compares the image when the exit code is 0."""
        device = self.running_device()
        device.signal(signal.SIGTERM)
        return self.wait_stopped()

    def wait_stopped(self) -> int:
        """The device's exit code, once it has ended as it was told to."""
        device = self.running_device()
        code = device.wait()
        if self.clients is not None:
            self.clients.finish()
        self.disconnect()
        self.note_losses()
        if code == ExitCode.OK:
            self.oracle.stopped(read_backup(self.disk.image, SIZE_BYTES, unreadable=UNREADABLE_PAGE))
        elif code == ExitCode.FAILED and self.error_allowed("flush"):
            self.oracle.device_died()
            self.oracle.flush_failed()  # the exit code has told of what is lost
            self._died_s = time.monotonic()
        else:
            raise WrongError(f"the device stopped with exit code {code}; its log:\n{device.log}")
        return code

    def flush(self) -> bool:
        """FLUSH by a client."""
        return self.connected().flush()

    def heal_disk(self) -> None:
        """The backup's disk works again, and the device finds it out by itself.

        Except where fdatasync has failed over pages without another copy: FLUSH tells until they are written anew.
        """
        self.disk.heal()
        if self.sync_failed and not self.flush():
            self.connected().rewrite()
        end_s = time.monotonic() + HEAL_TIMEOUT_S
        while not self.flush() and not any(page.lossy for page in self.oracle.pages):
            if time.monotonic() > end_s:
                raise WrongError("FLUSH still fails though the disk works again")
            time.sleep(0.05)
        self.oracle.disk_fails_reads = self.oracle.disk_fails_writes = self.sync_failed = False

    # ---- the end ----

    def check_running(self) -> None:
        """The device has not ended by itself, and no program has said what none may say."""
        device = self.running_device()
        if not device.running:
            raise WrongError(f"the device ended by itself with exit code {device.code}; its log:\n{device.log}")
        for who, daemon in enumerate(self.daemons):
            if daemon is not None and not daemon.running and daemon.code not in (0, -signal.SIGKILL):
                raise WrongError(f"daemon {who} ended with exit code {daemon.code}; its log:\n{daemon.log}")

    def check_logs(self) -> None:
        """No program has logged a traceback."""
        for program in self.programs:
            log = program.log
            if any(text in log for text in FORBIDDEN_IN_LOGS):
                raise WrongError(f"{program.label} logged:\n{log}")

    def device_logs(self) -> str:
        """What the device said in all its lives."""
        lives = [program for program in self.programs if program.label.startswith("device")]
        return "\n".join(f"life {number}:\n{program.log}" for number, program in enumerate(lives, 1))

    def finale(self) -> None:
        """Everything works again: a FLUSH succeeds, every page is right, and an orderly stop leaves the image so."""
        self.heal_daemons()
        self.heal_disk()
        self.connected().check()
        self.stop_device()
        self.check_logs()

    def forget_state(self) -> None:
        """The state directory was in memory, and went."""
        shutil.rmtree(self.state_dir, ignore_errors=True)
