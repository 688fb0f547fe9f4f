"""The backups of a device with shards, one of them missing or without room, and a start of all that fails for it."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode
from infiniswap.shared.paths import lock_file
from infiniswap.shared.private_files import take_lock
from tests.device.support import resize
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Device, Service, Services
from tests.support.shards import MANY, PAGE_BYTES, backup_of, check_both, gone, serve, shard_pids, write_both
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_shard_stays")


def by_its_name(services: Services, *options: str) -> Service:
    """Started by its name alone, as it was before."""
    again = services.spawn("by name", [*INFINISWAP, "device", "serve", "vol", *options])
    again.read_ready(READY_TIMEOUT_S)
    return again


def refused(services: Services, code: ExitCode, *options: str) -> str:
    """The one line with which a start ends; no shard serves then."""
    done = services.command("device", "serve", "vol", *options)
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("infiniswap: ")]
    assert shard_pids(services) == {}
    return line


def swap(device: Device) -> None:
    """Each backup to the place of the other."""
    away = backup_of(device, 0).rename(device.backup.with_name("away"))
    backup_of(device, 1).rename(backup_of(device, 0))
    away.rename(backup_of(device, 1))


def test_one_is_missing(services: Services) -> None:
    """Between parts that are whole none is served empty unawares: a file system over them would be in ruins."""
    services.expect_log("is not there any more: a new one is made")
    device = serve(services)
    data = write_both(device)
    assert device.stop() == 0
    away = backup_of(device, 1).rename(services.folder / "away")
    done = services.command("device", "check", "vol")
    assert (done.returncode, "would be a hole" in done.stdout) == (ExitCode.REFUSED, True), done.stdout
    assert "vol.img~1 of 'vol~1' is not there, and a new one would be a hole" in refused(services, ExitCode.REFUSED)
    assert not backup_of(device, 1).exists()
    away.rename(backup_of(device, 1))
    again = by_its_name(services)
    check_both(device, data)
    assert again.stop() == 0
    backup_of(device, 1).unlink()
    again = by_its_name(services, "--accept-backup")
    check_both(device, [data[0], bytes(MANY * PAGE_BYTES)])
    assert again.stop() == 0


def test_all_are_removed(services: Services) -> None:
    """Whoever removes all of them begins anew, as with any device; it is said."""
    services.expect_log("vol.img~0 is not there any more: a new one", "vol.img~1 is not there any more: a new one")
    device = serve(services)
    write_both(device)
    assert device.stop() == 0
    for number in range(2):
        backup_of(device, number).unlink()
    again = by_its_name(services)
    check_both(device, [bytes(MANY * PAGE_BYTES)] * 2)
    assert again.stop() == 0


@pytest.mark.parametrize("killed", [False, True])
def test_swapped(services: Services, *, killed: bool) -> None:
    """Two backups at each other's place are served by no option; the line says so, and swapped back all is there."""
    services.expect_log("the device did not stop in order; recovering")
    device = serve(services)
    data = write_both(device)
    if killed:
        pids = shard_pids(services)
        device.kill()
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(map(gone, pids.values())), what="the shards to be gone", timeout_s=30.0)
    else:
        assert device.stop() == 0
    swap(device)
    for options in ((), ("--adopt-image",), ("--accept-backup",)):
        line = refused(services, ExitCode.REFUSED, *options)
        assert "backups of shards are swapped; swap the files (or links) back" in line
        assert "--a" not in line
    done = services.command("device", "check", "vol")
    assert (done.returncode, "shards are swapped" in done.stdout) == (ExitCode.REFUSED, True), done.stdout
    swap(device)
    again = by_its_name(services)
    check_both(device, data)
    assert again.stop() == 0


def test_rest_of_a_first_start(services: Services) -> None:
    """What a first start that fails leaves is told in its one line, with two ways on, and both of them are ways on."""
    services.expect_log("no peers")
    backup = services.folder / "vol.img"
    options = ["--shards", "2", "--size", "32MiB", "--slab-size", "1MiB", "--backup", str(backup)]
    clear = "the same command again goes on with it, 'infiniswap device rm vol --backup' clears it"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options += ["--tcp", f"127.0.0.1:{taken.getsockname()[1] - 1}"]
        line = refused_once_vol0_serves(services, *options)
        assert f"cannot listen there: Address already in use; what this start made of vol~0 stays: {clear}" in line
        done = services.command("device", "rm", "vol", "--backup")
        assert done.returncode == 0, done.stderr
        assert not list((services.folder / "state").glob("*"))
        assert not list(services.folder.glob("vol.img*"))
        assert clear in refused_once_vol0_serves(services, *options)
        assert clear not in refused_once_vol0_serves(services, *options), "the second has made nothing"
    device = services.spawn("again", [*INFINISWAP, "device", "serve", "vol", *options])
    device.read_ready(READY_TIMEOUT_S)
    assert device.stop() == 0


def refused_once_vol0_serves(services: Services, *options: str) -> str:
    """The one line of a start of which vol~0 serves before vol~1 looks for its port, which another has."""
    services.runtime_dir.mkdir(mode=0o700, exist_ok=True)
    held = take_lock(lock_file(services.runtime_dir, "vol~1"))
    device = services.spawn("failing", [*INFINISWAP, "device", "serve", "vol", *options])
    device.expected_code = ExitCode.IN_USE
    wait_for(lambda: "vol~0" in shard_pids(services), what="vol~0 to serve", timeout_s=60.0)
    os.close(held)
    assert device.wait() == ExitCode.IN_USE
    (line,) = [line for line in device.log.splitlines() if line.startswith("infiniswap: ")]
    assert shard_pids(services) == {}
    return line


def test_failing_start_is_not_remembered(services: Services) -> None:
    """The options of a start that failed are nobody's: the name alone means what it meant before."""
    device = serve(services)
    data = write_both(device)
    assert device.stop() == 0
    assert "does not exist" in refused(services, ExitCode.REFUSED, "--backup", str(services.folder / "no" / "vol.img"))
    refused(services, ExitCode.REFUSED, "--size", "64MiB")
    done = services.command("device", "list", "--all", "--json")
    assert [row["backup"] for row in json.loads(done.stdout)] == [str(device.backup)]
    again = by_its_name(services)
    check_both(device, data)
    assert again.stop() == 0


@pytest.mark.parametrize("layout", ["raw", "log"])
def test_no_room_for_all(services: Services, disk: Path, layout: str) -> None:
    """A disk that has room for one of them, and not for both, is left as it was, and so is all else."""
    resize(disk, "70m")
    (disk / "filling").write_bytes(bytes((48 if layout == "raw" else 1) << 20))
    before = sorted(disk.iterdir())
    options = ("--shards", "2", "--size", "32MiB", "--slab-size", "1MiB", "--backup-layout", layout)
    line = refused(services, ExitCode.RESOURCES, *options, "--backup", str(disk / "vol.img"))
    assert "the backups of 2 shards need " in line
    assert sorted(disk.iterdir()) == before
    assert not list((services.folder / "state").glob("*"))


def test_one_that_is_there_already_takes_no_room(services: Services, disk: Path) -> None:
    """What is there takes nothing more of its disk."""
    resize(disk, "40m")
    options = ("--shards", "2", "--size", "32MiB", "--slab-size", "1MiB", "--backup", str(disk / "vol.img"))
    services.expect_log("no peers")
    first = services.spawn("first", [*INFINISWAP, "device", "serve", "vol", *options])
    first.read_ready(READY_TIMEOUT_S)
    assert first.stop() == 0
    again = by_its_name(services)
    assert again.stop() == 0
