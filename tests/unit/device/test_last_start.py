"""What describes a device that is started: a whole description stands alone, a name alone means the last start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infiniswap.device.last_start import Described, describe
from infiniswap.device.remembered import FILE_NAME, Change, Remembered, read
from infiniswap.device.settings import Settings
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import UserError

GOOD: dict[str, Any] = {"size": "1GiB", "backup": "/b", "peers": ("node1",)}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and usual files of this test alone."""
    monkeypatch.setenv("INFINISWAP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("INFINISWAP_CONFIG_DIR", str(tmp_path / "etc"))
    (tmp_path / "etc").mkdir()
    (tmp_path / "state" / "vol").mkdir(parents=True)
    return tmp_path


def started(places: Path, given: dict[str, Any], file: Path | None = None, name: str | None = "vol") -> Described:
    """A start that remembers, as a device's does."""
    described = describe(name, given, file)
    described.remembered.write(places / "state" / "vol")
    return described


def test_the_name_alone(places: Path) -> None:
    """All options of the last command line count again, but not those that were meant for that start."""
    first = started(places, {**GOOD, "map": "eager", "adopt_image": True, "accept_backup": True})
    again = started(places, {})
    assert again.loaded.config == replace(first.loaded.config, adopt_image=False, accept_backup=False)
    assert again.loaded.stated["map"].where == "command line of the last start"
    assert started(places, {}).loaded.config == again.loaded.config, "and at the start after that"


def test_what_is_given_besides_counts_more(places: Path) -> None:
    """And is told."""
    started(places, {**GOOD, "hot_page_ios": "5"})
    again = started(places, {"hot_page_ios": "7"})
    assert (again.loaded.config.hot_page_ios, again.loaded.config.size_bytes) == (7, 1 << 30)
    assert again.notes == ("hot_page_ios is 7.0 now, and was 5.0 at the last start",)
    assert started(places, {}).loaded.config.hot_page_ios == 7


def test_a_whole_description_stands_alone(places: Path) -> None:
    """What is not on the command line any more is at its default again."""
    started(places, {**GOOD, "map": "eager"})
    again = started(places, GOOD)
    assert (again.loaded.config.map_policy, again.notes) == ("hot", ())


def test_its_file_is_read_as_it_is_now(places: Path) -> None:
    """A start from a file, and the name alone afterwards; drop-ins included."""
    file = places / "vol.toml"
    file.write_text('size = "1G"\nbackup = "/b"\n')
    started(places, {"map": "eager"}, file)
    file.write_text('size = "1G"\nbackup = "/b"\nhot_page_ios = 3\n')
    again = started(places, {})
    assert (again.loaded.config.map_policy, again.loaded.config.hot_page_ios) == ("eager", 3)


def test_the_usual_file(places: Path) -> None:
    """A name that was never started is looked for in /etc/infiniswap; without anything it is said where one looked."""
    with pytest.raises(UserError, match=r"nothing is known of 'vol': neither .*/etc/vol.toml nor a start in .*/vol"):
        describe("vol", {}, None)
    (places / "etc" / "vol.toml").write_text('size = "2G"\nbackup = "/b"\n')
    assert describe("vol", {}, None).loaded.config.size_bytes == 2 << 30
    assert describe("vol", GOOD, None).loaded.config.size_bytes == 1 << 30, "a whole command line does not need it"


def test_set_at_run_time(places: Path) -> None:
    """It outlives the start, until a file or the command line says something new of it."""
    settings = Settings(started(places, {**GOOD, "hot_page_ios": "5"}))
    described = settings.with_value("hot_page_ios", "9")
    assert [each.after for each in settings.differences(described)] == [9]
    settings.adopt(described)
    settings.remembered.write(places / "state" / "vol")
    assert started(places, {}).loaded.config.hot_page_ios == 9
    assert started(places, {**GOOD, "hot_page_ios": "5"}).loaded.config.hot_page_ios == 9
    newer = started(places, {**GOOD, "hot_page_ios": "6"})
    assert newer.loaded.config.hot_page_ios == 6
    assert "is newer than 9, which was set at run time" in newer.notes[0]
    assert started(places, {**GOOD, "hot_page_ios": "5"}).loaded.config.hot_page_ios == 5, "it is forgotten then"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("size", "2GiB", "size cannot be changed while the device serves; these can: "),
        ("peers", "node2", "peers change by 'infiniswap peer add'"),
        ("hot_page_ios", "0", "must be a number between"),
        ("cold_page_ios", "30", "must be below --hot-page-ios"),
        ("colour", "red", "unknown option 'colour'"),
        ("hot_page_ios", [], "must be a number between"),
        ("log_level", "loud", "log_level must be one of"),
    ],
)
def test_what_cannot_be_set(places: Path, name: str, value: object, words: str) -> None:
    """One line, and nothing has changed."""
    settings = Settings(started(places, GOOD))
    before = settings.in_force
    with pytest.raises(UserError, match=words):
        settings.with_value(name, value)
    assert settings.in_force == before


