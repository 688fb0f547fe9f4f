"""The house has rooms: nothing imports upwards, and ARCHITECTURE.md tells where everything is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.tree import tree

# What each folder may import of the others.
BELOW: dict[str, set[str]] = {
    "shared": set(),
    "policy": {"shared"},
    "identity": {"shared"},
    "simulation": {"shared", "policy"},
    "engine": {"shared"},
    "nbd": {"shared", "engine"},
    "rdma": {"shared"},
    "kernel_shim": {"shared", "nbd", "rdma"},
    "daemon": {"shared", "identity", "policy", "engine", "nbd", "rdma"},
    "device": {"shared", "identity", "policy", "engine", "nbd", "rdma", "kernel_shim"},
    "cli": {"shared", "identity", "policy", "nbd", "rdma", "kernel_shim", "device", "daemon", "simulation"},
}
TOP = ("daemon", "kernel_shim")  # they install as infiniswap.daemon and infiniswap.kernel_shim
IMPURE = {"asyncio", "os", "pathlib", "random", "secrets", "socket", "subprocess", "threading", "time"}
ENGINE_SOURCES = "infiniswap/engine/src/"
ENGINE_TESTS = "infiniswap/engine/tests/"
CODE = (".py", ".pyi", ".c", ".h")


def sources(root: Path) -> list[str]:
    """Source files of infiniswap/, daemon/ and kernel_shim/, without the engine's tests."""
    names = [str(path.relative_to(root)) for path in tree(root) if path.suffix in CODE]
    rooms = ("infiniswap/", *(f"{folder}/" for folder in TOP))
    found = [name for name in names if name.startswith(rooms) and not name.startswith(ENGINE_TESTS)]
    assert len(found) > 100
    return found


def folder_of(file: str) -> str:
    """The room that a Python file stands in; "" for infiniswap/__init__.py."""
    parts = Path(file).parts
    return parts[0] if parts[0] in TOP else parts[1] if len(parts) > 2 else ""


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and full name of every import, wherever it stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports would hide where they lead"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def wrong_imports(file: str, text: str) -> list[str]:
    """Imports of other rooms that file, with this text, must not have."""
    folder = folder_of(file)
    found = []
    for line, name in imports(ast.parse(text)):
        parts = name.split(".")
        other = parts[1] if parts[0] == "infiniswap" and len(parts) > 1 else ""
        if other in BELOW and other != folder and other not in BELOW[folder]:
            found.append(f"{file}:{line} imports {name}")
    return found


def test_nothing_imports_upwards(root: Path) -> None:
    """Every import inside the package leads to the same room or to one below, also those made late."""
    files = [name for name in sources(root) if name.endswith(".py") and folder_of(name)]
    assert {folder_of(name) for name in files} == set(BELOW)
    assert [wrong for name in files for wrong in wrong_imports(name, (root / name).read_text())] == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("infiniswap/shared/a.py", "from infiniswap.device.config import PEERS_MAX"),
        ("infiniswap/policy/a.py", "import infiniswap.engine.binding"),
        ("infiniswap/shared/a.py", "from infiniswap.identity.roles import Role"),
        ("infiniswap/simulation/a.py", "from infiniswap.device.limits import PEERS_MAX"),
        ("infiniswap/device/a.py", "import infiniswap.simulation.cluster"),
        ("infiniswap/rdma/a.py", "def late():\n    from infiniswap import device"),
        ("daemon/a.py", "from infiniswap.device import config"),
        ("infiniswap/device/a.py", "import infiniswap.daemon.lender as lender"),
        ("kernel_shim/a.py", "from infiniswap.cli.table import lines"),
    ],
)
def test_an_import_upwards_is_found(file: str, text: str) -> None:
    """However it is written."""
    assert len(wrong_imports(file, text)) == 1


def test_policy_is_pure(root: Path) -> None:
    """Modules of policy/ reach no clock, no system and no random numbers but those that they are given."""
    files = [name for name in sources(root) if name.startswith("infiniswap/policy/")]
    assert len(files) > 3
    used = [(file, name) for file in files for _, name in imports(ast.parse((root / file).read_text()))]
    # Random is the type of the numbers that come in.
    assert [(file, name) for file, name in used if name.split(".")[0] in IMPURE and name != "random.Random"] == []


def test_one_clock(root: Path) -> None:
    """In device/ the clock is passed through: whoever starts the service or a check takes the system's, nobody else."""
    files = [name for name in sources(root) if name.startswith("infiniswap/device/")]
    takers = [name for name in files if "time.monotonic" in (root / name).read_text()]
    assert takers == ["infiniswap/device/check.py", "infiniswap/device/serve.py"]


def named(text: str) -> list[str]:
    """Files that the rows of the table "What lives where" name; a bare name stands in the folder of the one before."""
    section = text.partition("## What lives where")[2].partition("\n## ")[0]
    found = []
    for row in re.findall(r"^\| `.*", section, re.MULTILINE):
        folder = ""
        for word in re.findall(r"`([^` ]+)`", row.split("|")[1]):
            path = word.replace("…/", ENGINE_SOURCES)
            if "/" in path:
                folder = path.rpartition("/")[0] + "/"
            else:
                path = folder + path
            found.append(path)
    return found


def test_the_table_names_every_file(root: Path) -> None:
    """Each source file is in ARCHITECTURE.md's table, a header with the source of its name; nothing is there twice."""
    names = [name for name in named((root / "ARCHITECTURE.md").read_text()) if name.endswith(CODE)]
    stems = {name.rpartition(".")[0] for name in names}
    missing = [
        name for name in sources(root) if not name.endswith("__init__.py") and name.rpartition(".")[0] not in stems
    ]
    assert missing == []
    assert sorted(set(names)) == sorted(names)


def test_the_table_names_no_other_file(root: Path) -> None:
    """Each file and folder in ARCHITECTURE.md's table exists."""
    names = named((root / "ARCHITECTURE.md").read_text())
    assert len(names) > 100
    assert [name for name in names if not (root / name).exists()] == []
