"""Man pages: one a command, without a complaint of mandoc or of groff, with every option that there is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from infiniswap.cli.main import make_cli
from infiniswap.daemon.options import OPTIONS as DAEMON_OPTIONS
from infiniswap.device.options import OPTIONS as DEVICE_OPTIONS
from scripts.packaging import man_pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages."""
    made = tmp_path_factory.mktemp("man")
    assert man_pages.main([str(made)]) == 0
    return made


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Every command with the name of its page."""
    yield "-".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for verb in command.list_commands(context):
            found = command.get_command(context, verb)
            assert found is not None
            yield from commands(found, (*path, verb))


def test_each_command_has_one(folder: Path) -> None:
    """With all its options."""
    known = list(commands(make_cli(), ("infiniswap",)))
    assert len(known) > 30
    for name, command in known:
        text = (folder / "man1" / f"{name}.1").read_text().replace("\\-", "-")
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in text, f"{name}: {parameter.opts[0]}"


def test_the_file_page_has_each_option(folder: Path) -> None:
    """Of devices and of the daemon."""
    text = (folder / "man5/infiniswap.toml.5").read_text()
    for option in (*DEVICE_OPTIONS, *DAEMON_OPTIONS):
        assert f"\\fB{option.name}\\fR" in text


def test_mandoc(folder: Path) -> None:
    """It sees neither an error nor a warning in any page."""
    pages = sorted(map(str, folder.glob("*/*")))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_groff(folder: Path) -> None:
    """Man prints each page without a warning."""
    for page in sorted(folder.glob("*/*")):
        done = subprocess.run(
            ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(page)],
            env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "MANWIDTH": "80"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), page
        assert "SYNOPSIS" in done.stdout


def test_text_is_not_taken_for_orders() -> None:
    """Backslashes, and lines that begin with a point or an apostrophe, are printed as they are."""
    assert man_pages.escaped(".so a\\b\n'x -y") == "\\&.so a\\eb\n\\&'x \\-y"
