"""Infiniswap status and wait on real devices and daemons: what is the matter, by name, and by exit code."""

from __future__ import annotations

import json
import re

from infiniswap.shared.errors import ExitCode
from tests.support.screen_of import ScreenOf
from tests.support.services import INFINISWAP, Services
from tests.support.waiting import wait_for

OK, WARNING, ERROR = 0, 1, 2


def test_from_well_to_dead(services: Services) -> None:
    """Well is 0; a peer that went is a warning, by name, which a mute silences; a killed device is an error."""
    daemons = [services.daemon(), services.daemon()]
    device = services.device("web1", "--map", "eager", peers=daemons)
    assert services.command("wait", "web1", "--for", "peers=2", "--for", "clean").returncode == ExitCode.OK
    well = services.command("status", "--cluster", "--donor", daemons[0].address)
    assert (well.returncode, well.stderr) == (OK, "")
    assert well.stdout.startswith("OK")
    for daemon in daemons:
        assert re.search(rf"^{daemon.address} +lending .* web1$", well.stdout, re.MULTILINE)
    daemons[1].kill()
    wait_for(lambda: device.get("/v1/peers")[1]["state"] == "down", what="the peer's loss")
    worse = services.command("status", "--json")
    assert worse.returncode == WARNING
    (finding,) = json.loads(worse.stdout)["findings"]
    assert (finding["code"], finding["device"], finding["peer"]) == ("PEER_DOWN", "web1", daemons[1].address)
    assert services.command("status", "mute", "peer_down", "--only", daemons[1].address, "--for", "1h").returncode == 0
    muted = services.command("status")
    assert muted.returncode == OK
    assert "(1 muted)" in muted.stdout
    assert services.command("status", "unmute", "PEER_DOWN").returncode == 0
    assert services.command("status", "unmute", "PEER_DOWN").returncode == ExitCode.NOT_FOUND
    assert services.command("status").returncode == WARNING
    device.kill()
    for forgotten in (False, True):  # as after a boot, which empties /run
        if forgotten:
            for file in services.runtime_dir.iterdir():
                file.unlink()
        dead = services.command("status", "--json")
        assert dead.returncode == ERROR
        assert [finding["code"] for finding in json.loads(dead.stdout)["findings"]] == ["DEVICE_DEAD"]


def test_own_daemon(services: Services) -> None:
    """The daemon that was named is shown; one that was named and does not answer is an error."""
    daemon = services.daemon()
    shown = services.command("status", "--donor", daemon.address)
    assert (shown.returncode, "lending" in shown.stdout) == (OK, True)
    assert services.command("donor", "cordon", daemon.address).returncode == 0
    cordoned = services.command("status", "--donor", daemon.address)
    assert (cordoned.returncode, "DONOR_CORDONED" in cordoned.stdout) == (WARNING, True)
    daemon.kill()
    down = services.command("status", "--donor", daemon.address)
    assert (down.returncode, "DONOR_DOWN" in down.stdout) == (ERROR, True)


def test_wait_says_what_is_missing(services: Services) -> None:
    """On time-out 1 and what is missing; no such device 3, said at once as well; nonsense 2."""
    services.device("web1", peers=[services.daemon()])
    late = services.command("wait", "web1", "--for", "peers=2", "--timeout", "0.3s")
    assert (late.returncode, "1 of 2 peers are up" in late.stderr) == (ExitCode.FAILED, True)
    none = services.command("wait", "web2", "--for", "clean", "--timeout", "0.3s")
    assert none.returncode == ExitCode.NOT_FOUND
    assert [line.split(": ")[1] for line in none.stderr.splitlines()] == ["waiting", "no device 'web2' in " + str(
        services.runtime_dir) + "; did you mean 'web1'? there are web1"]  # fmt: skip
    for condition in ("peers=0", "peers=x", "clean=1", "dirty"):
        assert services.command("wait", "web1", "--for", condition).returncode == ExitCode.USAGE


def test_wait_for_a_device_that_comes(services: Services) -> None:
    """A wait that began before its device ends when the device is as wanted: here with all that holds pages mapped."""
    waiting = services.spawn("wait", [*INFINISWAP, "wait", "web1", "--for", "mapped", "--for", "clean"])
    wait_for(lambda: "waiting: no device 'web1'" in waiting.log, what="its word that it waits")
    device = services.device("web1", "--map", "eager", peers=[services.daemon()])
    with device.connect() as client:
        client.write(0, b"x" * 8192)
    assert waiting.wait() == ExitCode.OK


def test_watch(services: Services) -> None:
    """--watch is the same on a full screen of 80 × 24, and q ends it; not with --json."""
    services.device("web1", peers=[services.daemon()])
    with ScreenOf([*INFINISWAP, "status", "--cluster", "--watch"], services.environment) as screen:
        screen.until("^web1 +serving")
        assert screen.overflow() == []
        screen.press("q")
        assert screen.end() == ExitCode.OK
    assert services.command("status", "--watch", "--json").returncode == ExitCode.USAGE
