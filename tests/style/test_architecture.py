"""ARCHITECTURE.md, CONTRIBUTING.md, docs/guarantees.md and docs/security.md speak of what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
GUARANTEES = (ROOT / "docs/guarantees.md").read_text()
IN_SECURITY = re.findall(r"`tests/[\w/]+\.py::\w+`", (ROOT / "docs/security.md").read_text())
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.(?:py|c))::(\w+)`", TEXT + GUARANTEES + " ".join(IN_SECURITY))))


@pytest.mark.parametrize(("file", "name"), REFERENCES)
def test_named_tests_exist(file: str, name: str) -> None:
    """Each test that holds an invariant or a promise is there under the name that the table gives it."""
    source = (ROOT / file).read_text()
    wanted = rf"TEST(_ON_BOTH)?\({name}\)" if file.endswith(".c") else rf"^(async )?def {name}\("
    assert re.search(wanted, source, re.MULTILINE), f"{file} has no test {name}"


def test_every_invariant_is_held() -> None:
    """The invariants of the table are numbered in turn, and each row names a test."""
    rows = re.findall(r"^\| (\d+) \|.*", TEXT, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 11
    assert all("::" in line for line in re.findall(r"^\| \d+ \|.*$", TEXT, re.MULTILINE))


def test_every_promise_is_held() -> None:
    """Each row of docs/guarantees.md names a test."""
    rows = [line for line in GUARANTEES.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 15
    assert [line for line in rows if "::" not in line] == []


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/guarantees.md", "docs/security.md"])
def test_named_files_exist(document: str) -> None:
    """Paths in back quotes that look like files of this tree are files of this tree."""
    for path in re.findall(
        r"`((?:infiniswap|daemon|kernel_shim|tests|scripts|docs)/[\w./-]*)`", (ROOT / document).read_text()
    ):
        assert (ROOT / path).exists(), f"{document} names {path}"
