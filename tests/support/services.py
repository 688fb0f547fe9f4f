"""Daemons and devices as processes of their own, started until they are ready and ended by pid in order.

What a service logs is part of the test: a traceback or a sanitizer's report fails it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from infiniswap.cli.demo.cluster import program
from infiniswap.nbd.client import NbdClient
from infiniswap.shared.device_client import TIMEOUT_S, fetch
from tests.support.output import Output
from tests.support.pace import daemon_options, device_options, paced

READY_TIMEOUT_S = paced(30.0)
STOP_TIMEOUT_S = paced(30.0)
ANSWER_TIMEOUT_S = paced(10.0)
# What a busy machine alone may make of any test, and a client that went a moment before.
_ALWAYS_EXPECTED = (
    r"answers too late: pages go to the backup",
    r"the daemon stood still for",
    r"peer \S+: no answer within",
    r"NBD connections are open: who uses them waits",
)
_NO_PEERS = "no peers are configured"
# Tests that wait until all is on the backup wait for it, not for its time to come; what a test says itself counts.
SOON = ("--writeback-delay-ms", "20")
_COMPLAINT = re.compile(r"(\S+ ){1,2}(WARNING|ERROR|CRITICAL) ")  # with the date or without
FORBIDDEN_IN_LOGS = ("Traceback (most recent call last)", "Sanitizer", "never awaited", "never retrieved")
DAEMON = program("infiniswapd", "infiniswap.daemon.main")
INFINISWAP = program("infiniswap", "infiniswap.cli.main")


@dataclass(slots=True)
class Service:
    """A program that runs, or has run."""

    label: str
    process: subprocess.Popen[bytes]
    log_path: Path
    ready: str = ""  # what followed 'ready' on its first line
    output: Output = field(init=False)
    killed: bool = False
    expected_code: int = 0  # with which it shall end

    def __post_init__(self) -> None:
        """Nothing of its output was read."""
        assert self.process.stdout is not None
        self.output = Output(self.process.stdout.fileno())

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """All of its stderr."""
        return self.log_path.read_text(errors="replace")

    def suspend(self) -> None:
        """SIGSTOP: it holds everything it has and does nothing, until resume()."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after suspend(); else nothing."""
        self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Between suspend() and resume(), whatever happens."""
        self.suspend()
        try:
            yield
        finally:
            self.resume()

    def kill(self) -> None:
        """SIGKILL, as when the host loses power."""
        self.killed = True
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S, number: int = signal.SIGTERM) -> int:
        """Send it the signal and wait; its exit code. AssertionError (and SIGKILL) when that takes longer."""
        if self.running:
            self.process.send_signal(number)
            self.resume()  # a failed test may have left it suspended
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end; its exit code. AssertionError (and SIGKILL) when that takes longer than timeout_s."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.label} did not end within {timeout_s:g} s; its log:\n{self.log}") from None

    def read_ready(self, timeout_s: float) -> None:
        """Wait for the line 'ready …' on stdout."""
        ready = self.output.ready(timeout_s)
        assert ready is not None, f"{self.label} is not ready (exit code {self.process.poll()}); its log:\n{self.log}"
        self.ready = ready


@dataclass(slots=True)
class Daemon(Service):
    """A memory daemon."""

    @property
    def url(self) -> str:
        """Of its control API."""
        return self.ready

    @property
    def address(self) -> str:
        """HOST:PORT of its control API, as --peer takes it."""
        return self.url.partition("://")[2]

    def get(self, path: str) -> Any:
        """Its answer to GET path."""
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_TIMEOUT_S) as response:
            return json.load(response)


@dataclass(slots=True)
class Device(Service):
    """A device service."""

    name: str = ""
    backup: Path = Path()
    socket: Path = Path()
    runtime_dir: Path = Path()

    def get(self, path: str) -> Any:
        """Its answer to GET path of the control API."""
        return fetch(self.name, path, self.runtime_dir, silence_s=TIMEOUT_S)  # a test's machine may be slow

    def connect(self, timeout_s: float = READY_TIMEOUT_S) -> NbdClient:
        """A new NBD connection."""
        return NbdClient(self.socket, self.name, timeout_s)

    @property
    def uri(self) -> str:
        """As libnbd and fio take it."""
        return f"nbd+unix:///{self.name}?socket={self.socket}"


ServiceKind = TypeVar("ServiceKind", bound=Service)


@dataclass
class Services:
    """Starts services in folder (short paths: they hold UNIX sockets) and ends them all."""

    folder: Path
    any_log: bool = False  # nothing but a crash is wrong in a log: for tests that do harm
    layout: str = "raw"  # of the backups of its devices; tests/support/layouts.py: both_layouts
    started: list[Service] = field(default_factory=list)
    expected: list[re.Pattern[str]] = field(default_factory=list)

    def expect_log(self, *patterns: str) -> None:
        """Warnings and errors in which one of the patterns is found are part of the test; any other fails it."""
        self.expected += map(re.compile, patterns)

    @property
    def runtime_dir(self) -> Path:
        """Where devices of this set make their control sockets."""
        return self.folder / "run"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every service and command of this set."""
        ours = {"INFINISWAP_RUNTIME_DIR": str(self.runtime_dir), "INFINISWAP_STATE_DIR": str(self.folder / "state")}
        ours["INFINISWAP_BACKUPS_DIR"] = str(self.folder / "marks")
        return {**os.environ, **ours}

    def spawn(
        self,
        label: str,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        **environment: str,
    ) -> Service:
        """Start any program, without waiting for it to be ready."""
        process, log_path = self._process(label, command, environment, pass_fds, stdin)
        return self._add(Service(label, process, log_path))

    def daemon(self, memory: str = "64MiB", *options: str, prefix: Sequence[str] = (), ready: bool = True) -> Daemon:
        """Start a memory daemon on a free port of the loopback interface; options are further arguments.

        prefix: a command that ends by executing its arguments.
        """
        label = f"daemon-{len(self.started)}"
        arguments = ["--memory", memory, "--headroom", "0"]
        if "--listen" not in options:
            arguments += ["--listen", "127.0.0.1:0"]
        elif "--data-listen" not in options:  # the port above may be another test's
            arguments += ["--data-listen", "127.0.0.1:0"]
        process, log_path = self._process(label, [*prefix, *DAEMON, *arguments, *daemon_options(), *options], {})
        return self._add(Daemon(label, process, log_path), ready=ready)

    def device(
        self,
        name: str = "vol",
        *options: str,
        size: str = "32MiB",
        slab_size: str = "1MiB",
        peers: Sequence[Daemon | str] = (),
        backup: Path | None = None,
        prefix: Sequence[str] = (),
        ready: bool = True,
    ) -> Device:
        """Start a device; options are further arguments. The backup is NAME.img in the folder unless given.

        prefix: a command that ends by executing its arguments.
        """
        backup = backup or self.folder / f"{name}.img"
        socket = self.folder / f"{name}.sock"
        arguments = ["device", "serve", name, "--size", size, "--slab-size", slab_size, "--backup", str(backup)]
        arguments += ["--socket", str(socket)]
        if not peers:
            self.expect_log(_NO_PEERS)
        for peer in peers:
            arguments += ["--peer", peer if isinstance(peer, str) else peer.address]
        label = f"device-{name}-{len(self.started)}"
        if self.layout != "raw":  # which a device has anyway
            options = ("--backup-layout", self.layout, *options)
        options = (*SOON, *device_options(), *options)
        process, log_path = self._process(label, [*prefix, *INFINISWAP, *arguments, *options], {})
        device = Device(label, process, log_path, name=name, backup=backup, socket=socket, runtime_dir=self.runtime_dir)
        return self._add(device, ready=ready)

    def command(self, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run infiniswap with arguments to its end."""
        return subprocess.run(
            [*INFINISWAP, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=paced(timeout_s),
            check=False,
        )

    def _process(
        self,
        label: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> tuple[subprocess.Popen[bytes], Path]:
        log_path = self.folder / f"{label}.log"
        with log_path.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**self.environment, **environment},
                pass_fds=pass_fds,
            )
        return process, log_path

    def _add(self, service: ServiceKind, ready: bool = False) -> ServiceKind:
        self.started.append(service)
        if ready:
            service.read_ready(READY_TIMEOUT_S)
        return service

    def close(self) -> None:
        """End devices, then daemons; AssertionError for one that did not end well or logged what it must not."""
        wrong: list[str] = []
        for service in sorted(self.started, key=lambda service: isinstance(service, Daemon)):
            try:
                code = service.stop()
                if code != service.expected_code and not service.killed:
                    wrong.append(f"{service.label} ended with exit code {code}; its log:\n{service.log}")
            except AssertionError as error:
                wrong.append(str(error))
            for pipe in (service.process.stdin, service.process.stdout):
                if pipe is not None:
                    pipe.close()
            log = service.log
            wrong += [f"{service.label} logged '{text}':\n{log}" for text in FORBIDDEN_IN_LOGS if text in log]
            wrong += [f"{service.label} logged, and no test expected it: {line}" for line in self.surprises(log)]
        self.started.clear()
        assert not wrong, "\n".join(wrong)

    def surprises(self, log: str) -> list[str]:
        """Warnings and errors in log that the test did not announce; what it killed it has announced."""
        if self.any_log:
            return []
        self.expect_log(*_ALWAYS_EXPECTED)
        for service in self.started:
            if service.killed and isinstance(service, Device):
                self.expect_log("the device did not stop in order; recovering")
            if service.killed and isinstance(service, Daemon):
                address = re.escape(service.address)
                gone = "cannot connect|page I/O failed|the request failed|it has ended"
                self.expect_log(f"peer {address} is lost", f"peer {address}: ({gone})")
                # Of the next one in its place, which devices ask for the lease that they had.
                self.expect_log("refused a [A-Z]+ of .*: 404 there is no lease")
        lines = [line for line in log.splitlines() if _COMPLAINT.match(line)]
        return [line for line in lines if not any(pattern.search(line) for pattern in self.expected)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
