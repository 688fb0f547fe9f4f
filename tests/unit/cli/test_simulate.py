"""infiniswap simulate: a table that compares, JSON that a seed repeats to the byte, pictures, and clear refusals."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infiniswap.cli import main as cli_main
from infiniswap.shared.errors import ExitCode
from infiniswap.simulation.figures import Series

SMALL = ("simulate", "--machines", "4", "--duration", "50")


def run(*arguments: str) -> int:
    """The command's exit code."""
    return cli_main.run([*SMALL, *arguments])


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for the cluster that lends nothing, and one for each strategy."""
    assert run("--strategy", "one,two-free") == ExitCode.OK
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["STRATEGY", "USE-%", "MAX/MED", "MAX/MIN"]
    assert [row.split()[0] for row in rows] == ["none", "one", "two-free"]
    none, one, _ = (float(row.split()[1]) for row in rows)
    assert none < one
    assert run("--strategy", "one", "-n", "-o", "strategy,no-room") == ExitCode.OK
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["none", "-"], ["one", "0"]]


def test_a_seed_repeats_to_the_byte(capsys: pytest.CaptureFixture[str]) -> None:
    """All there is to tell, every second of it; another seed tells something else."""
    shown = []
    for seed in ("7", "7", "8"):
        assert run("--json", "--series", "--seed", seed, "--fail", "30:1:10", "--load", "20:2:40%") == ExitCode.OK
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    told = json.loads(shown[0])
    assert told["scenario"]["seed"] == 7
    assert told["scenario"]["loads"] == [{"at_s": 20, "machines": 2, "size_bytes": 0, "percent": 40.0, "for_s": 120}]
    assert [row["strategy"] for row in told["results"]] == [
        "none",
        *("one", "two-free", "two-share", "two-host", "most-free"),
    ]
    names = set(Series.__dataclass_fields__)
    assert all(set(row["series"]) == names for row in told["results"][1:])
    assert {len(values) for row in told["results"][1:] for values in row["series"].values()} == {50}


def test_runs_are_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs are the mean of the two seeds."""
    mapped = []
    for options in (("--seed", "5"), ("--seed", "6"), ("--seed", "5", "--runs", "2")):
        assert run("--json", "--strategy", "one", *options) == ExitCode.OK
        mapped.append(json.loads(capsys.readouterr().out)[1]["mapped"])
    assert mapped[2] == (mapped[0] + mapped[1]) / 2


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PNG files in a folder that is made, the same bytes for the same seed."""
    contents: list[dict[str, bytes]] = []
    for folder in ("a/b", "c"):
        assert run("--strategy", "two-free", "--plot", str(tmp_path / folder)) == ExitCode.OK
        files = sorted((tmp_path / folder).iterdir())
        assert [file.name for file in files] == [
            "balance.png",
            "evictions.png",
            "machines.png",
            "remote.png",
            "utilisation.png",
        ]
        contents.append({file.name: file.read_bytes() for file in files})
    assert all(content.startswith(b"\x89PNG") for content in contents[0].values())
    assert contents[0] == contents[1]
    assert capsys.readouterr().err.count("wrote ") == 10


def test_a_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, once the table is out."""
    (tmp_path / "file").write_text("")
    assert run("--strategy", "one", "--plot", str(tmp_path / "file" / "x")) == ExitCode.RESOURCES
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"infiniswap: cannot write to {tmp_path}/file/x: Not a directory"]
    assert shown.out


def test_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before anything is simulated; without --plot nobody misses it."""
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--strategy", "one", "--plot", str(tmp_path / "p")) == ExitCode.USAGE
    shown = capsys.readouterr()
    assert "--plot needs matplotlib, which is not installed" in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert run("--strategy", "one") == ExitCode.OK


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--machines", "1"), "--machines 1 must be between 2 and 4096"),
        (("--machines", "some"), "'some' is not a valid integer"),
        (("--memory", "64GB"), "64GB"),
        (("--strategy", "best"), "no strategy 'best'; there are one, two-free"),
        (("--fail", "10"), "--fail '10' must be SECOND:MACHINES"),
        (("--fail", "10:3"), "--fail must leave two machines of 4"),
        (("--load", "10:1:lots"), "'lots' is not a size"),
        (("--series",), "--series is for --json"),
        (("--containers", "100"), "100 containers do not fit into 4 machines"),
        (("--runs", "0"), "0 is not in the range"),
        (("-o", "best"), "no column 'best'"),
    ],
)
def test_what_is_wrong_is_one_line(options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is shown."""
    assert run(*options) == ExitCode.USAGE
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""
