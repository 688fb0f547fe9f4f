"""A device with shards: several services that are one to who uses it, whoever of them is killed."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest

from infiniswap.device.backup_log import needed_bytes
from infiniswap.shared.device_client import fetch
from infiniswap.shared.errors import ExitCode
from tests.device.support import PAGE_BYTES
from tests.support.layouts import both_layouts, on_one_layout
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Services
from tests.support.shards import MANY, check_both, connect, gone, pair_of_ports, serve, shard_pids, write_both
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_shard_stays")
IN_TURN = "Who dies beside a shard is tried on an image and on a log in turn."


def test_one_device(services: Services) -> None:
    """Both shards hold pages; lists, numbers and the stop know one device; its name alone starts it again."""
    daemon = services.daemon()
    device = serve(services, "--map", "eager", peers=[daemon])
    data = write_both(device)
    check_both(device, data)
    wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 2, what="both to be mapped", timeout_s=40.0)
    rows = json.loads(services.command("device", "list", "--json").stdout)
    assert [(row["name"], row["size_bytes"], len(row["shards"])) for row in rows] == [("vol", 32 << 20, 2)]
    stats = device.get("/v1/stats")
    assert stats["counters"]["write_requests"] == 2
    assert sum(stats["reads"].values()) == 2 * MANY
    assert sum(row["count"] for row in stats["latency_us"].values()) >= 4
    slabs = device.get("/v1/slabs")
    assert [slab["index"] for slab in slabs] == list(range(32))
    assert [slab["index"] for slab in slabs if slab["state"] == "mapped"] == [0, 16]
    (peer,) = device.get("/v1/peers")
    assert (peer["peer"], peer["slabs"]) == (daemon.address, 2)
    assert device.get("/v1/snapshot?cells=8")["heat"]["used"] == [1, 0, 0, 0, 1, 0, 0, 0]
    done = services.command("set", "vol", "hot_page_ios", "7")
    assert done.returncode == 0, done.stderr
    assert [fetch(f"vol~{n}", "/v1/config", services.runtime_dir)["name"] for n in range(2)] == ["vol~0", "vol~1"]
    shown = {row["option"]: row["value"] for row in device.get("/v1/config")["options"]}
    assert (shown["hot_page_ios"], shown["shards"], shown["size"]) == (7, 2, "32MiB")
    done = services.command("device", "verify", "vol")
    assert done.returncode == 0, done.stderr
    assert f"{2 * MANY} copies at peers" in done.stdout
    done = services.command("device", "stop", "vol")
    assert done.returncode == 0, done.stderr
    assert device.wait() == 0
    for number in range(2):
        backup = device.backup.with_name(f"{device.backup.name}~{number}")
        assert backup.read_bytes()[: MANY * PAGE_BYTES] == data[number]
    again = services.spawn("again", [*INFINISWAP, "device", "serve", "vol"])
    again.read_ready(READY_TIMEOUT_S)
    check_both(device, data)
    assert again.stop() == 0


@both_layouts
def test_killed_shard(services: Services) -> None:
    """One that is killed comes back under its parent with its pages; the other one serves on meanwhile."""
    services.expect_log("'vol~1' has died", "the device did not stop in order; recovering")
    device = serve(services, peers=[services.daemon()])
    data = write_both(device)
    before = shard_pids(services)
    os.kill(before["vol~1"], signal.SIGKILL)
    with connect(device, 0) as client:
        assert client.read(0, PAGE_BYTES) == data[0][:PAGE_BYTES]

    def back() -> bool:
        return device.get("/v1/status")["state"] == "serving" and shard_pids(services)["vol~1"] != before["vol~1"]

    wait_for(back, what="the shard", timeout_s=60.0)
    assert shard_pids(services)["vol~0"] == before["vol~0"]
    check_both(device, data)
    assert device.stop() == 0
    assert shard_pids(services) == {}


def test_killed_parent(services: Services) -> None:
    """Shards outlive their parent; a second start takes them up as they are, and its stop ends them in order."""
    services.expect_log("no peers")
    device = serve(services)
    data = write_both(device)
    before = shard_pids(services)
    device.kill()
    check_both(device, data)
    told = services.command("stats", "vol")
    assert told.returncode == ExitCode.NOT_FOUND
    assert "its shards vol~0, vol~1 do without" in told.stderr
    again = serve(services)
    assert shard_pids(services) == before
    check_both(again, data)
    assert f"as process {before['vol~0']}, and is taken up" in again.log
    assert again.stop() == 0
    wait_for(lambda: all(map(gone, before.values())), what="the shards' end", timeout_s=30.0)
    backup = device.backup.with_name(f"{device.backup.name}~1")
    assert backup.read_bytes()[: MANY * PAGE_BYTES] == data[1]


@on_one_layout("log", IN_TURN)
def test_both_killed(services: Services) -> None:
    """Parent and one shard die: the next parent takes up the one and starts the other, which recovers."""
    services.expect_log("no peers", "the device did not stop in order; recovering")
    device = serve(services)
    data = write_both(device)
    before = shard_pids(services)
    device.kill()
    os.kill(before["vol~0"], signal.SIGKILL)
    wait_for(lambda: gone(before["vol~0"]), what="its end", timeout_s=10.0)
    again = serve(services)
    after = shard_pids(services)
    assert (after["vol~1"], after["vol~0"] != before["vol~0"]) == (before["vol~1"], True)
    check_both(again, data)
    assert again.stop() == 0


@pytest.mark.parametrize("stuck", [False, True])
def test_failing_parent_leaves_what_serves(services: Services, stuck: bool) -> None:
    """Where one shard does not start, or is silent, those that serve without a parent go on: swap may be there."""
    services.expect_log("no peers", "the device did not stop in order; recovering")
    device = serve(services)
    data = write_both(device)
    before = shard_pids(services)
    device.kill()
    backup, away = (device.backup.with_name(f"{device.backup.name}{end}") for end in ("~1", "~away"))
    backup.rename(away)
    os.kill(before["vol~1"], signal.SIGSTOP if stuck else signal.SIGKILL)
    other = serve(services, ready=False)
    other.expected_code = ExitCode.FAILED if stuck else ExitCode.REFUSED
    assert other.wait() == other.expected_code
    assert not gone(before["vol~0"])
    with connect(device, 0) as client:
        assert client.read(0, PAGE_BYTES) == data[0][:PAGE_BYTES]
    away.rename(backup)
    if stuck:
        os.kill(before["vol~1"], signal.SIGCONT)
    again = serve(services)
    assert shard_pids(services)["vol~0"] == before["vol~0"]
    check_both(again, data)
    assert again.stop() == 0


@on_one_layout("log", IN_TURN)
def test_stop_with_a_dead_shard(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that could not bring all of it to the backups says so, and asks the service manager for time meanwhile."""
    services.expect_log("no peers", "'vol~1' has died", "'vol~1' does not start", "'vol~1' was not stopped in order")
    services.expect_log("the device did not stop in order; recovering")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with manager:
        manager.bind(str(services.folder / "notify"))
        manager.settimeout(READY_TIMEOUT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(services.folder / "notify"))
        device = serve(services)
        monkeypatch.delenv("NOTIFY_SOCKET")
        data = write_both(device)
        backup, away = (device.backup.with_name(f"{device.backup.name}{end}") for end in ("~1", "~away"))
        backup.rename(away)
        os.kill(shard_pids(services)["vol~1"], signal.SIGKILL)
        wait_for(lambda: device.get("/v1/status")["state"] == "failing", what="it to be seen", timeout_s=20.0)
        done = services.command("device", "stop", "vol")
        assert done.returncode == ExitCode.FAILED
        assert "device 'vol' is stopped in part: vol~0 in order, but not vol~1 (" in done.stderr
        assert "start 'vol' again before this host goes down" in done.stderr
        device.expected_code = ExitCode.FAILED
        assert device.wait() == ExitCode.FAILED
        told = b""
        while b"EXTEND_TIMEOUT_USEC=30000000" not in told:
            told = manager.recv(4096)
    away.rename(backup)
    again = serve(services)
    check_both(again, data)
    assert again.stop() == 0


