"""Configuration: every bad value and every bad combination is refused with one line that names the option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infiniswap.device.config import load_config
from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.errors import ExitCode, UserError

GOOD: dict[str, Any] = {"size": "1GiB", "backup": "/data/vol.img"}


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories from the environment, the rest as documented."""
    monkeypatch.setenv("INFINISWAP_STATE_DIR", "/state")
    monkeypatch.setenv("INFINISWAP_RUNTIME_DIR", "/run/ours")
    config = load_config("vol", GOOD)
    assert (config.size_bytes, config.slab_bytes, config.slabs) == (1 << 30, 64 << 20, 16)
    assert config.socket_path == Path("/run/ours/vol.sock")
    assert config.control_path == Path("/run/ours/vol.control")
    assert config.device_dir == Path("/state/vol")
    assert (config.map_policy, config.hot_page_ios, config.cold_page_ios) == ("hot", 20.0, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": None}, "--size is missing"),
        ({"backup": None}, "--backup is missing"),
        ({"size": "0"}, "must not be zero"),
        ({"size": "4097"}, "not a multiple of the page"),
        ({"size": "1.3"}, "--size: size '1.3' is not a whole number"),
        ({"size": "17TiB"}, "too large"),
        ({"size": True}, "--size 'True'"),
        ({"slab_size": "3MiB"}, "--slab-size 3MiB must be a power of two between 1MiB and 1GiB"),
        ({"slab_size": "512KiB"}, "power of two between"),
        ({"slab_size": "2GiB"}, "power of two between"),
        ({"slab_size": "0"}, "power of two between"),
        ({"size": "1TiB", "slab_size": "1MiB"}, "take at least 4MiB"),
        ({"peers": ["7401"]}, "--peer '7401' is not HOST:PORT"),
        ({"peers": ["a:b"]}, "not HOST:PORT"),
        ({"peers": ["a:70000"]}, "port must be between 1 and 65535"),
        ({"peers": ["a:0"]}, "port must be between 1 and 65535"),
        ({"peers": [":1"]}, "not HOST:PORT"),
        ({"peers": ["a b:1"]}, "not HOST:PORT"),
        ({"peers": ["::1:1"]}, "not HOST:PORT"),
        ({"peers": ["[zz]:1"]}, "not HOST:PORT"),
        ({"peers": ["a:1", "b:1", "a:1"]}, "'a:1' is given twice"),
        ({"peers": [f"h{n}:1" for n in range(65)]}, "the most is 64"),
        ({"tcp": ["nowhere"]}, "--tcp 'nowhere' is not HOST:PORT"),
        ({"map": "always"}, "--map 'always' must be one of hot, eager, never"),
        ({"hot_page_ios": "0"}, "--hot-page-ios '0' must be a number between"),
        ({"hot_page_ios": "nan"}, "must be a number"),
        ({"cold_page_ios": "20"}, "must be below --hot-page-ios"),
        ({"pending_limit": "100"}, "--pending-limit 100B must be a multiple"),
        ({"sparse": "yes"}, "--sparse must be true or false"),
        ({"backup_depth": "0"}, "--backup-depth '0'"),
        ({"backup_depth": "1.5"}, "must be a whole number"),
        ({"backup_engine": "dd"}, "--backup-engine 'dd' must be one of"),
        ({"socket": "/" + "x" * 120}, "longer than 107 bytes"),
        ({"backup": ""}, "--backup must be a path"),
        ({"no_such_thing": 1}, "unknown option 'no_such_thing'"),
    ],
)
def test_refused(change: dict[str, Any], words: str) -> None:
    """One line that names the option, and the code for wrong usage."""
    with pytest.raises(UserError) as caught:
        load_config("vol", {**GOOD, **change})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 65, "é", "a\n"])
def test_bad_names(name: str) -> None:
    """Names end up in paths and URIs."""
    with pytest.raises(UserError, match="device name"):
        load_config(name, GOOD)


def test_state_and_sockets_must_not_collide(tmp_path: Path) -> None:
    """Files of different meaning must not share a path."""
    dirs = {"state_dir": str(tmp_path / "s"), "runtime_dir": str(tmp_path / "r")}
    for change in (
        {"socket": str(tmp_path / "r" / "vol.control")},
        {"socket": str(tmp_path / "r" / "vol.lock")},
        {"backup": str(tmp_path / "r" / "vol.sock")},
        {"backup": str(tmp_path / "s" / "vol" / "state")},
    ):
        with pytest.raises(UserError, match="choose another"):
            load_config("vol", {**GOOD, **dirs, **change})


def test_file_and_command_line(tmp_path: Path) -> None:
    """The command line wins; what is not given there comes from the file."""
    file = tmp_path / "vol.toml"
    file.write_text(
        'name = "vol"\nsize = "2GiB"\nslab-size = "16MiB"\nbackup = "/b"\npeers = ["a:1", "[::1]:2"]\nsparse = true\n'
    )
    config = load_config(None, {"size": "1GiB", "peers": (), "sparse": None}, file)
    assert (config.name, config.size_bytes, config.slab_bytes) == ("vol", 1 << 30, 16 << 20)
    assert config.peers == (HostPort("a", 1), HostPort("::1", 2))
    assert config.sparse


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size = ", "is not TOML"),
        ("colour = 1", "unknown option 'colour'"),
        ('slab-size = "1MiB"\nslab_size = "1MiB"', "given twice"),
        ("name = 3", "name must be a string"),
        ('name = "other"', "describes device 'other'"),
        ("peers = 5", "vol.toml:1: peers '5'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    """Mistakes in the file are named with the file."""
    file = tmp_path / "vol.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config("vol", GOOD, file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """Has an exit code of its own."""
    with pytest.raises(UserError) as caught:
        load_config("vol", GOOD, tmp_path / "none.toml")
    assert caught.value.code == ExitCode.NOT_FOUND


def test_no_name() -> None:
    """Neither on the command line nor in the file."""
    with pytest.raises(UserError, match="no name"):
        load_config(None, GOOD)


def test_host_port_prints_what_it_parses() -> None:
    """Addresses survive being shown."""
    for text in ("127.0.0.1:7401", "donor-1.example:1", "[fe80::1%eth0]:65535"):
        assert str(parse_host_port(text, "--peer")) == text
