"""List --all knows every device with state, running or not; rm takes one away, but no page that is nowhere else."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from infiniswap.shared.errors import ExitCode
from tests.support.layouts import both_layouts
from tests.support.only_in_memory import only_in_memory
from tests.support.services import Services

MIB = 1 << 20


def listed(services: Services) -> dict[str, dict[str, Any]]:
    """Rows of device list --all, by name."""
    done = services.command("device", "list", "--all", "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout) if row["name"]}


def test_list_all(services: Services) -> None:
    """Each with its state, size, folder and backup, whether it runs or not; without --all only those that run."""
    running = services.device("here", size="8MiB")
    services.device("gone", size="4MiB").stop()
    services.device("hit", size="16MiB").kill()
    (services.folder / "gone.img").rename(services.folder / "elsewhere.img")
    rows = listed(services)
    assert {name: (row["state"], row["size_bytes"]) for name, row in rows.items()} == {
        "here": ("serving", 8 * MIB),
        "gone": ("stopped", 4 * MIB),
        "hit": ("dead", 16 * MIB),
    }
    assert rows["gone"]["backup_state"] == "missing"
    assert rows["gone"]["lost_pages"] is None
    assert rows["hit"]["state_dir"] == str(services.folder / "state" / "hit")
    assert "gone" not in services.command("device", "list").stdout
    (services.folder / "state" / "gone" / "state").write_bytes(b"nonsense")
    assert listed(services)["gone"]["state"] == "damaged"
    table = services.command("device", "list", "--all").stdout
    assert [line.split()[0] for line in table.splitlines()] == ["NAME", "here", "hit", "gone"]
    running.stop()


@both_layouts
def test_rm_after_an_orderly_stop(services: Services) -> None:
    """State and, with --backup, the backup go; without, the backup stays and serves again."""
    device = services.device(size="8MiB")
    busy = services.command("device", "rm", "vol")
    assert (busy.returncode, "running already" in busy.stderr) == (ExitCode.IN_USE, True)
    with device.connect() as client:
        client.write(0, b"k" * 4096)
    device.stop()
    done = services.command("device", "rm", "vol")
    assert (done.returncode, "stays" in done.stdout) == (ExitCode.OK, True)
    assert not (services.folder / "state" / "vol").exists()
    again = services.device(size="8MiB")
    with again.connect() as client:
        assert client.read(0, 4096) == b"k" * 4096
    again.stop()
    assert services.command("device", "rm", "vol", "--backup").returncode == ExitCode.OK
    assert not (services.folder / "vol.img").exists()
    assert services.command("device", "rm", "vol").returncode == ExitCode.NOT_FOUND


@both_layouts
def test_rm_of_pages_that_are_nowhere_else(services: Services) -> None:
    """Refused, with how many; with --force they are lost, and the backup is no longer taken for the device's."""
    only_in_memory(services)
    refused = services.command("device", "rm", "vol")
    assert (refused.returncode, "in its peers' memory alone" in refused.stderr) == (ExitCode.REFUSED, True)
    assert (services.folder / "state" / "vol" / "state").exists()
    forced = services.command("device", "rm", "vol", "--force")
    assert (forced.returncode, "--adopt-image" in forced.stdout) == (ExitCode.OK, True)
    assert listed(services) == {}


@both_layouts
def test_rm_while_it_is_suspended(services: Services) -> None:
    """A device that does not answer runs all the same, and so does one that another runtime directory knows."""
    device = services.device(size="8MiB")
    with device.suspended():
        done = services.command("device", "rm", "vol", "--force", "--backup")
        assert done.returncode == ExitCode.IN_USE
    assert (services.folder / "vol.img").exists()
    apart = ("--runtime-dir", str(services.folder / "other"))
    rows = json.loads(services.command("device", "list", "--all", "--json", *apart).stdout)
    assert [row["state"] for row in rows if row["name"] == "vol"] == ["elsewhere"]
    assert services.command("device", "rm", "vol", "--force", *apart).returncode == ExitCode.IN_USE
    assert device.stop(number=signal.SIGTERM) == ExitCode.OK
    assert Path(services.folder / "state" / "vol").is_dir()