@pytest.mark.parametrize("begun", ["vol~1.lock", "vol~1.control"])
def test_killed_parent_of_starting_shards(services: Services, begun: str) -> None:
    """The next parent waits for shards that are only starting, and takes them up."""
    device = serve(services, ready=False)
    wait_for((services.runtime_dir / begun).exists, what=begun, timeout_s=40.0)
    device.kill()
    again = serve(services)
    write_both(again)
    assert again.stop() == 0
    assert shard_pids(services) == {}


def test_port_in_use(services: Services) -> None:
    """What another program has is said at once: waiting is for shards of an earlier parent alone."""
    first = pair_of_ports()
    with socket.create_server(("127.0.0.1", first + 1)) as taken:
        port = taken.getsockname()[1]
        device = serve(services, "--tcp", f"127.0.0.1:{first}", ready=False)
        device.expected_code = ExitCode.IN_USE
        assert device.wait() == ExitCode.IN_USE
    assert f"127.0.0.1:{port}: cannot listen there" in device.log


def test_port_of_metrics_in_use(services: Services) -> None:
    """It keeps a device from starting, but not shards from getting a parent again, on which swap may be.

    Those of an earlier version had it themselves.
    """
    services.expect_log(
        "no peers", "metrics are not served until 'vol' is started anew", "'vol~1' has died .nobody saw"
    )
    services.expect_log("the device did not stop in order; recovering")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = serve(services, "--metrics-listen", f"127.0.0.1:{port}", ready=False)
        refused.expected_code = ExitCode.IN_USE
        assert refused.wait() == ExitCode.IN_USE
        device = serve(services)
        data = write_both(device)
        before = shard_pids(services)
        device.kill()
        again = serve(services, "--metrics-listen", f"127.0.0.1:{port}")
        assert shard_pids(services) == before
    os.kill(before["vol~1"], signal.SIGKILL)
    wait_for(lambda: shard_pids(services).get("vol~1", before["vol~1"]) != before["vol~1"], what="it", timeout_s=60.0)
    wait_for(lambda: again.get("/v1/status")["state"] == "serving", what="it to be seen", timeout_s=60.0)
    check_both(again, data)
    assert again.stop() == 0


