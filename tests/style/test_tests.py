"""Tests stand alone: what several of them need is in tests/support/, and none takes it from another test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.tree import tree


def wrong_imports(file: str, text: str) -> list[str]:
    """Imports from tests/ that file must not have: allowed are tests/support/ and helpers of its own folder."""
    folder = Path(file).parts[1]
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "tests" or parts[1] == "support":
                continue
            if parts[1] != folder or any(part.startswith("test_") or part == "conftest" for part in parts):
                found.append(f"{file}:{node.lineno} imports {name}")
    return found


def test_tests_import_no_tests(root: Path) -> None:
    """Every file of tests/, wherever in it the import stands."""
    files = [path for path in tree(root) if path.suffix == ".py" and path.is_relative_to(root / "tests")]
    assert len(files) > 100
    names = [(str(path.relative_to(root)), path.read_text()) for path in files]
    assert [wrong for name, text in names for wrong in wrong_imports(name, text)] == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tests/unit/test_a.py", "from tests.unit.test_b import World"),
        ("tests/faults/test_a.py", "from tests.faults.conftest import MakeCluster"),
        ("tests/unit/test_a.py", "def late():\n    from tests.hostile import servers"),
        ("tests/fuzz/a.py", "import tests.daemon.helper"),
        ("tests/support/a.py", "from tests.faults.cluster import Cluster"),
    ],
)
def test_an_import_of_a_test_is_found(file: str, text: str) -> None:
    """However it is written."""
    assert len(wrong_imports(file, text)) == 1


def one_layout(text: str) -> list[str]:
    """Tests of faults that would run on one layout of the backup without saying why, by on_one_layout()."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        for each in [ast.unparse(decorator) for decorator in node.decorator_list]:
            chosen = node.name == "layout" or re.search(r"\blayout\b", each)
            if each.startswith("pytest.") and chosen and "BACKUP_LAYOUTS" not in each:
                found.append(f"{node.name}: {each}")
    return found


def test_faults_are_tried_on_both_layouts(root: Path) -> None:
    """By the fixture of tests/faults/conftest.py, which no file there puts aside."""
    files = sorted((root / "tests/faults").glob("test_*.py"))
    assert len(files) > 10
    assert [f"{path.name}: {wrong}" for path in files for wrong in one_layout(path.read_text())] == []


@pytest.mark.parametrize(
    "decorator",
    [
        '@pytest.mark.parametrize("layout", ["raw"])',
        '@pytest.mark.parametrize(("delay_ms", "layout"), [("20", "raw"), ("20", "log")])',
        "@pytest.fixture\ndef layout():\n    return 'raw'\n",
    ],
)
def test_one_layout_is_found(decorator: str) -> None:
    """However it is chosen; with a reason it is not."""
    assert len(one_layout(f"{decorator}\ndef test_a(make_cluster, layout):\n    pass\n")) == 1
    why = '@on_one_layout("raw", "It has no backup.")\n'
    assert one_layout(f"{why}def test_a(make_cluster):\n    pass\n") == []
