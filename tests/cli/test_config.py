"""config check says what a file describes or each mistake in it; config show what a device goes by, and why."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.services import Services


def test_check(services: Services, tmp_path: Path) -> None:
    """One line for a good file, one for each mistake, and the documented exit codes."""
    file = tmp_path / "swap0.toml"
    file.write_text('size = "8G"\nbackup = "/b"\npeers = ["node1", "node2:1"]\n')
    done = services.command("config", "check", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file}: device 'swap0' of 8GiB with 2 peers\n"
    folder = tmp_path / "swap0.toml.d"
    folder.mkdir()
    (folder / "50.toml").write_text('map = "x"\n[attach]\nconnections = 0\n')
    for path in (file, folder / "50.toml"):
        done = services.command("config", "check", str(path))
        assert (done.returncode, done.stdout) == (2, "")
        lines = done.stderr.splitlines()
        assert len(lines) == 2
        assert any(f"{folder}/50.toml:1: map 'x' must be one of" in line for line in lines)
        assert any(f"{folder}/50.toml:3: connections '0'" in line for line in lines)
    (folder / "50.toml").write_text("hot_page_ios = 1\ncold_page_ios = 2\n")
    done = services.command("config", "check", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"infiniswap: {file}: --cold-page-ios 2 must be below --hot-page-ios 1, ")
    daemon = tmp_path / "infiniswapd.toml"
    daemon.write_text('memory = "50%"\nlisten = "10.0.0.5"\n')
    assert services.command("config", "check", str(daemon)).stdout == (
        f"{daemon}: a memory daemon at 10.0.0.5:7401 that lends 50%\n"
    )
    assert services.command("config", "check", str(tmp_path / "no.toml")).returncode == 3


def test_show(services: Services, tmp_path: Path) -> None:
    """Each option with its value and where it was stated; --changed leaves the defaults out."""
    file = tmp_path / "vol.toml"
    file.write_text('hot_page_ios = 3\nslab_size = "2M"\n[attach]\npriority = 7\n')
    services.device("vol", "--config", str(file))
    done = services.command("config", "show", "vol", "--json")
    rows = {row["option"]: row for row in json.loads(done.stdout)}
    assert (rows["hot_page_ios"]["value"], rows["hot_page_ios"]["where"]) == (3, f"{file}:1")
    assert (rows["slab_size"]["value"], rows["slab_size"]["where"]) == ("1MiB", "command line")
    assert (rows["attach.priority"]["value"], rows["backup_depth"]["where"]) == (7, "default")
    table = services.command("config", "show", "vol", "--changed").stdout
    assert "backup_depth" not in table
    assert any(line.split() == ["hot_page_ios", "3", f"{file}:1"] for line in table.splitlines())