def test_another_kind_is_not_taken_up(services: Services) -> None:
    """Shards that run are not taken up by a parent that means another device, and go on."""
    device = serve(services)
    before = shard_pids(services)
    device.kill()
    other = serve(services, size="64MiB", ready=False)
    other.expected_code = ExitCode.IN_USE
    assert other.wait() == ExitCode.IN_USE
    assert "serves already, with size_bytes 16777216 and not 33554432" in other.log
    assert shard_pids(services) == before
    again = serve(services)
    assert again.stop() == 0


def test_failing_start(services: Services) -> None:
    """What one shard cannot do is told once, with its exit code; the others are stopped, and no record is left."""
    backup = services.folder / "vol.img~1"
    backup.write_bytes(b"#!/bin/sh\n" * 4096)
    device = serve(services, ready=False)
    device.expected_code = ExitCode.REFUSED
    assert device.wait() == ExitCode.REFUSED
    assert shard_pids(services) == {}
    lines = [line for line in device.log.splitlines() if line.startswith("infiniswap: ")]
    assert len(lines) == 1
    assert "vol.img~1" in lines[0]


@pytest.mark.parametrize("begun", ["vol.lock", "vol~0.lock", "vol~1.control"])
def test_stopped_while_starting(services: Services, begun: str) -> None:
    """SIGTERM at any moment of a start ends all of it, in order."""
    device = serve(services, ready=False)
    wait_for((services.runtime_dir / begun).exists, what=begun, timeout_s=40.0)
    assert device.stop() == 0
    assert shard_pids(services) == {}
    assert not list(services.runtime_dir.glob("*"))


