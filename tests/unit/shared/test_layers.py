"""A file and its drop-ins: the last statement counts, each value knows its line, and a mistake is named by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from infiniswap.daemon import config as daemon_config
from infiniswap.device.config import SECTIONS, load
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.layers import DROP_INS_MAX, Source, Stated, drop_ins, line_numbers, shown

BASE = '# a comment\nsize = "1Gi"\nbackup = "/b"\npeers = ["node1"]\n\n[attach]\npriority = 5\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of a device, without drop-ins."""
    path = tmp_path / "vol.toml"
    path.write_text(BASE)
    return path


def drop_in(file: Path, name: str, text: str) -> Path:
    """One more drop-in of file."""
    folder = file.with_name(file.name + ".d")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_the_last_one_counts(file: Path) -> None:
    """By the order of the drop-ins' names; the command line comes after them, and what was changed at run time last."""
    last = drop_in(file, "20-b.toml", "hot-page-ios = 7\n[attach]\npriority = 9\n")
    drop_in(file, "10-a.toml", 'hot_page_ios = 6\ncold_page_ios = 1\nsize = "2G"\n')
    drop_in(file, "30-c.conf", "nonsense")
    drop_in(file, ".30-c.toml", "nonsense")
    loaded = load("vol", {"cold_page_ios": "2", "map": "eager"}, file, changed={"map": Stated("hot", Source.RUN_TIME)})
    assert loaded.config.size_bytes == 2 << 30
    assert (loaded.config.hot_page_ios, loaded.config.cold_page_ios, loaded.config.map_policy) == (7, 2, "hot")
    stated = {name: (each.source, each.where) for name, each in loaded.stated.items()}
    assert stated["hot_page_ios"] == (Source.DROP_IN, f"{last}:1")
    assert stated["attach.priority"] == (Source.DROP_IN, f"{last}:3")
    assert stated["backup"] == (Source.FILE, f"{file}:3")
    assert stated["cold_page_ios"] == (Source.COMMAND_LINE, "command line")
    assert stated["map"] == (Source.RUN_TIME, "set at run time")


def test_drop_ins_alone(file: Path) -> None:
    """The file itself may be missing then; without any it is the mistake that it was."""
    drop_in(file, "a.toml", BASE)
    file.unlink()
    assert load("vol", {}, file).config.size_bytes == 1 << 30
    with pytest.raises(UserError, match="does not exist") as caught:
        load("vol", {}, file.with_name("other.toml"))
    assert caught.value.code == ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\ncolour = 1\n", ":2: unknown option 'colour'"),
        ('\n\nslab_size = "3M"\nslab-size = "1M"\n', "option 'slab-size' is given twice"),
        ('backup_depth = "many"\n', ":1: backup_depth 'many' must be a number"),
        ("[attach]\ncolour = 1\n", ":2: unknown option 'colour'"),
        ("[attach]\nconnections = 99\n", ":2: connections '99' must be a number between 1 and 16"),
        ("[other]\nsize = 1\n", "unknown option 'other'"),
        ("size = \n", "is not TOML"),
    ],
)
def test_a_mistake_is_named_by_its_place(file: Path, text: str, words: str) -> None:
    """In a drop-in as in the file."""
    path = drop_in(file, "10.toml", text)
    with pytest.raises(UserError) as caught:
        load("vol", {}, file)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_all_mistakes_are_collected(file: Path) -> None:
    """Of those that are in values; for 'config check'."""
    drop_in(file, "1.toml", 'backup_depth = 0\nmap = "x"\n[attach]\npriority = -1\n')
    mistakes: list[str] = []
    with pytest.raises(UserError):
        load("vol", {}, file, mistakes=mistakes)
    assert sorted(mistake.partition(": ")[2].split()[0] for mistake in mistakes) == ["backup_depth", "map", "priority"]


def test_too_many_drop_ins(file: Path) -> None:
    """A folder that something fills is refused, not read."""
    for number in range(DROP_INS_MAX + 1):
        drop_in(file, f"{number}.toml", "")
    with pytest.raises(UserError, match=f"the most is {DROP_INS_MAX}"):
        drop_ins(file)


def test_the_daemon_has_them_too(tmp_path: Path) -> None:
    """With the same words."""
    file = tmp_path / "infiniswapd.toml"
    file.write_text('memory = "1G"\nlisten = "10.0.0.1"\n')
    drop_in(file, "a.toml", 'memory = "50%"\nheadroom = "x"\n')
    with pytest.raises(UserError, match=r"a\.toml:2: headroom: size 'x'"):
        daemon_config.load({}, file)
    drop_in(file, "a.toml", 'memory = "50%"\n')
    config = daemon_config.load({}, file).config
    assert (str(config.memory), str(config.listen)) == ("50%", "10.0.0.1:7401")


def test_what_is_shown(file: Path) -> None:
    """Every option, as it could be written down again, defaults included."""
    loaded = load("vol", {"slab_size": "1M"}, file)
    rows = {row["option"]: row for row in shown(loaded.config, loaded.stated, SECTIONS)}
    assert (rows["size"]["value"], rows["size"]["source"], rows["size"]["where"]) == ("1GiB", "file", f"{file}:2")
    assert (rows["peers"]["value"], rows["sparse"]["value"]) == (["node1:7401"], False)
    assert (rows["cold_page_ios"]["value"], rows["cold_page_ios"]["where"]) == (None, "default")
    assert (rows["attach.priority"]["value"], rows["attach.connections"]["value"]) == (5, 4)
    assert rows["slab_size"]["where"] == "command line"


def test_lines() -> None:
    """The first line of each key by its table; text that only looks like one later changes nothing."""
    lines = line_numbers('a = 1\n"b" = """\na = 2\n"""\n[t]\n a = 3\n')
    assert (lines["", "a"], lines["", "b"], lines["t", "a"]) == (1, 2, 6)
