"""The README's commands exist: every verb, every option, every script and every path that it names."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from infiniswap.cli.main import make_cli
from infiniswap.kernel_shim.doctor_rdma import PAGE_BYTES, packet_bytes
from infiniswap.rdma.path import ROCE_MTU_BYTES
from tests.support.services import DAEMON

SHELL_WORDS = ("sudo", "$", "&")


def commands(root: Path) -> list[list[str]]:
    """Commands in the README's sh blocks, as words, without prompts, comments and continuation lines joined."""
    text = (root / "README.md").read_text()
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word not in SHELL_WORDS]
            one_each = itertools.groupby(words, "&&".__eq__)
            found += [list(command) for between, command in one_each if not between]
    assert len(found) > 10
    return found


def click_options(words: list[str]) -> tuple[set[str], str]:
    """Option names that the infiniswap command in words has, and its full name."""
    command: click.Command = make_cli()
    context = click.Context(command)
    name = "infiniswap"
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        verb = rest.pop(0)
        found = command.get_command(context, verb)
        assert found is not None, f"{name} has no verb {verb}"
        command, name = found, f"{name} {verb}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return known | {"-h", "--help"}, name


def options(words: list[str]) -> list[str]:
    """Options among words; -nb counts as -n and -b."""
    found: list[str] = []
    for word in words:
        if word.startswith("--"):
            found.append(word.split("=")[0])
        elif re.fullmatch(r"-[a-zA-Z]+", word):
            found += [f"-{letter}" for letter in word[1:]]
    return found


def test_infiniswap_commands(root: Path) -> None:
    """Each infiniswap command line of the README names a verb and options that exist."""
    lines = [words for words in commands(root) if words[0] == "infiniswap"]
    assert len(lines) >= 6
    for words in lines:
        known, name = click_options(words)
        unknown = [option for option in options(words) if option not in known]
        assert not unknown, f"{name} has no {unknown}"


def test_infiniswapd_commands(root: Path) -> None:
    """Each infiniswapd command line of the README names options that its --help lists."""
    lines = [words for words in commands(root) if words[0] == "infiniswapd"]
    assert lines
    done = subprocess.run(
        [*DAEMON, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    known = set(re.findall(r"--[a-z-]+|-[a-zA-Z]\b", done.stdout))
    for words in lines:
        unknown = [option for option in options(words) if option not in known]
        assert not unknown, f"infiniswapd has no {unknown}"


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test"])
def test_scripts_are_at_the_top(root: Path, script: str) -> None:
    """Both commands stand in the README's first block, and can be run."""
    first = commands(root)[:3]
    assert [f"./{script}"] in first
    assert (root / script).stat().st_mode & 0o111


def test_quick_start_needs_no_root(root: Path) -> None:
    """What is tried first works as anybody: no path lies where only root may write, but for commands after sudo."""
    text = (root / "README.md").read_text()
    section = text[text.index("## Quick start") :]
    section = section[: section.index("\n## ", 4)]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    tried = [line for block in blocks for line in block.splitlines() if "sudo" not in line]
    assert tried
    forbidden = [line for line in tried if re.search(r"(?<![\w.])/(run|etc|var/lib|usr/local|dev)/", line)]
    assert not forbidden


def test_files_that_commands_read_exist(root: Path) -> None:
    """A file that a command of the README reads is there on any Debian, also a small one (base-files has it)."""
    read = [word for words in commands(root) for word in words if word.startswith(("/usr/share/", "/bin/", "/etc/os"))]
    assert read
    missing = [word for word in read if not Path(word).exists()]
    assert not missing


def test_one_mtu(root: Path) -> None:
    """All documents and programs advise the same MTU."""
    advised = {
        found
        for path in [root / "README.md", *(root / "docs").glob("*.md")]
        for found in re.findall(r"ip link set \S+ mtu (\d+)", path.read_text())
    }
    assert advised == {str(ROCE_MTU_BYTES)}
    assert packet_bytes(ROCE_MTU_BYTES) == PAGE_BYTES


def test_paths_exist(root: Path) -> None:
    """Every file or folder of the tree that the README names is there."""
    text = (root / "README.md").read_text()
    named = set(re.findall(r"`((?:infiniswap|daemon|kernel_shim|tests|scripts|docs)/[\w./-]*)`", text))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert named
    missing = [name for name in sorted(named) if not (root / name).exists()]
    assert not missing
