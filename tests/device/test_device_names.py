"""A device and names of peers that nobody knows yet: it starts, says so, and uses them when they are known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.device.support import PAGE_BYTES, pattern
from tests.support.services import Services
from tests.support.waiting import wait_for

OWN_HOSTS = 'mount --make-rprivate / && mount --bind "$HOSTS" /etc/hosts && exec "$@"'


def with_hosts(path: Path) -> list[str]:
    """A prefix for a command that sees path in place of /etc/hosts."""
    if os.geteuid() != 0:
        pytest.skip("needs root to have a hosts file of its own")
    return ["env", f"HOSTS={path}", "unshare", "--mount", "sh", "-c", OWN_HOSTS, "sh"]


def test_name_that_comes_later(services: Services) -> None:
    """As at boot before the network: a clean start serves; mistyped names get a hint; then the peer is used."""
    services.expect_log(r"donor-two:\d+: (cannot connect|unknown host)", "127.0.0.1:9: cannot connect")
    daemon = services.daemon()
    port = daemon.address.rpartition(":")[2]
    hosts = services.folder / "hosts"
    hosts.write_text("127.0.0.1 localhost donor-one\n")
    peers = [f"donor-two:{port}", "127.0.0.1:9"]
    device = services.device("vol", "--map", "eager", peers=peers, prefix=with_hosts(hosts))
    assert f"peer donor-two:{port}: unknown host (did you mean donor-one, as in /etc/hosts?)" in device.log
    data = pattern(16)
    with device.connect() as client:
        client.write(0, data)
        assert device.get("/v1/peers")[0]["state"] != "up"
        with hosts.open("a") as stream:
            stream.write("127.0.0.1 donor-two\n")
        wait_for(lambda: device.get("/v1/peers")[0]["state"] == "up", what="the peer", timeout_s=40.0)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 1, what="mapping", timeout_s=40.0)
        assert client.read(0, 16 * PAGE_BYTES) == data
    device.kill()
    # After a kill the lease is found where it was granted, whatever the name means then.
    hosts.write_text("127.0.0.1 localhost\n127.0.0.77 donor-two\n")
    device = services.device("vol", "--map", "eager", peers=peers, prefix=with_hosts(hosts))
    assert "1 leases with 1 slabs live on" in device.log
    with device.connect() as client:
        assert client.read(0, 16 * PAGE_BYTES) == data
    assert device.stop() == 0
