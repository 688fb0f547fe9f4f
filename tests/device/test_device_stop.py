"""`infiniswap device stop` where not all is well: what it says, and its exit code."""

from __future__ import annotations

import os
import signal

import pytest

from infiniswap.shared.errors import ExitCode
from tests.device.support import mapped, pattern
from tests.support.layouts import both_layouts
from tests.support.services import Daemon, Services
from tests.support.shards import connect, gone, serve, shard_pids
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
