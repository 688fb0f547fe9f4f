"""The commands in the documents' sh blocks, one by one, and which of them are marked as not run by a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "not run by a test"
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HERE = re.compile(r"<<'?(\w+)'?")
_COMMENT = re.compile(r"(?:^|\s)#\s(.*)$")


@dataclass(frozen=True, slots=True)
class Line:
    """One command, whole (continuation lines, here-documents), without its comment. at: its line in the document."""

    text: str
    at: int
    marked: bool  # by its own comment, or by one that stands alone above it in its block


def documents(root: Path) -> list[Path]:
    """All that have commands, the README first."""
    found = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path for path in found if _BLOCK.search(path.read_text())]


def commands(path: Path) -> list[Line]:
    """All of a document, in its order."""
    text = path.read_text()
    return [line for block in _BLOCK.finditer(text) for line in _lines(block[1], text.count("\n", 0, block.start(1)))]


def _lines(block: str, above: int) -> Iterator[Line]:
    rest = list(enumerate(block.splitlines(), above + 1))
    marked = False
    while rest:
        at, text = rest.pop(0)
        while text.endswith("\\"):
            text = text[:-1].rstrip() + " " + rest.pop(0)[1].strip()
        comment = _COMMENT.search(text)
        command = text[: comment.start()].rstrip() if comment else text.rstrip()
        own = comment is not None and MARK in comment[1]
        if here := _HERE.search(command):
            while not command.endswith(f"\n{here[1]}"):
                command += "\n" + rest.pop(0)[1]
        if command:
            yield Line(command, at, marked or own)
        elif own:
            marked = True
