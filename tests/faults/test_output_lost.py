"""A device and a daemon whose output is closed, full, or read by nobody serve on and stop in order."""

from __future__ import annotations

import os
from itertools import cycle
from pathlib import Path

import pytest

from infiniswap.device.limits import BACKUP_LAYOUTS
from infiniswap.nbd.client import NbdClient
from infiniswap.shared.device_client import fetch
from infiniswap.shared.errors import UserError
from tests.support.backups import read_backup
from tests.support.layouts import on_one_layout
from tests.support.services import DAEMON, INFINISWAP, Service, Services
from tests.support.waiting import wait_for

SIZE_BYTES = 8 << 20
REDIRECTS = [
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    "| true",
    "2>&1 | true",
]


def started(services: Services, label: str, redirect: str, command: list[str]) -> Service:
    """The command with its output redirected; the pid in the file is the program's, not the shell's."""
    pid_path = services.folder / f"{label}.pid"
    # A pipe's other commands make the shell wait for them; the program is the one that replaced the inner shell.
    inner = f'sh -c \'echo $$ > {pid_path}; exec "$@"\' sh "$@" {redirect}'
    service = services.spawn(label, ["bash", "-c", f"set -o pipefail; {inner}", "bash", *command])
    wait_for(lambda: pid_path.exists() and pid_path.read_text().strip(), what="the program")
    return service


def stop(services: Services, label: str, service: Service) -> int:
    """SIGTERM to the program; the exit code of the whole."""
    os.kill(int((services.folder / f"{label}.pid").read_text()), 15)
    return service.wait()


@pytest.mark.parametrize(("redirect", "layout"), list(zip(REDIRECTS, cycle(BACKUP_LAYOUTS), strict=False)))
def test_device(services: Services, redirect: str, layout: str) -> None:
    """It serves, logs (at debug, with a peer that is not there), and its end is an orderly one."""
    socket, backup = services.folder / "vol.sock", services.folder / "vol.img"
    arguments = ["vol", "--size", str(SIZE_BYTES), "--slab-size", "1MiB", "--backup", str(backup)]
    arguments += ["--socket", str(socket), "--log-level", "debug", "--peer", "127.0.0.1:9"]
    arguments += ["--backup-layout", layout]
    service = started(services, "device", redirect, [*INFINISWAP, "device", "serve", *arguments])

    def serving() -> bool:
        try:
            return bool(fetch("vol", "/v1/status", services.runtime_dir)["state"] == "serving")
        except UserError:
            return False

    wait_for(serving, what="the device", timeout_s=30.0)
    with NbdClient(socket, "vol", 10.0) as client:
        client.write(0, b"x" * 4096)
        client.flush()
    assert stop(services, "device", service) == 0
    data = read_backup(backup, SIZE_BYTES)
    assert data[:4096] == b"x" * 4096
    assert data[4096:] == bytes(SIZE_BYTES - 4096), "no line of text went into it"


@on_one_layout("log", "What a daemon says has nothing to do with a device's backup.")
@pytest.mark.parametrize("redirect", REDIRECTS)
def test_daemon(services: Services, redirect: str) -> None:
    """It lends and its end is an orderly one."""
    port_path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    port = int(port_path.read_text().split()[0]) - 1 - os.getpid() % 5000
    ports = ["--listen", f"127.0.0.1:{port}", "--data-listen", "127.0.0.1:0"]
    command = [*DAEMON, "--memory", "16MiB", "--headroom", "0", *ports, "--log-level", "debug"]
    service = started(services, "daemon", redirect, command)
    device = services.device("vol", "--map", "eager", peers=[f"127.0.0.1:{port}"])
    with device.connect() as client:
        client.write(0, b"x" * 4096)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 1, what="mapping", timeout_s=30.0)
    assert device.stop() == 0
    assert stop(services, "daemon", service) == 0
