"""A device with shards of which something is dead, missing or full: commands say what is, what not, and a way out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from infiniswap.shared.device_client import fetch
from infiniswap.shared.errors import ExitCode
from tests.device.support import resize
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Service, Services
from tests.support.shards import (
    MANY,
    PAGE_BYTES,
    backup_of,
    check_both,
    connect,
    free_port,
    gone,
    kept_dead,
    scraped,
    serve,
    shard_pids,
    write_both,
)
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_shard_stays")
DIED = ("has died", "does not start", "was not stopped in order", "the device did not stop in order; recovering")


def test_one_dead_shard_is_seen(services: Services) -> None:
    """While a shard is dead, numbers are of the others, and whoever judges says which one it is."""
    services.expect_log("no peers", "409 'vol~1' does not serve", *DIED)
    device = serve(services)
    data = write_both(device)
    with kept_dead(device, services, 1):
        (row,) = json.loads(services.command("device", "list", "--json").stdout)
        assert (row["name"], row["state"], row["size_bytes"]) == ("vol", "failing", 32 << 20)
        done = services.command("stats", "vol", "--json")
        assert (done.returncode, json.loads(done.stdout)["counters"]["write_requests"]) == (0, 1), done.stderr
        done = services.command("top", "vol", "--json", "--count", "1", "--interval", "0.2")
        assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["state"]) == (0, "failing"), done.stderr
        done = services.command("status")
        assert (done.returncode, "vol~1" in done.stdout) == (2, True), done.stdout
        for condition in ("clean", "mapped", "peers=1", "healthy"):
            done = services.command("wait", "vol", "--for", condition, "--timeout", "1s")
            assert (done.returncode, "vol~1" in done.stderr) == (ExitCode.FAILED, True), f"{condition}: {done.stderr}"
        for names in (["vol"], []):
            done = services.command("doctor", *names)
            assert done.returncode == ExitCode.FAILED
            assert "vol~1: service: it is dead: this device was not closed" in " ".join(done.stdout.split()), (
                done.stdout
            )
            assert "infiniswap device serve vol --lock-memory" in done.stdout, "what mends vol~0 is typed for the whole"
        done = services.command("device", "check", "vol")
        assert (done.returncode, "vol: vol~1 is dead (this device was" in done.stdout) == (ExitCode.FAILED, True), done
        done = services.command("device", "rm", "vol", "--force")
        assert (done.returncode, "running already" in done.stderr) == (ExitCode.IN_USE, True), done.stderr
        done = services.command("set", "vol", "hot_page_ios", "7")
        assert (done.returncode, "'vol~1' does not serve (this device" in done.stderr) == (ExitCode.FAILED, True)
    wait_for(lambda: device.get("/v1/status")["state"] == "serving", what="it to be back", timeout_s=60.0)
    check_both(device, data)
    done = services.command("device", "stop", "vol")
    assert (done.returncode, done.stderr) == (0, "")
    assert device.wait() == 0


def test_one_silent_shard_is_seen(services: Services) -> None:
    """While a shard is stopped by a signal all who look on are answered, and the shard is named, not its parent."""
    services.expect_log("no peers", "409 device 'vol~1' does not answer")
    port = free_port()
    device = serve(services, "--metrics-listen", f"127.0.0.1:{port}")
    data = write_both(device)
    silent = shard_pids(services)["vol~1"]
    os.kill(silent, signal.SIGSTOP)
    try:
        done = services.command("status")
        assert (done.returncode, "DEVICE_SILENT      vol~1: its process does not" in done.stdout) == (2, True), done
        assert "device 'vol' does not answer" not in done.stdout
        done = services.command("top", "vol", "--json", "--count", "1", "--interval", "0.2")
        assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["state"]) == (0, "failing"), done.stderr
        done = services.command("wait", "vol", "--for", "clean", "--timeout", "1s")
        assert (done.returncode, "vol~1 is silent" in done.stderr) == (ExitCode.FAILED, True), done.stderr
        done = services.command("device", "check", "vol")
        assert (done.returncode, "vol: vol~1 is silent (it" in done.stdout) == (ExitCode.FAILED, True), done
        found = scraped(port)
        assert [found["infiniswap_shard_up", f"vol~{number}"] for number in range(2)] == [1, 0]
        assert ("infiniswap_size_bytes", "vol~0") in found
        done = services.command("set", "vol", "hot_page_ios", "7")
        assert (done.returncode, f"kill -CONT {silent}" in done.stderr) == (ExitCode.FAILED, True), done.stderr
    finally:
        os.kill(silent, signal.SIGCONT)
    check_both(device, data)
    for number in range(2):
        options = fetch(f"vol~{number}", "/v1/config", services.runtime_dir)["options"]
        assert [row["value"] for row in options if row["option"] == "hot_page_ios"] == [20], "none was to change alone"
    assert device.stop() == 0


def test_all_dead(services: Services) -> None:
    """A parent whose shards are all dead says so, and can be stopped: with the code of a device that does not run."""
    services.expect_log("no peers", "409 none of its shards serves", *DIED)
    device = serve(services)
    data = write_both(device)
    with kept_dead(device, services, 0, 1):
        (row,) = json.loads(services.command("device", "list", "--json").stdout)
        assert (row["name"], row["state"], row["size_bytes"]) == ("vol", "failing", 32 << 20)
        done = services.command("stats", "vol")
        assert (done.returncode, "none of its shards serves now (vol~0: this" in done.stderr) == (1, True)
        done = services.command("status")
        assert (done.returncode, "DEVICE_DEAD        vol: device 'vol': none of its" in done.stdout) == (2, True), done
        assert services.command("doctor", "vol").stdout.count("service: it is dead") == 2
        done = services.command("device", "stop", "vol")
        assert done.returncode == ExitCode.NOT_FOUND
        assert "device 'vol' has ended, but none of it in order: vol~0 (this device" in done.stderr
        device.expected_code = ExitCode.FAILED
        assert device.wait() == ExitCode.FAILED
    again = serve(services)
    check_both(again, data)
    assert again.stop() == 0


def test_killed_started_stopped(services: Services) -> None:
    """A shard that is killed while the stop goes on is named, and the next start and stop bring it to the backup."""
    services.expect_log("no peers", "'vol~1' did not end in order: it was killed by SIGKILL", *DIED)
    device = serve(services)
    data = write_both(device)
    pids = shard_pids(services)
    os.kill(pids["vol~1"], signal.SIGSTOP)  # it is to be stopped, and does nothing
    stop = subprocess.Popen(
        [*INFINISWAP, "device", "stop", "--under-use", "vol"],
        env=services.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    with stop:
        wait_for(lambda: gone(pids["vol~0"]), what="the other one's end", timeout_s=40.0)
        os.kill(pids["vol~1"], signal.SIGKILL)
        _, told = stop.communicate(timeout=40.0)
    assert stop.returncode == ExitCode.FAILED
    assert "is stopped in part: vol~0 in order, but not vol~1 (its log says why)" in told
    device.expected_code = ExitCode.FAILED
    assert device.wait() == ExitCode.FAILED
    again = serve(services)
    check_both(again, data)
    assert services.command("device", "stop", "vol").returncode == 0
    assert again.wait() == 0
    assert backup_of(device, 1).read_bytes()[: MANY * PAGE_BYTES] == data[1]


def test_without_a_parent(services: Services) -> None:
    """The doctor judges shards that serve without one; once they are dead, too, the device is dead as any other."""
    services.expect_log("no peers", "the device did not stop in order; recovering")
    device = serve(services)
    data = write_both(device)
    before = shard_pids(services)
    device.kill()
    for names in (["vol"], []):
        told = " ".join(services.command("doctor", *names).stdout.split())
        assert "vol: service: its parent does not run" in told
        assert "mend it: infiniswap device serve vol" in told
        assert "vol~1: backup" in told
    os.kill(before["vol~0"], signal.SIGKILL)
    wait_for(lambda: gone(before["vol~0"]), what="its end", timeout_s=10.0)
    done = services.command("stats", "vol")
    assert "has lost its parent, and its shards vol~1 do without" in done.stderr
    assert "vol~0: service: it is dead" in " ".join(services.command("doctor").stdout.split())
    done = services.command("device", "rm", "vol", "--force")
    assert (done.returncode, "shard 'vol~1' serves without its parent" in done.stderr) == (ExitCode.IN_USE, True)
    assert (services.folder / "state" / "vol~0").exists()
    way_out = "'infiniswap device serve vol' first, then 'infiniswap device stop vol'"
    for command in (["convert", "vol~1", "--to", "raw"], ["stop", "vol~1"]):
        done = services.command("device", *command)
        assert (done.returncode in (4, 5), way_out in done.stderr) == (True, True), done.stderr
    done = services.command("device", "stop", "vol")
    assert (done.returncode, "'infiniswap device serve vol' takes them up" in done.stderr) == (3, True), done.stderr
    os.kill(before["vol~1"], signal.SIGKILL)
    wait_for(lambda: gone(before["vol~1"]), what="its end", timeout_s=10.0)
    for command in (["stats", "vol"], ["device", "stop", "vol"], ["doctor", "vol"]):
        done = services.command(*command)
        assert (done.returncode, "device 'vol' does not run any more" in done.stderr) == (3, True), done.stderr
    again = serve(services)
    check_both(again, data)
    assert again.stop() == 0


def started(services: Services, file: Path, code: int = 0) -> Service:
    """The device of the file; code: with which its start is refused."""
    service = services.spawn("vol", [*INFINISWAP, "device", "serve", "--config", str(file)])
    if code:
        service.expected_code = code
        assert service.wait() == code
    else:
        service.read_ready(READY_TIMEOUT_S)
    return service


def test_other_number_and_back(services: Services) -> None:
    """Another number in the file is refused and changes nothing, also under shards that serve; the old one starts."""
    services.expect_log("no peers")
    file = services.folder / "vol.toml"

    def write(shards: int) -> None:
        lines = ['name = "vol"', 'size = "32MiB"', 'slab_size = "1MiB"', f"shards = {shards}"]
        lines += [f'backup = "{services.folder}/vol.img"', f'socket = "{services.folder}/vol.sock"']
        file.write_text("\n".join(lines) + "\n")

    write(2)
    device = serve(services)
    data = write_both(device)
    assert device.stop() == 0
    for shards in (4, 1):
        write(shards)
        assert f"has 2 shards, not {shards}" in started(services, file, ExitCode.REFUSED).log
    write(2)
    service = started(services, file)
    check_both(device, data)
    before = shard_pids(services)
    service.kill()
    write(4)
    assert "start it with --shards 2" in started(services, file, ExitCode.REFUSED).log
    assert shard_pids(services) == before
    write(2)
    service = started(services, file)
    assert shard_pids(services) == before
    check_both(device, data)
    assert service.stop() == 0
    assert len(list(services.folder.glob("vol.img~*"))) == 2


def test_missing_state_of_a_stopped_shard(services: Services) -> None:
    """After an orderly stop the backup is all there is, and enough."""
    device = serve(services)
    data = write_both(device)
    assert device.stop() == 0
    shutil.rmtree(services.folder / "state" / "vol~1")
    again = serve(services)
    check_both(again, data)
    assert again.stop() == 0


def test_missing_state_of_a_killed_shard(services: Services) -> None:
    """Nothing is guessed; --accept-backup is for that one alone, and drops no page of the other one."""
    services.expect_log("the device did not stop in order; recovering", "'vol~1' begins with what is on its backup")
    options = ("--map", "eager", "--writeback-delay-ms", "60000")
    daemon = services.daemon()
    device = serve(services, *options, peers=[daemon])
    write_both(device)
    wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 2, what="mapping", timeout_s=40.0)
    newer = os.urandom(MANY * PAGE_BYTES)
    with connect(device, 0) as client:
        client.write(0, newer)
    pids = shard_pids(services)
    device.kill()
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all(map(gone, pids.values())), what="their end", timeout_s=10.0)
    assert backup_of(device, 0).read_bytes()[: len(newer)] != newer, "it was to be with the peer alone"
    shutil.rmtree(services.folder / "state" / "vol~1")
    (row,) = json.loads(services.command("device", "list", "--all", "--json").stdout)
    assert (row["name"], row["state"]) == ("vol", "dead")
    done = services.command("device", "check", "vol")
    assert done.returncode == ExitCode.REFUSED, done.stderr
    assert "vol: vol~0: " in done.stdout
    assert "vol: vol~1: " in done.stdout
    assert "was not closed in order" in done.stdout
    other = serve(services, *options, peers=[daemon], ready=False)
    other.expected_code = ExitCode.REFUSED
    assert other.wait() == ExitCode.REFUSED
    lines = [line for line in other.log.splitlines() if line.startswith("infiniswap: ")]
    assert len(lines) == 1
    assert "vol.img~1 was not closed in order" in lines[0]
    assert "--accept-backup" in lines[0]
    again = serve(services, *options, "--accept-backup", peers=[daemon])
    with connect(again, 0) as client:
        assert client.read(0, len(newer)) == newer
    assert again.stop() == 0
    assert backup_of(device, 0).read_bytes()[: len(newer)] == newer


def test_full_disk_of_one_shard(services: Services, disk: Path) -> None:
    """Its part waits, lists and status name it, the stop says that it is not all there; with room a start mends it."""
    services.expect_log("the backup fails: No space left", "giving up: ", "not in order")
    services.expect_log("the device did not stop in order; recovering")
    for path in (disk / "img", services.folder / "vol.img~0"):
        path.touch()
        os.truncate(path, 16 << 20)
    (services.folder / "vol.img~1").symlink_to(disk / "img")
    options = ("--sparse", "--map", "eager", "--pending-limit", "16MiB", "--stop-timeout-s", "2")
    daemon = services.daemon()
    device = serve(services, *options, peers=[daemon])
    data = [os.urandom(6 << 20) for _ in range(2)]
    for number in range(2):
        with connect(device, number) as client:
            for at in range(0, 6 << 20, 1 << 20):
                client.write(at, bytes(PAGE_BYTES))
    wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 12, what="mapping", timeout_s=40.0)
    for number, each in enumerate(data):
        with connect(device, number) as client:
            for at in range(0, len(each), 256 << 10):
                client.write(at, each[at : at + (256 << 10)])
    wait_for(lambda: device.get("/v1/status")["backup_state"] == "degraded", what="it to be seen", timeout_s=40.0)
    (problem,) = device.get("/v1/status")["backup_problems"]
    assert problem.startswith("vol~1: ")
    done = services.command("status")
    assert (done.returncode, "vol~1: " in done.stdout) == (2, True), done.stdout
    done = services.command("device", "stop", "vol")
    assert done.returncode == ExitCode.FAILED
    assert "is stopped in part: vol~0 in order, but not vol~1 (its log says why)" in done.stderr
    device.expected_code = ExitCode.FAILED
    assert device.wait() == ExitCode.FAILED
    resize(disk, "64m")
    again = serve(services, *options, peers=[daemon])
    for number, each in enumerate(data):
        with connect(again, number) as client:
            assert client.read(0, len(each)) == each
    assert services.command("device", "stop", "vol").returncode == 0
    assert again.wait() == 0
