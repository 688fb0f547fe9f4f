"""What is named exists, and what exists is named: files in comments and documents, options, metrics, news."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from infiniswap.cli.main import make_cli
from infiniswap.daemon.options import OPTIONS as DAEMON_OPTIONS
from infiniswap.engine.binding import EventKind
from tests.support import metric_names
from tests.support.tree import tree

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs")
FILE = re.compile(r"(?<![\w*<{$%@./-])((?:[\w.-]+/)*[\w-]+\.(?:py|pyi|c|h|md|sh|toml|service))\b(?![\w(/])")
# Of the kernel's tree, the C library's, NBD's, and what a user's own files are called in examples.
ELSEWHERE = re.compile(
    r"(doc|drivers|include/uapi|linux|rdma|etc|github\.com|some)/.*|proto\.md|vol\.toml|infiniswapd?\.service"
)


def remarks(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and docstrings of a source file with their lines; every line of a document."""
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield getattr(node, "lineno", 1), ast.get_docstring(node, clean=False) or ""
    elif path.suffix in (".c", ".h"):
        for match in re.finditer(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL):
            yield text.count("\n", 0, match.start()) + 1, match[0]
    else:
        lines = enumerate(text.splitlines(), 1)
        yield from (each for each in lines if path.suffix == ".md" or each[1].lstrip().startswith("#"))


def ends_of(files: Iterable[str]) -> frozenset[str]:
    """Every way to name one of files: whole, or with folders left out at the front."""
    return frozenset("/".join(parts[at:]) for file in files for parts in [file.split("/")] for at in range(len(parts)))


def missing(text: str, ends: frozenset[str]) -> list[str]:
    """Files that text names and that are not among ends."""
    return [name for name in FILE.findall(text) if name not in ends and not ELSEWHERE.fullmatch(name)]


def test_named_files_exist(root: Path) -> None:
    """In every comment, docstring and document; CHANGELOG.md tells of the past."""
    paths = [path for path in tree(root) if path.suffix in (".py", ".pyi", ".c", ".h", ".md", ".sh", ".toml")]
    ends = ends_of(str(path.relative_to(root)) for path in tree(root))
    found = [
        f"{path.relative_to(root)}:{line} names {name}"
        for path in paths
        if path.name != "CHANGELOG.md"
        for line, text in remarks(path)
        for name in missing(text, ends)
    ]
    assert found == []


def test_a_missing_file_is_found() -> None:
    """Whatever stands around the name; not files of others."""
    ends = ends_of(["a/b/here.c", "here.h", "docs/this.md"])
    assert missing("see here.c, b/here.c and `a/b/here.c` (docs/this.md). linux/mman.h", ends) == []
    assert missing("(gone.c), see b/here.h: `docs/that.md`.", ends) == ["gone.c", "b/here.h", "docs/that.md"]


@pytest.fixture(scope="module")
def documents() -> str:
    """Everything written for people."""
    root = Path(__file__).resolve().parents[2]
    paths = [
        path for name in DOCUMENTS for path in ([root / name] if name.endswith(".md") else (root / name).iterdir())
    ]
    return "\n".join(path.read_text() for path in paths if path.suffix != ".png")


def words(text: str) -> set[str]:
    """Names in back quotes."""
    return set(re.findall(r"`([\w.]+)`", text))


def options(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Option]]:
    """All options of all verbs, with the verb."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            verb = command.get_command(context, name)
            assert verb is not None
            yield from options(verb, (*words, name))
    else:
        yield from ((" ".join(words), option) for option in command.params if isinstance(option, click.Option))


def test_every_option_is_in_a_document(documents: str) -> None:
    """By its flag, or by the name that it has in a file."""
    flags = [(verb, option.opts[0], option.name) for verb, option in options(make_cli())]
    flags += [("infiniswapd", option.flag, option.name) for option in DAEMON_OPTIONS]
    assert len(flags) > 60
    named = set(re.findall(r"(?<![\w-])-{1,2}\w[\w-]*|\w+(?= =)", documents))
    assert [(verb, flag) for verb, flag, name in flags if flag not in named and name not in named] == []


def counters(root: Path, engine: str) -> set[str]:
    """Names of what an engine counts."""
    header = (root / "infiniswap/engine/include/infiniswap_engine.h").read_text()
    macro = header.partition(f"#define ISW_{engine}_COUNTERS(X)")[2].partition("\n\n")[0]
    return set(re.findall(r"\bX\((\w+)\)", macro))


def test_every_metric_is_in_its_document(root: Path) -> None:
    """Each name in docs/metrics.md, and no other; and each number that an engine counts is part of one metric."""
    sections = (root / "docs/metrics.md").read_text().split("\n## ")
    device, daemon, news = (
        next(s for s in sections if s.startswith(title)) for title in ("A device", "A daemon", "News")
    )
    for section, prefix, expected in (
        (device, "infiniswap_", metric_names.device_names() | metric_names.shard_names()),
        (daemon, "infiniswapd_", metric_names.daemon_names()),
    ):
        assert len(expected) > 30
        assert {prefix + name for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)} == expected
    used = [number for family in metric_names.DEVICE for number in family.numbers.values()]
    assert sorted(set(used)) == sorted(used)
    assert counters(root, "DEVICE") - set(used) == set()
    used = [number for family in metric_names.DAEMON for number in family.numbers.values()]
    assert {f"engine_{name}" for name in counters(root, "MEMORY")} - set(used) == set()
    kinds = {kind.name.lower() for kind in EventKind} | {"lease_lost", "missed", "shard_died", "shard_restarted"}
    assert {word for row in re.findall(r"^\| (`[^|]*)\|", news, re.MULTILINE) for word in words(row)} == kinds
