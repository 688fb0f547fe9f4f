"""`infiniswap device stop` where not all is well: what it says, and its exit code."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode
from tests.device.support import mapped, pattern, resize
from tests.support.layouts import both_layouts
from tests.support.services import Daemon, Services
from tests.support.shards import check_both, connect, gone, serve, shard_pids, write_both
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_shard_stays")
PAGES = 24
NEVER = ("--map", "eager", "--writeback-delay-ms", "60000", "--recovery-timeout-s", "1")
LOSS = ("pages have no copy left", "pages are lost", "its lease is given up", "stay unreadable until they are")
DIED = ("the device did not stop in order; recovering", "cannot connect")


def kill_with_donor(services: Services, daemon: Daemon, pids: dict[str, int]) -> None:
    """What only the donor had is gone."""
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all(map(gone, pids.values())), what="their end", timeout_s=10.0)
    daemon.kill()
    services.expect_log(*LOSS, *DIED)


@both_layouts
def test_pages_are_lost(services: Services) -> None:
    """A stop that leaves pages lost says how many and ends with 1, as the service does; the next one has told it."""
    daemon = services.daemon()
    device = services.device("vol", *NEVER, peers=[daemon])
    with device.connect() as client:
        client.write(0, bytes(4096))
        wait_for(lambda: mapped(device) == {0}, what="mapping", timeout_s=40.0)
        client.write(0, pattern(PAGES))
    device.kill()
    kill_with_donor(services, daemon, {})
    again = services.device("vol", *NEVER, peers=[daemon.address])
    done = services.command("device", "stop", "vol")
    assert (done.returncode, f"but {PAGES} pages are lost: their last" in done.stderr) == (ExitCode.FAILED, True), done
    again.expected_code = ExitCode.FAILED
    assert again.wait() == ExitCode.FAILED
    third = services.device("vol", *NEVER, peers=[daemon.address])
    done = services.command("device", "stop", "vol")
    assert (done.returncode, done.stderr) == (0, "")
    assert third.wait() == 0


@both_layouts
def test_pages_of_a_shard_are_lost(services: Services) -> None:
    """The same with shards: the stop says of which, also where another parent had started that one."""
    daemon = services.daemon()
    device = serve(services, *NEVER, peers=[daemon])
    with connect(device, 1) as client:
        client.write(0, bytes(4096))
        wait_for(lambda: mapped(device) == {16}, what="mapping", timeout_s=40.0)
        client.write(0, pattern(PAGES))
    pids = shard_pids(services)
    device.kill()
    kill_with_donor(services, daemon, pids)
    serve(services, *NEVER, peers=[daemon.address]).kill()
    again = serve(services, *NEVER, peers=[daemon.address])
    done = services.command("device", "stop", "vol")
    assert (done.returncode, f"but {PAGES} pages are lost ({PAGES} of vol~1)" in done.stderr) == (1, True), done
    again.expected_code = ExitCode.FAILED
    assert again.wait() == ExitCode.FAILED


def test_slow_stop_of_shards(services: Services, disk: Path) -> None:
    """While a shard cannot bring its pages to a full disk the device tells so, as any other that is stopping."""
    services.expect_log("the backup fails: No space left", "409 it is stopping, and takes no changes")
    for path in (disk / "img", services.folder / "vol.img~0"):
        path.touch()
        os.truncate(path, 16 << 20)
    (services.folder / "vol.img~1").symlink_to(disk / "img")
    daemon = services.daemon()
    device = serve(services, "--sparse", "--map", "eager", "--pending-limit", "16MiB", peers=[daemon])
    with connect(device, 1) as client:
        for at in range(0, 6 << 20, 1 << 20):
            client.write(at, bytes(4096))
        wait_for(lambda: len(mapped(device)) == 6, what="mapping", timeout_s=40.0)
        data = os.urandom(6 << 20)
        for at in range(0, len(data), 256 << 10):
            client.write(at, data[at : at + (256 << 10)])
    wait_for(lambda: device.get("/v1/status")["backup_state"] == "degraded", what="it to be seen", timeout_s=40.0)
    done = services.command("device", "stop", "vol", "--timeout", "1")
    assert (done.returncode, "'infiniswap stats vol' shows what is pending" in done.stderr) == (1, True), done
    wait_for(lambda: device.get("/v1/status")["shards"][0]["state"] == "stopped", what="the other one", timeout_s=20.0)
    done = services.command("stats", "vol", "--json")
    assert (done.returncode, json.loads(done.stdout)["pending_bytes"] > 0) == (0, True), done.stderr
    done = services.command("status")
    assert (done.returncode, "BACKUP_FAILING" in done.stdout, "DEVICE_" in done.stdout) == (2, True, False), done.stdout
    assert "No space left on device" in done.stdout
    done = services.command("top", "vol", "--json", "--count", "1", "--interval", "0.2")
    assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["state"]) == (0, "stopping"), done.stderr
    done = services.command("wait", "vol", "--for", "clean", "--timeout", "1s")
    assert (done.returncode, "still on the way to the backup" in done.stderr) == (1, True), done.stderr
    done = services.command("device", "check", "vol")
    assert (done.returncode, "state stopping" in done.stdout) == (0, True), done
    done = services.command("set", "vol", "hot_page_ios", "7")
    assert (done.returncode, "device 'vol': it is stopping, and takes no changes" in done.stderr) == (1, True), done
    resize(disk, "64m")
    assert services.command("device", "stop", "vol").returncode in (0, ExitCode.NOT_FOUND)
    assert device.wait() == 0


def test_silent_shard_under_use(services: Services) -> None:
    """A stop that waits for a shard stopped by a signal names it and what lets it go on, also with --under-use."""
    services.expect_log("no peers", "409 device 'vol~1' does not answer")
    device = serve(services)
    data = write_both(device)
    silent = shard_pids(services)["vol~1"]
    os.kill(silent, signal.SIGSTOP)
    try:
        done = services.command("device", "stop", "vol", "--under-use", "--timeout", "2")
        assert (done.returncode, "device 'vol' still stops after 2 s: device 'vol~1'" in done.stderr) == (1, True), done
        assert f"kill -CONT {silent}" in done.stderr
        done = services.command("stats", "vol")
        assert (done.returncode, f"kill -CONT {silent}" in done.stderr) == (1, True), done.stderr
        row = device.get("/v1/status")["shards"][1]
        assert row["state"] == "silent"
    finally:
        os.kill(silent, signal.SIGCONT)
    assert device.wait() == 0
    again = serve(services)
    check_both(again, data)
    assert again.stop() == 0
