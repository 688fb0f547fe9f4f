"""This host's certificate is used by itself, by daemon, device and commands; nobody falls back to --insecure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infiniswap.device.root_key import is_in_memory
from infiniswap.shared.errors import ExitCode
from tests.support.certificates import Cluster
from tests.support.services import Daemon, Device, Services
from tests.support.waiting import wait_for


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This host's certificate, where all programs look for it."""
    cluster = Cluster.make(tmp_path)
    folder = cluster.host("tls")
    monkeypatch.delenv("INFINISWAP_TLS_DIR")
    monkeypatch.setenv("INFINISWAP_CONFIG_DIR", str(tmp_path))
    return folder


def is_up(device: Device) -> bool:
    """Its one peer is."""
    return bool(device.get("/v1/peers")[0]["state"] == "up")


def error_of(device: Device) -> str:
    """What is the matter with its one peer."""
    return str(device.get("/v1/peers")[0]["last_error"])


def test_found_and_left_alone(identity: Path, services: Services) -> None:
    """All speak TLS by the usual folder without an option; with --insecure each of them does not, and says so."""
    services.expect_log("127.0.0.1 is not let in: it speaks no TLS")
    daemon = services.daemon("64MiB", "--log-level", "info")
    assert daemon.url.startswith("https://")
    assert "on loopback alone" not in daemon.log
    device = services.device("vol", peers=[daemon])
    wait_for(lambda: is_up(device), what="the peer by TLS")
    shown = json.loads(services.command("config", "show", "vol", "--json").stdout)
    values = {row["option"]: (row["value"], row["source"]) for row in shown}
    assert values["tls_dir"] == (str(identity), "default")
    assert values["encrypt"] == (False, "default")  # what became of it: its peer is on this host
    assert services.command("donor", "status", daemon.address).returncode == ExitCode.OK
    told = services.command("donor", "status", daemon.address, "--insecure")
    assert told.returncode == ExitCode.REFUSED
    assert "takes TLS with a certificate" in told.stderr
    both = services.command("donor", "status", daemon.address, "--insecure", "--tls-dir", str(identity))
    assert both.returncode == ExitCode.USAGE
    assert "leave one away" in both.stderr


def test_one_side_insecure(identity: Path, services: Services) -> None:
    """Whichever side it is: one line at both ends that says what to do, and no page goes to the peer."""
    services.expect_log("it speaks TLS, and this program", "it does not speak TLS", "takes TLS with a cert", "no TLS")
    plain = services.daemon("64MiB", "--insecure")
    assert plain.url.startswith("http://")
    secure = services.daemon("64MiB")
    by_tls = services.device("vol", peers=[plain])
    in_clear = services.device("bare", "--insecure", peers=[secure])

    def said(daemon: Daemon, words: str) -> None:
        wait_for(lambda: words in daemon.log, what=f"'{words}'")

    said(plain, "it speaks TLS, and this program has no certificate: give this one too, or the other one --insecure")
    said(secure, "127.0.0.1 is not let in: it speaks no TLS, which this daemon takes alone")
    wait_for(lambda: "it does not speak TLS: infiniswapd there has no certificate" in error_of(by_tls), what="why")
    wait_for(lambda: "takes TLS with a certificate of its cluster alone" in error_of(in_clear), what="why")
    assert not is_up(by_tls)
    assert not is_up(in_clear)


def test_loopback_says_so(services: Services) -> None:
    """Without a certificate a daemon on loopback serves, and says once at level info that it does without."""
    daemon = services.daemon("16MiB", "--log-level", "info")
    assert daemon.url.startswith("http://")
    assert daemon.log.count("without certificates, for this daemon is on loopback alone") == 1


def test_a_device_does_not_reach_further(services: Services, tmp_path: Path) -> None:
    """Without a certificate a peer beyond this host ends the start, and is not added later."""
    backup = tmp_path / "vol.img"
    refused = services.device("vol", peers=["192.0.2.1:7401"], backup=backup, ready=False)
    refused.expected_code = ExitCode.REFUSED
    assert refused.wait() == ExitCode.REFUSED
    assert refused.log.startswith("infiniswap: peer 192.0.2.1:7401 is not on this host, and there is no certificate")
    assert refused.log.count("\n") == 1
    assert not backup.exists()
    device = services.device("vol", peers=["127.0.0.1:1"], backup=backup)
    services.expect_log("peer 127.0.0.1:1: cannot connect", "409 peer 192.0.2.1:7401 is not on this host")
    added = services.command("peer", "add", "vol", "192.0.2.1:7401")
    assert added.returncode == ExitCode.FAILED
    assert "peer 192.0.2.1:7401 is not on this host" in added.stderr
    assert len(device.get("/v1/peers")) == 1


def test_sealed_by_default_needs_a_place_for_the_key(services: Services, tmp_path: Path) -> None:
    """With a peer elsewhere, and state on a disk: one line with the ways out, and nothing is made."""
    if is_in_memory(services.folder):
        pytest.skip("TMPDIR is in memory, which keeps keys")
    backup = tmp_path / "vol.img"
    refused = services.device("vol", "--insecure", peers=["192.0.2.1:7401"], backup=backup, ready=False)
    refused.expected_code = ExitCode.REFUSED
    assert refused.wait() == ExitCode.REFUSED
    assert refused.log.count("\n") == 1
    assert "give --encrypt-key-file FILE, or a --state-dir in memory (in /run), or --no-encrypt" in refused.log
    assert not backup.exists()
    assert not (services.folder / "state").exists()
