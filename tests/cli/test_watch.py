"""Every listing has --watch, on a full screen that fits and gives the terminal back; many slabs are summarised."""

from __future__ import annotations

import json
import re

from infiniswap.shared.errors import ExitCode
from tests.support.screen_of import ScreenOf
from tests.support.services import INFINISWAP, Services
from tests.support.waiting import wait_for


def test_every_listing(services: Services) -> None:
    """Each is drawn again and again until q, and no line is wider than the terminal."""
    daemon = services.daemon()
    services.device("web1", peers=[daemon], size="128MiB")
    listings = (
        ("slabs", "web1"),
        ("peers", "web1"),
        ("stats", "web1"),
        ("device", "list"),
        ("donor", "status", daemon.address),
    )
    for listing in listings:
        command = [*INFINISWAP, *listing, "--watch", "--interval", "0.2"]
        with ScreenOf(command, services.environment) as screen:
            screen.until(r"127\.0\.0\.1|web1|Pages read")
            screen.drawn_again()
            assert screen.overflow() == []
            screen.press("q")
            assert screen.end() == ExitCode.OK, listing
        refused = services.command(*listing, "--watch", "--json")
        assert (refused.returncode, "do not go together" in refused.stderr) == (ExitCode.USAGE, True)


def test_many_slabs(services: Services) -> None:
    """Of 128 slabs a summary and the 20 most active are printed, and that it is not all; --all, --top and JSON obey."""
    device = services.device("web1", "--map", "eager", peers=[services.daemon()], size="128MiB")
    with device.connect() as client:
        client.write(100 << 20, b"x" * (1 << 20))
    wait_for(lambda: device.get("/v1/slabs?sort=activity&top=1")[0]["activity"] > 0, what="its activity")
    services.command("wait", "web1", "--for", "mapped")
    few = services.command("slabs", "web1")
    assert re.match(r"128 slabs: 1 mapped, 127 unmapped; pages: 256 remote, ", few.stdout)
    assert len(few.stdout.splitlines()) == 1 + 1 + 20
    assert few.stdout.splitlines()[2].split()[:2] == ["100", "mapped"]
    assert few.stderr.startswith("infiniswap: only the first 20 by activity")
    assert len(services.command("slabs", "web1", "--all").stdout.splitlines()) == 129
    assert len(services.command("slabs", "web1", "-n", "--top", "3").stdout.splitlines()) == 3
    mapped = services.command("slabs", "web1", "--state", "mapped", "--sort", "remote", "--json")
    assert [row["index"] for row in json.loads(mapped.stdout)] == [100]
    assert services.command("slabs", "web1", "-n", "--peer", "127.0.0.1").stdout.split()[0] == "100"
    none = services.command("slabs", "web1", "--peer", "10.0.0.1")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "device 'web1' has no such slabs\n")
    assert services.command("slabs", "web1", "--state", "gone").returncode == ExitCode.USAGE
