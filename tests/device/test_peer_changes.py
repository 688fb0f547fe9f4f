"""Peers come and go while the device serves: under load every page stays right, and no slab is forgotten."""

from __future__ import annotations

import re
import signal
import subprocess

from tests.device.support import SLAB_BYTES, Load, PageModel, mapped, pattern
from tests.support.layouts import both_layouts
from tests.support.services import INFINISWAP, Device, Services
from tests.support.waiting import wait_for

SLABS = 16
PAGES = SLABS * SLAB_BYTES // 4096


def slabs_by_peer(device: Device) -> dict[str, int]:
    """Slabs that each peer holds."""
    return {row["peer"]: row["slabs"] for row in device.get("/v1/peers")}


def filled(services: Services, *peers: str) -> tuple[Device, bytes]:
    """A device whose slabs are all remote, and what is in them."""
    device = services.device("vol", "--map", "eager", peers=peers, size=f"{SLABS}MiB")
    data = pattern(PAGES)
    with device.connect() as client:
        client.write(0, data)
    wait_for(lambda: len(mapped(device)) == SLABS, what="mapping of all")
    return device, data


@both_layouts
def test_a_donor_is_replaced_under_load(services: Services) -> None:
    """Add the new one, remove the old one: its slabs are at the new one, it lends nothing any more, data is right."""
    old = services.daemon("32MiB")
    device, data = filled(services, old.address)
    new = services.daemon("32MiB")
    model = PageModel(data)
    with device.connect() as client:
        with Load(device, model) as load:
            added = services.command("peer", "add", "vol", new.address)
            assert (added.returncode, added.stderr) == (0, "")
            assert re.fullmatch(rf"{new.address} added: up over \w+, \S+ free\n", added.stdout)
            removed = services.command("peer", "remove", "vol", old.address, timeout_s=60.0)
            assert removed.returncode == 0, removed
            assert f"{old.address} removed: its {SLABS} slabs have left" in removed.stdout
            assert slabs_by_peer(device).keys() == {new.address}
        assert not load.errors
        assert model.verify(client) == []
    wait_for(lambda: old.get("/v1/offer")["used_bytes"] == 0, what="memory given back")
    wait_for(lambda: slabs_by_peer(device)[new.address] == SLABS, what="all slabs at the new donor")
    assert device.get("/v1/stats")["failures"]["peers_lost"] == 0


@both_layouts
def test_the_last_peer_leaves_and_comes_back(services: Services) -> None:
    """Without any other peer the slabs go to the backup; the same daemon is a peer again afterwards."""
    donor = services.daemon("32MiB")
    device, data = filled(services, donor.address)
    assert services.command("peer", "remove", "vol", donor.address, timeout_s=60.0).returncode == 0
    assert device.get("/v1/peers") == []
    with device.connect() as client:
        assert client.read(0, len(data)) == data
        assert services.command("peer", "add", "vol", donor.address).returncode == 0
        client.write(0, data)
        wait_for(lambda: len(mapped(device)) == SLABS, what="mapping of all")
        assert client.read(0, len(data)) == data


def test_many_peers_come_and_go(services: Services) -> None:
    """More over time than the device has places at once; each begins with counters of its own."""
    device, _ = filled(services, *(services.daemon("32MiB").address for _ in range(2)))
    spare = services.daemon("32MiB")
    for port in range(1, 12):
        address = f"127.0.0.1:{port}"
        services.expect_log(f"peer {address}: ")
        assert services.command("peer", "add", "vol", address, "--wait", "0").returncode == 0
        assert services.command("peer", "remove", "vol", address, timeout_s=60.0).returncode == 0
    assert services.command("peer", "add", "vol", spare.address).returncode == 0
    row = next(row for row in device.get("/v1/peers") if row["peer"] == spare.address)
    assert (row["state"], row["failures"], row["reads"]) == ("up", 0, 0)


def test_ctrl_c_ends_the_waiting_alone(services: Services) -> None:
    """What holds is said, the removal goes on, and 'peer add' keeps the peer with what it still holds."""
    donor = services.daemon("32MiB", "--lease-ttl-s", "600")
    device, data = filled(services, donor.address)
    with donor.suspended():  # it gives nothing back
        command = [*INFINISWAP, "peer", "remove", "vol", donor.address]
        removing = subprocess.Popen(command, env=services.environment, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: device.get("/v1/peers")[0]["leaving"] is not None, what="the removal")
        removing.send_signal(signal.SIGINT)
        _, said = removing.communicate(timeout=30)
        assert removing.returncode == 130
        assert f"the removal of {donor.address} goes on: " in said
        assert f"of {SLABS} slabs have left" in said
        kept = services.command("peer", "add", "vol", donor.address, "--wait", "0")
        assert (kept.returncode, kept.stderr) == (0, "")
    services.expect_log(f"peer {donor.address} is lost", f"peer {donor.address}: ")
    with device.connect() as client:
        assert client.read(0, len(data)) == data
    wait_for(lambda: device.get("/v1/peers")[0]["state"] == "up", what="the peer that stays", timeout_s=30.0)


def test_mistakes(services: Services) -> None:
    """One line and the documented exit code."""
    donor = services.daemon("32MiB")
    services.device("vol", peers=[donor.address])
    services.expect_log("refused a POST of a local client: 4")
    port = donor.address.rpartition(":")[2]
    for arguments, code, words in (
        (["remove", "vol", "127.0.0.1:9"], 3, f"127.0.0.1:9 is no peer of this device; its peers are {donor.address}"),
        (["remove", "vol", donor.address, "--deadline", "soon"], 2, "'soon' is no duration"),
        (["add", "vol", "7401"], 2, "is not HOST:PORT"),
        (["add", "vol", f"localhost:{port}"], 1, "are the same daemon; name each once"),
        (["add", "nothing", "node1"], 3, "no device 'nothing'"),
    ):
        done = services.command("peer", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    again = services.command("peer", "add", "vol", donor.address)
    assert "a peer already: up over" in again.stdout
