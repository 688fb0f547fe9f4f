"""A device 'vol' of two shards, its processes, and pages on both."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from infiniswap.nbd.client import NbdClient
from infiniswap.shared.device_client import TIMEOUT_S, fetch
from infiniswap.shared.errors import UserError
from tests.support.services import READY_TIMEOUT_S, Device, Services
from tests.support.waiting import wait_for

MANY = 48
PAGE_BYTES = 4096


def shard_pids(services: Services) -> dict[str, int]:
    """Processes of the shards that answer."""
    found = {}
    for path in sorted(services.runtime_dir.glob("vol~*.control")):
        with contextlib.suppress(UserError):
            status = fetch(path.stem, "/v1/status", services.runtime_dir, silence_s=TIMEOUT_S)
            found[path.stem] = int(status["pid"])
    return found


def serve(services: Services, *options: str, **more: Any) -> Device:
    """Start 'vol' with two shards."""
    return services.device("vol", "--shards", "2", *options, **more)


def connect(device: Device, number: int) -> NbdClient:
    """A client of one shard."""
    path = device.socket.with_name(f"{device.socket.name}~{number}")
    return NbdClient(path, f"{device.name}~{number}", READY_TIMEOUT_S)


def write_both(device: Device) -> list[bytes]:
    """Other pages to each shard; what was written."""
    data = [random.Random(number).randbytes(MANY * PAGE_BYTES) for number in range(2)]
    for number, each in enumerate(data):
        with connect(device, number) as client:
            client.write(0, each)
            client.flush()
    return data


def check_both(device: Device, data: list[bytes]) -> None:
    """What was written is read."""
    for number, each in enumerate(data):
        with connect(device, number) as client:
            assert client.read(0, MANY * PAGE_BYTES) == each


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def pair_of_ports() -> int:
    """A port that nobody has just now, nor the one behind it."""
    for _ in range(100):
        port = random.randrange(20000, 30000, 2)  # below those that the kernel gives to whoever asks for any
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            with socket.create_server(("127.0.0.1", port + 1)):
                return port
    raise AssertionError("all ports are in use")


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Samples at /metrics by name and shard, as Prometheus would read them: no family comes in two pieces."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=READY_TIMEOUT_S) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    return {
        (sample.name, sample.labels.get("shard") or sample.labels["device"]): sample.value
        for family in families
        for sample in family.samples
    }


def gone(pid: int) -> bool:
    """Whether that process has ended (a zombie that nobody reaps counts as well)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def backup_of(device: Device, number: int) -> Path:
    """The file of one shard."""
    return device.backup.with_name(f"{device.backup.name}~{number}")


@contextlib.contextmanager
def kept_dead(device: Device, services: Services, *numbers: int) -> Iterator[None]:
    """Shards are killed, and do not come back inside of this: their backups are elsewhere meanwhile.

    The test announces what the log says of it.
    """
    pids = shard_pids(services)
    away = {number: backup_of(device, number).with_suffix(f".away{number}") for number in numbers}
    for number, path in away.items():
        backup_of(device, number).rename(path)
        os.kill(pids[f"vol~{number}"], signal.SIGKILL)

    def seen() -> bool:
        rows = device.get("/v1/status")["shards"]
        return all("backup" in rows[number]["why"] for number in numbers)

    wait_for(seen, what="the parent's first try to start them", timeout_s=40.0)
    try:
        yield
    finally:
        for number, path in away.items():
            path.rename(backup_of(device, number))
