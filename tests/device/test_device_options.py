"""Options of a device that serves: set, read again, and remembered when its name alone starts it the next time."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from tests.support.services import INFINISWAP, Device, Services
from tests.support.waiting import wait_for


def options(services: Services, name: str = "vol") -> dict[str, Any]:
    """Rows of 'config show' by option."""
    done = services.command("config", "show", name, "--json")
    assert done.returncode == 0, done
    return {row["option"]: row for row in json.loads(done.stdout)}


def by_name_alone(services: Services, before: Device, *more: str) -> Device:
    """The device again, as 'infiniswap device serve NAME' starts it."""
    label = f"again-{len(services.started)}"
    process, log_path = services._process(label, [*INFINISWAP, "device", "serve", before.name, *more], {})
    device = Device(
        label, process, log_path, name=before.name, backup=before.backup, socket=before.socket,
        runtime_dir=before.runtime_dir,
    )  # fmt: skip
    return services._add(device, ready=True)


def test_stopped_and_killed_and_started_by_name(services: Services) -> None:
    """Options, what was set, and peers that were added and removed are as they were; a changed option is told."""
    one, two = services.daemon("32MiB"), services.daemon("32MiB")
    device = services.device("vol", "--map", "eager", "--hot-page-ios", "5", peers=[one.address])
    with device.connect() as client:
        client.write(0, b"x" * 8192)
    assert services.command("set", "vol", "hot-page-ios", "9").stdout == "hot_page_ios: 5.0 -> 9.0\n"
    assert services.command("peer", "add", "vol", two.address).returncode == 0
    assert services.command("peer", "remove", "vol", one.address, timeout_s=60.0).returncode == 0
    device.kill()
    again = by_name_alone(services, device)
    rows = options(services)
    assert (rows["map"]["value"], rows["hot_page_ios"]["value"]) == ("eager", 9)
    assert rows["hot_page_ios"]["where"] == "set at run time"
    assert [row["peer"] for row in again.get("/v1/peers")] == [two.address]
    with again.connect() as client:
        assert client.read(0, 8192) == b"x" * 8192
    assert again.stop() == 0
    third = by_name_alone(services, device, "--map", "never")
    assert "map is never now, and was eager at the last start" in third.log
    with third.connect() as client:
        assert client.read(0, 8192) == b"x" * 8192


def test_nothing_known_of_a_name(services: Services) -> None:
    """Where one looked is said."""
    done = services.command("device", "serve", "nothing")
    assert done.returncode == 2
    assert "nothing is known of 'nothing': neither /etc/infiniswap/nothing.toml nor a start in " in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_are_read_again(services: Services, tmp_path: Path) -> None:
    """By the command and by SIGHUP: what can change does, what needs a restart is told, a mistake changes nothing."""
    one, two = services.daemon("32MiB"), services.daemon("32MiB")
    file = tmp_path / "vol.toml"
    file.write_text(f'peers = ["{one.address}"]\nhot_page_ios = 5\n')
    device = services.device("vol", "--config", str(file))
    assert services.command("reload", "vol").stderr == "infiniswap: nothing has changed\n"
    file.write_text(f'peers = ["{two.address}"]\nhot_page_ios = 6\nbackup_depth = 9\n')
    services.expect_log("backup_depth is 9 by .*: that needs a restart")
    done = services.command("reload", "vol")
    assert done.returncode == 0, done
    assert done.stdout.splitlines() == [
        "hot_page_ios: 5.0 -> 6.0",
        f"peer {two.address} is added",
        f"peer {one.address} is removed: its slabs leave",
        "backup_depth: 64 -> 9, needs a restart",
    ]
    wait_for(lambda: [row["peer"] for row in device.get("/v1/peers")] == [two.address], what="the other peer")
    file.write_text("hot_page_ios = 7\nbackup_depth = 0\n")
    services.expect_log("the files are not read again, nothing has changed: .*backup_depth '0'", "refused a POST of")
    done = services.command("reload", "vol")
    assert done.returncode == 2
    assert f"{file}:2: backup_depth '0'" in done.stderr
    assert options(services)["hot_page_ios"]["value"] == 6
    device.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "the files are not read again" in device.log, what="the mistake in the log")
    file.write_text(f'peers = ["{two.address}"]\nhot_page_ios = 8\nbackup_depth = 9\n')
    device.process.send_signal(signal.SIGHUP)
    wait_for(lambda: options(services)["hot_page_ios"]["value"] == 8, what="the files read again")


def test_setting(services: Services) -> None:
    """A value in force at once, one line for what cannot be set, and the way back."""
    device = services.device("vol")
    assert services.command("set", "vol", "log_level", "debug").stdout == "log_level: info -> debug\n"
    assert device.get("/v1/log-level")["levels"][""] == "debug"
    assert "that is in force already" in services.command("set", "vol", "log_level", "debug").stderr
    assert services.command("set", "vol", "log_level", "--reset").stdout == "log_level: debug -> info\n"
    services.expect_log("refused a POST of a local client: 400")
    for arguments, words in (
        (["size", "1GiB"], "size cannot be changed while the device serves"),
        (["cold_page_ios", "99"], "must be below --hot-page-ios"),
        (["log_level"], "give a value, or --reset"),
        (["log_level", "info", "--reset"], "give a value, or --reset"),
    ):
        done = services.command("set", "vol", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
