"""A device grows with everything that is on it; a kill at any step leaves one of both sizes; else it is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infiniswap.nbd.client import NbdClient
from infiniswap.shared.errors import ExitCode
from tests.device.support import pattern
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Device, Services

MIB = 1 << 20
OLD, NEW = 8 * MIB, 24 * MIB
STEPS = ("note", "backup", "table", "state")
# Grows the device as the command does, and kills itself at a step.
KILLED_AT = """
import os, signal, sys
from pathlib import Path
from infiniswap.device.grow import grow
def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
grow("vol", int(sys.argv[4]), Path(sys.argv[1]), Path(sys.argv[2]), step=step)
"""


def state_dir(services: Services) -> Path:
    """Where devices of this test keep their state."""
    return services.folder / "state"


def filled(services: Services) -> bytes:
    """A device of the old size that was filled and stopped in order; its content."""
    device = services.device(size="8MiB", peers=[services.daemon()])
    data = pattern(OLD // 4096)
    with device.connect() as client:
        client.write(0, data)
    assert device.stop() == ExitCode.OK
    return data


def check(device: Device, data: bytes, size_bytes: int) -> None:
    """It has that size, holds data, then zeroes, and can be written to its end."""
    with device.connect() as client:
        assert client.size_bytes == size_bytes
        assert client.read(0, len(data)) == data
        beyond = size_bytes - len(data)
        assert client.read(len(data), beyond) == bytes(beyond)
        if beyond:
            client.write(size_bytes - 4096, b"e" * 4096)
            client.flush()
            assert client.read(size_bytes - 4096, 4096) == b"e" * 4096


def test_it_grows(services: Services) -> None:
    """Everything is there afterwards, what is new reads as zeroes, and the backup is as large."""
    data = filled(services)
    grown = services.command("device", "grow", "vol", "24MiB")
    assert (grown.returncode, grown.stderr) == (ExitCode.OK, "")
    assert "its name alone starts it with that size" in grown.stdout
    assert (services.folder / "vol.img").stat().st_size == NEW
    again = services.spawn("by name", [*INFINISWAP, "device", "serve", "vol"])
    again.read_ready(READY_TIMEOUT_S)
    with NbdClient(services.folder / "vol.sock", "vol") as client:
        assert client.size_bytes == NEW
        assert client.read(0, len(data)) == data
        assert client.read(OLD, NEW - OLD) == bytes(NEW - OLD)


def test_a_size_in_a_file_is_told(services: Services) -> None:
    """Grow changes no file of its user: it says what to write where, and the start with the old size is refused."""
    file = services.folder / "vol.toml"
    file.write_text(f'name = "vol"\nsize = "8MiB"\nslab_size = "1MiB"\nbackup = "{services.folder}/vol.img"\n')
    services.expect_log("no peers are configured")
    serve = [*INFINISWAP, "device", "serve", "--config", str(file)]
    first = services.spawn("first", serve)
    first.read_ready(READY_TIMEOUT_S)
    first.stop()
    grown = services.command("device", "grow", "vol", "24MiB")
    assert f"write size = {NEW} into {file}" in grown.stdout
    old = services.command(*serve[len(INFINISWAP) :])
    assert (old.returncode, f"--size {NEW}" in old.stderr) == (ExitCode.REFUSED, True)
    file.write_text(file.read_text().replace('"8MiB"', str(NEW)))
    second = services.spawn("second", serve)
    second.read_ready(READY_TIMEOUT_S)


def kill_at(services: Services, step: str) -> None:
    """Let a process grow the device and kill itself at the step."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT, state_dir(services), services.runtime_dir, step, str(NEW)],
        env=services.environment,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL


def test_killed_at_each_step(services: Services) -> None:
    """The next start finds the old size or the new one, with all that was there, and nothing of the attempt is left."""
    data = filled(services)
    services.expect_log("growing to 24MiB was interrupted: undone")
    for step in STEPS:
        kill_at(services, step)
        size = NEW if step == "state" else OLD
        device = services.device(size=str(size))
        left = [path.name for path in (state_dir(services) / "vol").iterdir()]
        assert [name for name in left if "grow" in name or "new" in name] == []
        check(device, data, size)
        assert device.stop() == ExitCode.OK


def test_killed_and_grown_again(services: Services) -> None:
    """A second grow takes up what the first one left."""
    data = filled(services)
    kill_at(services, "table")
    again = services.command("device", "grow", "vol", "16MiB", "--sparse")
    assert again.returncode == ExitCode.OK, again.stderr
    check(services.device(size="16MiB"), data, 16 * MIB)


def test_what_it_refuses(services: Services) -> None:
    """While it runs, after a kill, to the same or a smaller size, where nothing is known: one line, nothing changed."""
    device = services.device(size="8MiB", peers=[services.daemon()])

    def refused(size: str, code: ExitCode, word: str, name: str = "vol") -> None:
        done = services.command("device", "grow", name, size)
        assert (done.returncode, done.stderr.count("\n"), word in done.stderr) == (code, 1, True), done.stderr

    refused("24MiB", ExitCode.IN_USE, "stop it first")
    device.kill()
    refused("24MiB", ExitCode.REFUSED, "was not stopped in order")
    services.device(size="8MiB", peers=[services.daemon()]).stop()
    refused("8MiB", ExitCode.USAGE, "has that size")
    refused("4MiB", ExitCode.USAGE, "cannot shrink")
    refused("9000001", ExitCode.USAGE, "multiple of the page")
    refused("9999TiB", ExitCode.USAGE, "too large")
    refused("24MiB", ExitCode.NOT_FOUND, "no state", name="other")
    image = services.folder / "vol.img"
    image.rename(services.folder / "away.img")
    refused("24MiB", ExitCode.NOT_FOUND, "does not exist")
    (services.folder / "away.img").rename(image)
    assert image.stat().st_size == OLD
    services.device(size="8MiB").stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device takes root")
def test_a_block_device_must_have_the_size(services: Services) -> None:
    """One that is too small is refused and nothing changes; once it was enlarged the device grows."""
    file = services.folder / "disk"
    file.write_bytes(b"")
    os.truncate(file, OLD)
    attached = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=True)
    disk = Path(attached.stdout.strip())
    try:
        device = services.device(size="8MiB", backup=disk)
        with device.connect() as client:
            client.write(0, b"d" * MIB)
        device.stop()
        small = services.command("device", "grow", "vol", "24MiB")
        assert (small.returncode, "enlarge it first" in small.stderr) == (ExitCode.REFUSED, True)
        os.truncate(file, NEW)
        subprocess.run(["losetup", "-c", disk], check=True)
        assert services.command("device", "grow", "vol", "24MiB").returncode == ExitCode.OK
        grown = services.device(size="24MiB", backup=disk)
        check(grown, b"d" * MIB, NEW)
        grown.stop()
    finally:
        subprocess.run(["losetup", "-d", disk], check=True)
