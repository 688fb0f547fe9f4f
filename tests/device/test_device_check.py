"""`infiniswap device check`: tells how a device stands and what a start would do, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infiniswap.shared.errors import ExitCode
from tests.device.support import mapped, pattern
from tests.support.layouts import both_layouts
from tests.support.services import Services
from tests.support.shards import serve
from tests.support.waiting import wait_for


def check(services: Services, code: ExitCode, *options: str) -> dict[str, Any]:
    """Its findings; the folder is as it was."""
    before = {p: p.stat().st_mtime_ns for p in services.folder.rglob("*") if p.suffix != ".log"}
    done = services.command("device", "check", "vol", "--json", *options)
    assert done.returncode == code, done.stdout + done.stderr
    assert {p: p.stat().st_mtime_ns for p in services.folder.rglob("*") if p.suffix != ".log"} == before
    plain = services.command("device", "check", "vol", *options)
    assert plain.returncode == code
    found: dict[str, Any] = json.loads(done.stdout)
    assert len(plain.stdout.splitlines()) == len(found["words"])
    return found


@both_layouts
def test_all_of_a_life(services: Services) -> None:
    """Unknown, running, stopped, killed with its peer alive, with its peer dead, and with another backup."""
    assert services.command("device", "check", "vol").returncode == ExitCode.NOT_FOUND
    daemon = services.daemon()
    options = ("--map", "eager", "--writeback-delay-ms", "60000")
    device = services.device("vol", *options, peers=[daemon])
    assert check(services, ExitCode.OK)["start"] == "running"
    assert device.stop() == 0
    found = check(services, ExitCode.OK)
    assert found["start"] == "rebuild"
    assert any("was closed in order by device 'vol'" in line for line in found["words"])
    device = services.device("vol", *options, peers=[daemon])
    with device.connect() as client:
        client.write(0, pattern(16))
        wait_for(lambda: mapped(device), what="a mapped slab")
        client.write(0, pattern(16))
    device.kill()
    found = check(services, ExitCode.OK)
    assert found["start"] == "recover"
    assert [(lease["peer"], lease["lives"]) for lease in found["leases"]] == [(daemon.address, True)]
    assert found["only_remote_pages"] > 0
    other = services.folder / "other.img"
    other.write_bytes(bytes(32 << 20))
    found = check(services, ExitCode.REFUSED, "--backup", str(other))
    assert str(device.backup) in found["words"][-1]
    daemon.kill()
    found = check(services, ExitCode.FAILED)
    assert any("would be lost at a start now" in line for line in found["words"])


def test_segments_of_a_stopped_log(services: Services) -> None:
    """Of a log that nobody writes to nothing is said of free segments: nobody counts them, and 0 would look full."""
    services.layout = "log"
    assert services.device("vol").stop() == 0
    (line,) = [line for line in check(services, ExitCode.OK)["words"] if line.startswith("it is a log of ")]
    assert line.endswith(" segments with 0B in it")


@both_layouts
def test_what_a_start_would_refuse(services: Services) -> None:
    """A backup that is not as it was left is refused as by a start: a copy without its mark, one cut to nothing."""
    device = services.device("vol")
    with device.connect() as client:
        client.write(0, pattern(16))
    assert device.stop() == 0
    copied = device.backup.read_bytes()
    device.backup.unlink()
    device.backup.write_bytes(copied)
    found = check(services, ExitCode.REFUSED)
    assert found["start"] == "refused"
    assert any("a start takes --adopt-image" in line for line in found["words"])
    device.backup.write_bytes(b"")
    found = check(services, ExitCode.REFUSED)
    assert found["start"] == "refused"


@pytest.mark.skipif(os.geteuid() != 0, reason="chown takes root")
@pytest.mark.parametrize("what", ["state", ""])
def test_state_of_another_user(services: Services, what: str) -> None:
    """Nothing takes it up, and all say alike how it comes back; nobody is told to remove what knows of lost pages."""
    assert services.device("vol").stop() == 0
    path = services.folder / "state" / "vol" / what
    os.chown(path, 12345, -1)
    line = f"{path} belongs to another user, 12345: run this as 12345, or give it to root with 'chown root {path}'"
    found = check(services, ExitCode.REFUSED)
    assert (found["start"], found["words"][-1]) == ("refused", f"a start is refused: {line}")
    out = str(services.folder / "out")
    for verb in (["serve", "vol"], ["export", "vol", out], ["convert", "vol", "--to", "log"], ["grow", "vol", "64MiB"]):
        done = services.command("device", *verb)
        assert (done.returncode, line in done.stderr) == (ExitCode.REFUSED, True), (verb, done.stderr)
    os.chown(path, 0, -1)
    assert check(services, ExitCode.OK)["start"] == "rebuild"


def test_backup_that_cannot_be_written(services: Services, disk: Path) -> None:
    """A start is refused where the backup is on a read-only mount, and check says so."""
    device = services.device("vol", size="2MiB", backup=disk / "img")
    assert device.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], timeout=30, check=True)
    found = check(services, ExitCode.RESOURCES)
    assert found["start"] == "refused"
    assert any("cannot be opened for writing: Read-only file system" in line for line in found["words"])
    again = services.device("vol", size="2MiB", backup=disk / "img", ready=False)
    again.expected_code = ExitCode.RESOURCES
    assert again.wait() == ExitCode.RESOURCES


def test_half_converted(services: Services) -> None:
    """Where one shard was converted and the other was not a start is refused, and check says what makes them one."""
    assert serve(services).stop() == 0
    done = services.command("device", "convert", "vol~0", "--to", "log")
    assert done.returncode == 0, done.stderr
    found = check(services, ExitCode.REFUSED)
    assert found["start"] == "refused"
    assert found["words"][-1].startswith("the backup of vol~0 is log, that of vol~1 raw: a start is refused until")
    again = serve(services, ready=False)
    again.expected_code = ExitCode.REFUSED
    assert again.wait() == ExitCode.REFUSED
    assert services.command("device", "convert", "vol~1", "--to", "log").returncode == 0
    assert check(services, ExitCode.OK)["start"] == "rebuild"
