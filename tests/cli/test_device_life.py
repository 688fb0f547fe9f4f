"""The commands against real daemons and a real device, from serve to stop."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from infiniswap.shared.errors import ExitCode
from tests.support.services import INFINISWAP, Services
from tests.support.waiting import wait_for

SLAB_BYTES = 1 << 20
PAGE_BYTES = 4096


def test_serve_watch_and_stop(services: Services) -> None:
    """What was written shows in slabs, peers and stats as documented, and stop leaves it on the backup."""
    daemons = [services.daemon("16MiB") for _ in range(2)]
    device = services.device("vol", "--map", "eager", size="8MiB", slab_size="1MiB", peers=daemons)
    assert device.ready == device.uri
    data = os.urandom(2 * SLAB_BYTES)
    with device.connect() as client:
        client.write(SLAB_BYTES, data)  # the first touch of slabs 1 and 2
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 2, what="two slabs mapped")
        client.write(SLAB_BYTES, data)
        assert client.read(SLAB_BYTES, len(data)) == data

    listed = json.loads(services.command("device", "list", "--json").stdout)
    assert [(row["name"], row["state"], row["mapped_slabs"]) for row in listed] == [("vol", "serving", 2)]

    slabs = json.loads(services.command("slabs", "vol", "--json").stdout)
    assert [row["index"] for row in slabs] == list(range(8))
    assert [row["state"] for row in slabs] == ["unmapped", "mapped", "mapped"] + ["unmapped"] * 5
    pages = SLAB_BYTES // PAGE_BYTES
    assert all(slabs[i]["remote_pages"] == pages and slabs[i]["backup_pages"] == 0 for i in (1, 2))
    assert {slabs[1]["peer"], slabs[2]["peer"]} <= {daemon.address for daemon in daemons}
    assert slabs[0]["remote_pages"] == slabs[0]["backup_pages"] == slabs[0]["pending_pages"] == 0

    peers = json.loads(services.command("peers", "vol", "--json").stdout)
    assert sorted(row["peer"] for row in peers) == sorted(daemon.address for daemon in daemons)
    assert {row["state"] for row in peers} == {"up"}
    assert sum(row["slabs"] for row in peers) == 2
    assert sum(row["free_bytes"] for row in peers) == (32 << 20) - 2 * SLAB_BYTES

    stats = json.loads(services.command("stats", "vol", "--json").stdout)
    assert sum(stats["reads"].values()) == 2 * pages
    assert sum(stats["writes"].values()) == 4 * pages
    assert stats["mappings"] == 2
    assert "Pages read:" in services.command("stats", "vol").stdout

    stopped = services.command("device", "stop", "vol")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "")
    assert device.wait() == ExitCode.OK
    assert device.backup.read_bytes()[SLAB_BYTES : 3 * SLAB_BYTES] == data
    assert services.command("slabs", "vol").returncode == ExitCode.NOT_FOUND
    wait_for(lambda: all(daemon.get("/v1/stats")["leases"] == 0 for daemon in daemons), what="leases given back")


def test_sigterm_is_a_clean_stop(services: Services) -> None:
    """SIGTERM ends the device with exit code 0 and everything on the backup, also without any peer."""
    device = services.device("vol", size="4MiB")
    data = os.urandom(SLAB_BYTES)
    with device.connect() as client:
        client.write(4096, data)
    assert device.stop() == ExitCode.OK
    assert device.backup.read_bytes()[4096 : 4096 + SLAB_BYTES] == data


def test_a_killed_device_is_listed_as_dead(services: Services) -> None:
    """After SIGKILL the device shows as dead, and starting it again takes the name and the data back."""
    device = services.device("vol", size="4MiB")
    with device.connect() as client:
        client.write(0, b"kept" * 1024)
        client.flush()
    device.kill()
    assert services.command("device", "list", "-n", "-o", "name,state").stdout == "vol  dead\n"
    again = services.device("vol", size="4MiB")
    with again.connect() as client:
        assert client.read(0, 4096) == b"kept" * 1024
    assert services.command("device", "list", "-n", "-o", "name,state").stdout == "vol  serving\n"


def test_a_name_in_use_is_refused(services: Services) -> None:
    """A second device of the same name ends with one line and the code for it, and harms nothing."""
    device = services.device("vol", size="4MiB")
    other = services.folder / "other.img"
    done = services.command("device", "serve", "vol", "--size", "4MiB", "--backup", str(other))
    assert done.returncode == ExitCode.IN_USE
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert not other.exists()
    with device.connect() as client:
        assert client.read(0, 4096) == bytes(4096)


def test_config_file(services: Services, tmp_path: Path) -> None:
    """Options from a file are used, and the command line wins over them."""
    daemon = services.daemon("16MiB")
    file = tmp_path / "vol.toml"
    file.write_text(
        f'name = "vol"\nsize = "8MiB"\nslab_size = "2MiB"\nbackup = "{services.folder}/vol.img"\n'
        f'peers = ["{daemon.address}"]\nsocket = "{services.folder}/vol.sock"\n'
    )
    process = services.spawn("device", [*INFINISWAP, "device", "serve", "--config", str(file), "--size", "4MiB"])
    process.read_ready(30)
    status = json.loads(services.command("device", "list", "--json").stdout)[0]
    assert (status["name"], status["size_bytes"], status["slab_bytes"]) == ("vol", 4 << 20, 2 << 20)
    assert status["peers"] == 1
    process.process.send_signal(signal.SIGINT)
    assert process.wait() == ExitCode.OK