def test_reset(places: Path) -> None:
    """Back to what files and command line say."""
    settings = Settings(started(places, {**GOOD, "map": "eager"}))
    settings.adopt(settings.with_value("map", "never"))
    assert settings.in_force.map_policy == "never"
    settings.adopt(settings.with_value("map", None))
    assert (settings.in_force.map_policy, settings.remembered.changed) == ("eager", {})


def test_what_needs_a_restart(places: Path) -> None:
    """It is told, is not in force, and 'config show' says what comes."""
    file = places / "vol.toml"
    file.write_text('size = "1G"\nbackup = "/b"\n')
    settings = Settings(started(places, {}, file))
    file.write_text('size = "1G"\nbackup = "/b"\nbackup_depth = 7\nhot_page_ios = 3\n')
    described = settings.read_again()
    assert {each.option: each.live for each in settings.differences(described)} == {
        "hot_page_ios": True,
        "backup_depth": False,
    }
    settings.adopt(described)
    assert (settings.in_force.backup_depth, settings.in_force.hot_page_ios) == (64, 3)
    row = next(row for row in settings.describe()["options"] if row["option"] == "backup_depth")
    assert (row["value"], row["after_restart"]) == (64, 7)
    assert row["where"] == f"the last start; 7 after a restart, by {file}:3"
    file.write_text("backup_depth = 0\n")
    with pytest.raises(UserError, match="backup_depth '0'"):
        settings.read_again()
    assert settings.in_force.hot_page_ios == 3


def test_peers_by_hand(places: Path) -> None:
    """Added ones outlive a start; removed ones stay away as long as a file names them, and count again afterwards."""
    file = places / "vol.toml"

    def name_peers(*names: str) -> None:
        file.write_text(f'size = "1G"\nbackup = "/b"\npeers = {list(names)!r}\n'.replace("'", '"'))

    def peers(described: Described) -> list[str]:
        return [address.host for address in described.loaded.config.peers]

    name_peers("a", "b")
    settings = Settings(started(places, {}, file))
    settings.adopt(settings.with_peer(HostPort("c", 7401), wanted=True))
    settings.adopt(settings.with_peer(HostPort("a", 7401), wanted=False))
    settings.remembered.write(places / "state" / "vol")
    assert peers(started(places, {}, file)) == ["b", "c"]
    name_peers("b", "c")
    last = started(places, {}, file)
    assert (peers(last), last.remembered.added, last.remembered.removed) == (["b", "c"], (), ())
    name_peers("a", "b")
    assert peers(started(places, {}, file)) == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"file": 1}', b'{"file": null, "given": 3}', b"\xff"])
def test_a_damaged_memory(places: Path, content: bytes) -> None:
    """It is none; a whole description does not need it."""
    (places / "state" / "vol" / FILE_NAME).write_bytes(content)
    assert read(places / "state" / "vol") is None
    assert started(places, GOOD).loaded.config.size_bytes == 1 << 30
    assert read(places / "state" / "vol") is not None


def test_memory_is_read_as_it_was_written(tmp_path: Path) -> None:
    """All of it."""
    remembered = Remembered(
        file="/f",
        given={"size": "1G", "peers": ["a"]},
        values={"size": "1GiB"},
        changed={"map": Change("hot", "eager")},
        added=(HostPort("::1", 1),),
        removed=(HostPort("b", 2),),
        discovered=(HostPort("c", 3),),
    )
    remembered.write(tmp_path)
    assert read(tmp_path) == remembered
