"""The demo's cluster: memory daemons and one device as processes of their own, in one folder."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from infiniswap.identity.files import FOLDER_VARIABLE, NO_FOLDER
from infiniswap.nbd.client import NbdClient
from infiniswap.shared.device_client import fetch
from infiniswap.shared.errors import ExitCode, UserError

READY_TIMEOUT_S = 30.0
DEVICE_STOP_TIMEOUT_S = 60.0
CLEANUP_TIMEOUT_S = 5.0
_LINE_BYTES_MAX = 4096
_LOG_LINES_SHOWN = 15


@dataclass(slots=True)
class Service:
    """A program that was started."""

    label: str
    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""  # what followed 'ready'


def program(command: str, module: str) -> list[str]:
    """How to start one of our commands: the script beside this Python, or its module's main() where there is none."""
    script = Path(sys.executable).with_name(command)
    if script.exists():
        return [sys.executable, str(script)]
    return [sys.executable, "-P", "-c", f"from {module} import main; main()"]


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_LINES_SHOWN:])


def _ready_line(process: subprocess.Popen[bytes], timeout_s: float) -> str | None:
    """What follows 'ready' on the first line of stdout; None when the process ends, or the time, without one."""
    assert process.stdout is not None
    line = b""
    end_s = time.monotonic() + timeout_s
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, end_s - time.monotonic()))
        piece = os.read(process.stdout.fileno(), _LINE_BYTES_MAX) if readable else b""
        if not piece:
            return None
        line += piece
    word, _, rest = line.decode(errors="replace").strip().partition(" ")
    return rest if word == "ready" else None


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """SIGTERM, after timeout_s SIGKILL; whether the process ended by itself with exit code 0."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    finally:
        if process.stdout is not None:
            process.stdout.close()
    return process.returncode == 0


class DemoCluster:
    """Three kinds of things in one folder: daemons, the device NAME, their logs. close() ends what still runs."""

    NAME = "demo"

    def __init__(self, folder: Path) -> None:
        """folder: an empty directory with a short path (it holds UNIX sockets)."""
        self.folder = folder
        self.runtime_dir = folder / "run"
        self.backup = folder / "backup.img"
        self.socket = folder / "nbd.sock"
        self.daemons: list[Service] = []
        self.device: Service | None = None
        self._environment = {
            **os.environ,
            "INFINISWAP_RUNTIME_DIR": str(self.runtime_dir),
            "INFINISWAP_STATE_DIR": str(folder / "state"),
            FOLDER_VARIABLE: NO_FOLDER,  # all of it is on loopback
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, label: str, program: Sequence[str], arguments: Sequence[str]) -> Service:
        """Start a program, without waiting for it to be ready."""
        log = self.folder / f"{label}.log"
        with log.open("wb") as stderr:
            # A session of its own: Ctrl-C in the terminal reaches the demo alone, which then ends the others in order.
            process = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self._environment,
                start_new_session=True,
            )
        return Service(label, process, log)

    def _await(self, service: Service) -> None:
        """Wait until service is ready; UserError with the end of its log when it will not be."""
        address = _ready_line(service.process, READY_TIMEOUT_S)
        if address is None:
            _end(service.process, CLEANUP_TIMEOUT_S)
            message = f"{service.label} did not start; the end of its log:\n{_tail(service.log)}"
            raise UserError(message, ExitCode.FAILED)
        service.address = address.removeprefix("http://")

    def start_daemons(self, count: int, memory_bytes: int, headroom_bytes: int) -> None:
        """Start count memory daemons on free ports of the loopback interface."""
        arguments = ["--memory", str(memory_bytes), "--headroom", str(headroom_bytes), "--listen", "127.0.0.1:0"]
        for number in range(1, count + 1):
            command = program("infiniswapd", "infiniswap.daemon.main")
            self.daemons.append(self._spawn(f"daemon-{number}", command, arguments))
        for daemon in self.daemons:
            self._await(daemon)

    def start_device(self, size_bytes: int, slab_bytes: int) -> None:
        """Start the device with all daemons as peers."""
        arguments = ["device", "serve", self.NAME, "--size", str(size_bytes), "--slab-size", str(slab_bytes)]
        arguments += ["--backup", str(self.backup), "--socket", str(self.socket)]
        for daemon in self.daemons:
            arguments += ["--peer", daemon.address]
        self.device = self._spawn("device", program("infiniswap", "infiniswap.cli.main"), arguments)
        self._await(self.device)

    def connect(self) -> NbdClient:
        """A new NBD connection to the device."""
        return NbdClient(self.socket, self.NAME, timeout_s=READY_TIMEOUT_S)

    def get(self, path: str) -> Any:
        """The device's answer to GET path of its control API."""
        return fetch(self.NAME, path, self.runtime_dir)

    def kill_daemon(self, daemon: Service) -> None:
        """SIGKILL, as when the host loses power."""
        daemon.process.kill()
        daemon.process.wait()

    def stop_device(self) -> bool:
        """SIGTERM and wait; whether the device ended by itself with exit code 0."""
        device, self.device = self.device, None
        return device is not None and _end(device.process, DEVICE_STOP_TIMEOUT_S)

    def close(self) -> None:
        """End everything that still runs, the device first."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        try:
            for service in ([self.device] if self.device else []) + self.daemons:
                _end(service.process, CLEANUP_TIMEOUT_S)
            self.device, self.daemons = None, []
        finally:
            signal.signal(signal.SIGINT, before)

    def keep(self) -> Path:
        """Let everything run on; returns a script that ends it and removes the folder."""
        services = ([self.device] if self.device else []) + [d for d in self.daemons if d.process.poll() is None]
        script = self.folder / "stop"
        script.write_text(_stop_script([service.process.pid for service in services], self.folder))
        script.chmod(0o755)
        for service in services:
            if service.process.stdout is not None:
                service.process.stdout.close()
            service.process.returncode = 0  # it is init's from here on; Popen shall not complain of it
        self.device, self.daemons = None, []
        return script


def _stop_script(pids: Sequence[int], folder: Path) -> str:
    """Shell script: ends pids in order, each only while it is still a program of this demo, then removes folder."""
    lines = [
        "#!/bin/sh",
        "# Ends this demo: the device first, which writes what is pending to its backup, then the daemons.",
        "runs() { grep -qs infiniswap /proc/$1/cmdline; }",
        f"for pid in {' '.join(map(str, pids))}; do",
        "    runs $pid || continue",
        "    kill $pid",
        "    tries=600",
        "    while runs $pid && [ $tries -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done",
        "    ! runs $pid || { echo process $pid has not ended within a minute >&2; exit 1; }",
        "done",
        f"rm -rf {shlex.quote(str(folder))}",
    ]
    return "\n".join(lines) + "\n"
