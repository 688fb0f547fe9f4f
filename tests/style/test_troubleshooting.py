"""docs/troubleshooting.md knows every warning and error that is logged, docs/messages.md every line that ends one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support import messages
from tests.support.messages import Message, ending, logged, page


def rows(text: str) -> dict[str, list[str]]:
    """Cells behind the code in a row's first cell, by that code."""
    found = re.findall(r"^\| `([^\n]*?)` \| ([^\n]*) \| ([^\n]*) \|$", text, re.MULTILINE)
    return {line: cells for line, *cells in found}


def test_every_warning_is_explained(root: Path) -> None:
    """Each has a row of its own that says what it means and what to do, and no row is about what is logged no more."""
    text = (root / "docs/troubleshooting.md").read_text()
    known = rows(text[text.index("\n## What a device logs") :])
    said = {message.text for message in logged(root)}
    assert len(said) > 90
    missing = sorted(said - known.keys())
    assert not missing, f"docs/troubleshooting.md has no row for {missing}: what does it mean, and what is to be done?"
    assert not sorted(known.keys() - said), "these rows are about lines that are logged no more"
    assert not [line for line, cells in known.items() if not all(len(cell) >= 7 for cell in cells)]


def test_every_ending_line_is_listed(root: Path) -> None:
    """The list is the sources': scripts/write_examples writes it."""
    assert len(ending(root)) > 200
    assert (root / "docs/messages.md").read_text() == page(root), "run scripts/write_examples"


def test_symptoms_quote_what_is_said(root: Path) -> None:
    """What the tables of symptoms show of lines is said by a program: words that nobody says help nobody."""
    text = (root / "docs/troubleshooting.md").read_text()
    symptoms = text[text.index("## By symptom") : text.index("\n## What a device logs")]
    first = re.findall(r"^\| ([^|]*) \|", symptoms, re.MULTILINE)
    quoted = [quote for cell in first for quote in re.findall(r"`([^`]*)`", cell) if len(quote.split()) >= 4]
    assert len(quoted) > 12
    sources = "".join(literals(root))
    strange = []
    for quote in quoted:
        words = [part for piece in quote.split(messages.VALUE) if len(part := piece.strip(" ;,:.'?")) >= 8]
        if not words or not all(part in sources for part in words):
            strange.append(quote)
    assert not strange


def literals(root: Path) -> list[str]:
    """All text in the sources, that of one expression in one piece."""
    trees = [ast.parse(path.read_text()) for folder in messages.FOLDERS for path in (root / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_what_is_found(tmp_path: Path) -> None:
    """Messages are found in each way that programs say them: formatted, put together, named, with varying levels."""
    folder = tmp_path / "infiniswap"
    folder.mkdir()
    for other in ("daemon", "kernel_shim"):
        (tmp_path / other).mkdir()
    (folder / "a.py").write_text(
        "def f(x, log):\n"
        '    log.warning("peer %s: it is %d late", x, 1)\n'
        '    message = f"slab {x} is gone" if x else "nothing is there"\n'
        "    log.error(message)\n"
        '    log.info("not this one")\n'
        '    log.log(logging.WARNING if x else logging.INFO, "peer %s: by level", x)\n'
        '    complaints.say("k", f"told {x} now and then", logging.WARNING)\n'
        '    complaints.say("k", "not this one either", logging.INFO)\n'
        '    raise UserError(f"no such {x} " + "at all", ExitCode.NOT_FOUND)\n'
    )
    assert logged(tmp_path) == [
        Message("nothing is there", "ERROR"),
        Message("peer …: by level", "WARNING"),
        Message("peer …: it is … late", "WARNING"),
        Message("slab … is gone", "ERROR"),
        Message("told … now and then", "WARNING"),
    ]
    assert ending(tmp_path) == [Message("no such … at all", "NOT_FOUND")]
