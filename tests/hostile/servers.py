"""Starts the servers that the hostile clients are let loose on, each with a UNIX and a TCP socket."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.activation import activated
from tests.support.rawclient import RawClient
from tests.support.services import READY_TIMEOUT_S, Service, Services
from tests.support.waiting import wait_for

MIB = 1 << 20
SLAB_BYTES = 32 * MIB
SLABS = 160  # 5 GiB: more than a request's 32-bit length can span
SIZE_BYTES = SLAB_BYTES * SLABS
FRONT_SLABS = 4  # the memory server has these mapped at the beginning, and the last slab
CONNECTIONS_MAX = 64
OURS = ["memory", "device", "remote"]
KINDS = ["nbdkit", *OURS]  # nbdkit is there to check the suite itself
ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 10.0


@dataclass
class Server:
    """A server under attack and what may be expected of it."""

    kind: str
    unix: str
    tcp: tuple[str, int]
    service: Service
    size_bytes: int = SIZE_BYTES
    front_bytes: int = FRONT_SLABS * SLAB_BYTES  # usable at the beginning
    back_bytes: int = SLAB_BYTES  # usable at the end
    slab_bytes: int = SLAB_BYTES
    request_bytes_max: int = 32 * MIB
    export: str = "disk"
    backup: Path | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """What runs."""
        return self.service.process

    @property
    def ours(self) -> bool:
        """False for the server that the suite itself is checked with."""
        return self.kind != "nbdkit"

    def connect(self, *, structured: bool = False, allocation: bool = False, tcp: bool = False) -> RawClient:
        """A negotiated connection."""
        client = RawClient(self.tcp if tcp else self.unix)
        try:
            return client.negotiate(self.export, structured=structured, allocation=allocation)
        except BaseException:
            client.close()
            raise

    def open_now(self) -> tuple[int, int]:
        """Connections and negotiations that the server counts as open."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        said = self.service.output.line(START_TIMEOUT_S)
        assert said is not None, f"the server says nothing (exit code {self.process.poll()})"
        connections, handshakes = said.split()
        return int(connections), int(handshakes)

    def settle(self) -> None:
        """Wait until the server has let go of every connection; fails when it does not."""
        if not self.ours:
            return
        wait_for(lambda: self.open_now() == (0, 0), SETTLE_TIMEOUT_S, "the end of every connection and negotiation")

    def resident_bytes(self) -> int:
        """Memory of the process, without what it shares with nobody but files (the slabs)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def launch(kind: str, folder: Path) -> Iterator[Server]:
    """Run a server of this kind: nbdkit, memory, device (without peers), remote (its pages on a peer, and in a log).

    Fails when it has crashed or does not end.
    """
    unix = str(folder / f"{kind}.sock")
    environment = {"PYTHONPATH": str(ROOT)}
    backup = None
    if kind == "nbdkit":
        # One thread for each connection: with more, nbdkit 1.32 aborts when a client goes under load (raw_send_socket).
        command = ["nbdkit", "-f", "-t", "1", "memory", str(SIZE_BYTES)]
    else:
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.hostile.serve", kind]
    if kind in ("device", "remote"):
        backup = folder / "backup.img"
        environment["HOSTILE_BACKUP"] = str(backup)
    with Services(folder, any_log=True) as services:
        with socket.socket(socket.AF_UNIX) as on_unix, socket.socket(socket.AF_INET) as on_tcp:
            on_unix.bind(unix)
            on_unix.listen(128)
            on_tcp.bind(("127.0.0.1", 0))
            on_tcp.listen(128)
            passed = (on_unix.fileno(), on_tcp.fileno())
            service = services.spawn(
                kind, activated(command, *passed), pass_fds=passed, stdin=subprocess.PIPE, **environment
            )
            server = Server(kind, unix, on_tcp.getsockname(), service, backup=backup)
        try:
            if server.ours:
                service.read_ready(READY_TIMEOUT_S)
            else:
                server.request_bytes_max = 64 * MIB
            yield server
        except BaseException:
            service.kill()  # a test has found it broken: how it would end tells nothing more
            raise


class Keeper:
    """Keeps one server for many tests, and starts another when a test has found it broken."""

    def __init__(self, kind: str, make_folder: Callable[[], Path]) -> None:
        self._kind = kind
        self._make_folder = make_folder
        self._stack = ExitStack()
        self._server: Server | None = None

    @contextmanager
    def lend(self) -> Iterator[Server]:
        """The server; whatever is raised meanwhile is its end."""
        if self._server is None:
            self._server = self._stack.enter_context(launch(self._kind, self._make_folder()))
        try:
            yield self._server
        except BaseException as error:
            self._server = None
            with suppress(type(error)):
                self._stack.__exit__(type(error), error, error.__traceback__)
            self._stack = ExitStack()
            raise

    def close(self) -> None:
        """End the server, which must do so in good order."""
        self._stack.close()