def test_started_twice(services: Services) -> None:
    """The second parent is refused, and the first one serves on."""
    device = serve(services)
    before = shard_pids(services)
    second = serve(services, ready=False)
    second.expected_code = ExitCode.IN_USE
    assert second.wait() == ExitCode.IN_USE
    assert "a device named 'vol' is running already" in second.log
    assert shard_pids(services) == before
    assert device.stop() == 0


def test_shard_that_ends_in_order(services: Services) -> None:
    """A shard that was told to stop takes the whole along: half a device is none."""
    device = serve(services)
    pids = shard_pids(services)
    os.kill(pids["vol~1"], signal.SIGTERM)
    assert device.wait() == 0
    assert "'vol~1' has ended by itself, with exit code 0" in device.log
    assert shard_pids(services) == {}


def test_other_number(services: Services) -> None:
    """What has two shards is not served with three or none, nor the other way round: its pages would seem gone."""
    assert serve(services).stop() == 0
    for options, words in ((["--shards", "4"], "has 2 shards, not 4"), ([], "has 2 shards, not 1")):
        other = services.device("vol", *options, ready=False)
        other.expected_code = ExitCode.REFUSED
        assert other.wait() == ExitCode.REFUSED
        assert words in other.log
    assert services.device("one").stop() == 0
    other = services.device("one", "--shards", "2", ready=False)
    other.expected_code = ExitCode.REFUSED
    assert other.wait() == ExitCode.REFUSED
    assert "device 'one' has no shards" in other.log


def test_when_it_does_not_run(services: Services) -> None:
    """Stopped, it is one device in lists and checks; what cannot be done is refused with a way out; rm takes all."""
    device = serve(services, "--backup-layout", "log")
    data = write_both(device)
    assert device.stop() == 0
    (row,) = json.loads(services.command("device", "list", "--all", "--json").stdout)
    assert (row["name"], row["state"], row["size_bytes"]) == ("vol", "stopped", 32 << 20)
    assert (row["backup"], row["backup_layout"], row["backup_state"]) == (str(device.backup), "log", "good")
    done = services.command("device", "check", "vol")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("vol: vol~0: ")
    assert "vol: vol~1: " in done.stdout
    for arguments, words in (
        (("grow", "vol", "64MiB"), "cannot be grown: add a second device"),
        (("convert", "vol", "--to", "raw"), "'infiniswap device convert vol~0 --to raw' and so on"),
        (("export", "vol", str(services.folder / "image")), "'infiniswap device export vol~0 FILE' and so on"),
    ):
        done = services.command("device", *arguments)
        assert (done.returncode, words in done.stderr) == (ExitCode.REFUSED, True), done.stderr
    for number in range(2):
        image = services.folder / f"image-{number}"
        assert services.command("device", "export", f"vol~{number}", str(image)).returncode == 0
        assert image.read_bytes()[: MANY * PAGE_BYTES] == data[number]
        assert services.command("device", "convert", f"vol~{number}", "--to", "raw").returncode == 0
    device = serve(services)
    check_both(device, data)
    assert services.command("device", "rm", "vol").returncode == ExitCode.IN_USE
    assert device.stop() == 0
    done = services.command("device", "rm", "vol", "--backup")
    assert done.returncode == 0, done.stderr
    assert not list((services.folder / "state").iterdir())
    assert not list(services.folder.glob("vol.img*"))


