"""Peers come by a watched file and by DNS; losing either drops nobody, and who is left out leaves in order."""

from __future__ import annotations

import json
from pathlib import Path

from infiniswap.shared.address import parse_host_port
from tests.device.support import mapped, pattern
from tests.support.dns_server import DnsServer
from tests.support.services import INFINISWAP, Device, Services
from tests.support.waiting import wait_for

SLABS = 8


def write(file: Path, *targets: str) -> None:
    """Replace the list in one step, as tools do."""
    new = file.with_name("new")
    new.write_text(json.dumps([{"targets": list(targets), "labels": {"rack": "r1"}}]))
    new.replace(file)


def peers(device: Device) -> dict[str, str]:
    """State by peer."""
    return {row["peer"]: row["state"] for row in device.get("/v1/peers")}


def source(device: Device) -> tuple[str, str | None]:
    """State of the only source, and why."""
    row = device.get("/v1/config")["discovery"][0]
    return row["state"], row["reason"]


def test_a_watched_file(services: Services, tmp_path: Path) -> None:
    """Named peers are used; a file that is gone or torn changes nothing; who is left out is drained, not cut."""
    one, two = services.daemon("32MiB"), services.daemon("32MiB")
    file = tmp_path / "peers.json"
    services.expect_log(r"discovery: .*peers.json is of no use, its peers stay as they are: ")
    device = services.device(
        "vol", "--discover-file", str(file), "--discover-grace-s", "1", "--map", "eager", size=f"{SLABS}MiB"
    )
    wait_for(lambda: source(device) == ("lost", "No such file or directory"), what="the missing file to be told")
    write(file, one.address)
    wait_for(lambda: peers(device) == {one.address: "up"}, what="the first peer")
    data = pattern(SLABS * 256)
    with device.connect() as client:
        client.write(0, data)
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping of all")
        file.write_text('[{"targets": [')
        wait_for(lambda: source(device)[0] == "lost", what="the half-written file to be told")
        file.unlink()
        wait_for(lambda: source(device) == ("lost", "No such file or directory"), what="the file that is gone")
        assert peers(device) == {one.address: "up"}
        write(file, two.address)
        wait_for(lambda: peers(device) == {two.address: "up"}, what="the other one in its place", timeout_s=30.0)
        assert client.read(0, len(data)) == data
    assert device.get("/v1/stats")["failures"]["peers_lost"] == 0
    wait_for(lambda: one.get("/v1/offer")["used_bytes"] == 0, what="memory given back")


def test_a_start_without_its_sources(services: Services, tmp_path: Path) -> None:
    """After a kill, with the file gone, the device goes on with the peers that it knew, and their pages."""
    one = services.daemon("32MiB")
    file = tmp_path / "peers.json"
    write(file, one.address)
    services.expect_log(r"peers.json is of no use")
    device = services.device("vol", "--discover-file", str(file), "--map", "eager", size=f"{SLABS}MiB")
    wait_for(lambda: peers(device) == {one.address: "up"}, what="the peer")
    data = pattern(SLABS * 256)
    with device.connect() as client:
        client.write(0, data)
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping of all")
    file.unlink()
    device.kill()
    label = "again"
    process, log_path = services._process(label, [*INFINISWAP, "device", "serve", "vol"], {})
    again = Device(
        label, process, log_path, name="vol", backup=device.backup, socket=device.socket, runtime_dir=device.runtime_dir
    )
    services._add(again, ready=True)
    wait_for(lambda: source(again)[0] == "lost", what="the missing file to be told")
    assert peers(again) == {one.address: "up"}
    with again.connect() as client:
        assert client.read(0, len(data)) == data
    assert again.get("/v1/stats")["failures"]["peers_lost"] == 0


def test_dns(services: Services) -> None:
    """SRV records name the peers; a server that is silent, or says that there are none, drops nobody."""
    one = services.daemon("32MiB")
    services.expect_log(r"discovery: _infiniswap._tcp.example.net is of no use")
    with DnsServer("example.net") as server:
        host, port = parse_host_port(one.address, "peer")
        assert host == "127.0.0.1"
        server.records = [parse_host_port(f"localhost:{port}", "peer")]
        device = services.device("vol", "--discover-dns", "example.net", "--discover-server", server.address)
        wait_for(lambda: peers(device) == {f"localhost:{port}": "up"}, what="the peer of the records")
        assert services.command("peer", "remove", "vol", f"localhost:{port}", timeout_s=60.0).returncode == 0
        server.records = []
        wait_for(lambda: source(device)[0] == "lost", what="the lost records to be told", timeout_s=30.0)
        assert peers(device) == {}, "what was removed by hand stays away"
        assert services.command("peer", "add", "vol", f"localhost:{port}").returncode == 0
        assert peers(device) == {f"localhost:{port}": "up"}
