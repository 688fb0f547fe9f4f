"""The rules that a machine can check: linters, types, file lengths, words that must not stand in the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode
from tests.support.tree import tree

LINES_MAX = 450
CHECKER_TIMEOUT_S = 300  # mypy without its cache takes long on a busy machine
CODE = (".py", ".pyi", ".c", ".h", ".sh")
# Put together here, so that this file does not hold them itself.
FORBIDDEN = {
    "unfinished work": re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b"),
    "a package registry": re.compile(
        "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", r"\bdeb\." + "debian", r"\bnpm" + r"js\.(org|com)"])
    ),
    "a path of one machine": re.compile(r"/wo" + r"rk/(main|shared)\b|/ro" + r"ot/\."),
    "ending processes by name": re.compile(r"\b(p" + "kill|kill" + r"all)\b"),
    "hardware virtualization": re.compile(r"(-accel|-enable)[ -=]" + "kvm"),
}


def run(root: Path, *command: str) -> None:
    """Run a checker at the top of the tree; what it says is the failure."""
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=CHECKER_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"


def is_shell(path: Path) -> bool:
    """A bash or sh script, by name or by its first line."""
    with path.open("rb") as file:
        return path.suffix == ".sh" or re.match(rb"#!.*\b(ba)?sh\b", file.readline()) is not None


def test_ruff(root: Path) -> None:
    """Ruff finds nothing to say about the code."""
    run(root, sys.executable, "-m", "ruff", "check", "--quiet", ".")


def test_format(root: Path) -> None:
    """Every Python file is formatted as ruff formats."""
    run(root, sys.executable, "-m", "ruff", "format", "--check", "--quiet", ".")


@pytest.mark.timeout(CHECKER_TIMEOUT_S + 30)
def test_types(root: Path) -> None:
    """Mypy --strict holds for the package and the tests."""
    run(root, sys.executable, "-m", "mypy")


def test_shell(root: Path) -> None:
    """Shellcheck finds nothing to say about the scripts."""
    scripts = [str(path) for path in tree(root) if is_shell(path)]
    assert len(scripts) >= 4
    run(root, "shellcheck", "-x", "-e", "SC2054", *scripts)  # a comma may well be part of an option


def test_file_lengths(root: Path) -> None:
    """No source file has grown beyond what one reads at a sitting."""
    long = {}
    for path in tree(root):
        if path.suffix in CODE:
            lines = len(path.read_text().splitlines())
            if lines > LINES_MAX:
                long[str(path.relative_to(root))] = lines
    assert not long, f"longer than {LINES_MAX} lines; split by concern: {long}"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_forbidden(root: Path, what: str) -> None:
    """Certain things never stand in the tree."""
    found = []
    for path in tree(root):
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(root)}:{i}: {line}" for i, line in enumerate(lines, 1) if FORBIDDEN[what].search(line)
        ]
    assert not found, f"{what}:\n" + "\n".join(found)


def test_exit_codes_are_documented(root: Path) -> None:
    """The README's table of exit codes is the one in infiniswap/shared/errors.py."""
    rows = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \| (.+) \|$", (root / "README.md").read_text(), re.MULTILINE)
    assert [(int(code), name) for code, name, _ in rows] == [(code.value, code.name) for code in ExitCode]
