"""infiniswap log-level changes what both programs log while they run, and both log in the same format."""

from __future__ import annotations

import json
import re

from infiniswap.shared.errors import ExitCode
from tests.support.services import Services

LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ (DEBUG|INFO|WARNING|ERROR) [\w.]+: .+")


def test_both_programs(services: Services) -> None:
    """A level of all, one of a module, and back; what is wrong is one line, and changes nothing."""
    daemon = services.daemon("16MiB", "--log-level", "info")
    device = services.device("vol", peers=[daemon])
    services.expect_log("400 log level 'loud'", "400 no module")
    for name, other in (("vol", "device.peers"), (daemon.address, "daemon.evictor")):
        assert services.command("log-level", name).stdout == "info\n"
        done = services.command("log-level", name, "warning", f"{other}=debug", "--json")
        assert json.loads(done.stdout) == {"": "warning", other: "debug"}
        done = services.command("log-level", name, f"{other}=error", "loud")
        assert done.returncode == (ExitCode.USAGE if name == "vol" else ExitCode.FAILED)
        assert "must be one of debug, info, warning, error" in done.stderr
        done = services.command("log-level", name, f"{other}x=debug")
        assert f"did you mean '{other}'?" in done.stderr
        assert services.command("log-level", name, f"{other}=default").stdout == "warning\n"
    for service in (daemon, device):
        lines = service.log.splitlines()
        assert lines
        assert [line for line in lines if not LINE.fullmatch(line)] == []


def test_json(services: Services) -> None:
    """With --log-format json each line is an object, and says the same."""
    daemon = services.daemon("16MiB", "--log-level", "info", "--log-format", "json")
    (line,) = [told for told in map(json.loads, daemon.log.splitlines()) if "lending" in told["message"]]
    assert line["level"] == "info"
    assert line["module"] == "daemon.service"