def test_part_is_not_treated_alone(services: Services) -> None:
    """One shard neither grows nor goes, which nothing undoes; converted elsewhere it is found by the whole."""
    device = serve(services, "--backup-log-space", "200")
    data = write_both(device)
    assert device.stop() == 0
    for arguments in (("grow", "vol~0", "32MiB"), ("rm", "vol~1", "--backup")):
        done = services.command("device", *arguments)
        assert (done.returncode, "is a part of device 'vol', and" in done.stderr) == (ExitCode.REFUSED, True)
    new = services.folder / "new.log"
    done = services.command("device", "convert", "vol~0", "--to", "log", "--backup", str(new))
    assert (done.returncode, "must be called FILE~0" in done.stderr) == (ExitCode.USAGE, True), done.stderr
    for number in range(2):
        done = services.command("device", "convert", f"vol~{number}", "--to", "log", "--backup", f"{new}~{number}")
        assert done.returncode == 0, done.stderr
        by_options, by_name = f"start 'vol' with --backup {new} --backup-layout log\n", "its name alone starts 'vol'"
        assert (by_options in done.stdout, by_name in done.stdout) == (number == 0, number == 1), done.stdout
        assert new.with_name(f"new.log~{number}").stat().st_size == needed_bytes(16 << 20, 200)
    device = serve(services, "--backup-layout", "log", backup=new)
    check_both(device, data)
    assert device.stop() == 0


def test_killed_with_its_parent_and_removed(services: Services) -> None:
    """Shards that serve without a parent are not removed under it, nor is one that has pages only peers hold."""
    device = serve(services, peers=[services.daemon()])
    write_both(device)
    before = shard_pids(services)
    device.kill()
    done = services.command("device", "rm", "vol", "--force")
    assert done.returncode == ExitCode.IN_USE
    assert "shard 'vol~0' serves without its parent: 'infiniswap device serve vol' takes it up" in done.stderr
    done = services.command("device", "check", "vol")
    assert f"vol: vol~0: it runs as process {before['vol~0']}" in done.stdout
    assert serve(services, peers=["127.0.0.1:9"]).stop() == 0


def test_stop_is_refused_under_use(services: Services) -> None:
    """A client of any shard is a client of the device."""
    device = serve(services)
    with connect(device, 1):
        wait_for(lambda: device.get("/v1/status")["connections"] == 1, what="the client", timeout_s=20.0)
        done = services.command("device", "stop", "vol")
        assert done.returncode == ExitCode.REFUSED
        assert "device 'vol': 1 NBD connection" in done.stderr
    assert services.command("device", "stop", "vol~1").returncode == ExitCode.REFUSED
    assert services.command("device", "stop", "vol").returncode == 0
    assert device.wait() == 0


def test_file(services: Services) -> None:
    """A file describes the whole; reload has all shards read it, and says what only a restart can change."""
    daemon = services.daemon()
    file = services.folder / "vol.toml"

    def write(size: str, rate: int, *peers: str) -> None:
        lines = ['name = "vol"', f'size = "{size}"', 'slab_size = "1MiB"', "shards = 2", f"hot_page_ios = {rate}"]
        lines += [f'backup = "{services.folder}/vol.img"', f"peers = {json.dumps(peers)}"]
        file.write_text("\n".join(lines) + "\n")

    write("32MiB", 20)
    services.expect_log("no peers")
    service = services.spawn("vol", [*INFINISWAP, "device", "serve", "--config", str(file)])
    service.read_ready(READY_TIMEOUT_S)
    assert service.ready.startswith("nbd+unix:///vol~0?socket=")
    write("64MiB", 30, daemon.address)
    done = services.command("reload", "vol")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "hot_page_ios: 20.0 -> 30.0" in lines
    assert f"peer {daemon.address} is added" in lines
    assert "size: 32MiB -> 64MiB, needs a restart" in lines
    assert all(
        [row["peer"] for row in fetch(f"vol~{number}", "/v1/peers", services.runtime_dir)] == [daemon.address]
        for number in range(2)
    )
    assert service.stop() == 0
