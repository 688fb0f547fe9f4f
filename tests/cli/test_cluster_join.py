"""Two hosts, one line on each: the daemon lends to the device, and both have shown who they are."""

from __future__ import annotations

import shlex
import signal

import pytest

from infiniswap.shared.errors import ExitCode
from tests.support.services import DAEMON, INFINISWAP, READY_TIMEOUT_S, Daemon, Services
from tests.support.waiting import wait_for

INVITE = ("cluster", "invite", "node2", "--listen", "127.0.0.1:0")


@pytest.fixture
def hosts(services: Services) -> Services:
    """The two folders are node1 and node2; this host's own name is whatever it is."""
    services.expect_log("refused a POST of .*calls itself")
    return services


def test_quick_start(hosts: Services) -> None:
    """invite && infiniswapd there, join && device serve here: pages move, sealed control at both ends."""
    one, two = hosts.folder / "node1", hosts.folder / "node2"
    lend = [*DAEMON, "--memory", "64MiB", "--headroom", "0", "--listen", "127.0.0.1:0", "--tls-dir", str(one)]
    lend += ["--stop-timeout-s", "0"]
    invite = shlex.join([*INFINISWAP, *INVITE, "--directory", str(one)])
    node1 = hosts.spawn("node1", ["sh", "-c", f"{invite} && exec {shlex.join(lend)}"])
    line = node1.output.line(READY_TIMEOUT_S)
    assert line is not None, node1.log
    assert line.startswith("infiniswap cluster join 127.0.0.1:")
    joined = hosts.command(*shlex.split(line)[1:], "--name", "node2", "--directory", str(two))
    assert joined.returncode == ExitCode.OK, joined.stderr
    assert "node2 has joined the infiniswap cluster of " in joined.stdout
    told = node1.output.line(READY_TIMEOUT_S)
    assert told is not None
    assert told.startswith("node2 has joined from 127.0.0.1")
    node1.read_ready(READY_TIMEOUT_S)
    daemon = Daemon("node1", node1.process, node1.log_path, node1.ready)
    hosts.started[hosts.started.index(node1)] = daemon  # it ends after the device
    device = hosts.device("vol", "--tls-dir", str(two), peers=[daemon])
    with device.connect() as client:
        client.write(0, b"page" * 1024)
        assert client.read(0, 4096) == b"page" * 1024
    wait_for(lambda: device.get("/v1/peers")[0]["state"] == "up", what="the peer")


def test_ctrl_c(hosts: Services) -> None:
    """An invitation that is given up ends with one line and 130."""
    folder = hosts.folder / "node1"
    invite = hosts.spawn("invite", [*INFINISWAP, *INVITE, "--directory", str(folder)])
    wait_for(lambda: "waiting for it" in invite.log, what="the invitation")
    invite.expected_code = 130
    assert invite.stop(number=signal.SIGINT) == 130
    assert invite.log.splitlines()[-1] == "infiniswap: nobody has joined; the code is void"
